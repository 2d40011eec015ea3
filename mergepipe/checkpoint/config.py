"""`config.json`: whether it can be read, can be merged, and agrees with the tensors.

No architecture is known here. A field that is absent, or tensor names in an unknown style, are
passed over: only what config and weights both say, and say differently, is a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from mergepipe.checkpoint.files import FileFaultError, Place, find_nan, read_json, report
from mergepipe.checkpoint.names import embeddings, stacks
from mergepipe.checkpoint.tensors import DTYPES, Stored
from mergepipe.errors import Problems

CONFIG = "config.json"
_FIX = "a model folder needs its config.json; fetch it again"
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_LANGUAGE = ("text_config", "llm_config", "language_config")
# With these fields the embedding is narrower than the hidden size, or layers are shared.
_FACTORISED = {"embedding_size", "word_embed_proj_dim", "input_embedding_size", "d_embed"}
_SHARED_LAYERS = "num_hidden_groups"
_EXTRA_LAYERS = "num_nextn_predict_layers"  # stored after the others, for multi-token prediction
_PADDED_VOCABULARY = "padded_vocab_size"
_DTYPES = {dtype.torch_name for dtype in DTYPES.values() if dtype.is_float} | {"auto"}
_PACKED = (".qweight", ".qzeros", ".quant_state.bitsandbytes__nf4", ".absmax")


def read_config(place: Place, problems: Problems) -> dict[str, Any] | None:
    """`config.json` of a model folder; None if it is absent, unreadable or says nothing."""
    where = place.of(CONFIG)
    try:
        config = read_json(place.folder / CONFIG)
    except FileFaultError as fault:
        problems.add(where, str(fault), _FIX)
        return None
    if not isinstance(config, dict):
        problems.add(where, "not a JSON object", _FIX)
        return None
    if not any(family(config)):
        unsaid = "has neither model_type nor architectures"
        if _first(config, (*_LAYERS, *_WIDTH)) is None:
            problems.add(where, unsaid, _FIX)
            return None
        # Transformers before 2.2 wrote none; names and shapes still say what fits.
        problems.warn(where, f"{unsaid}: auto classes cannot load it, its own class can")
    report(problems, where, [*_value_faults(config), *_dtype_faults(config)], "correct the field")
    _check_trust(where, config, problems)
    return config


def family(config: Mapping[str, Any]) -> tuple[str, str]:
    """`(model_type, first architecture)`, such as `("llama", "LlamaForCausalLM")`; "" if unsaid."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return (
        model_type if isinstance(model_type, str) else "",
        first if isinstance(first, str) else "",
    )


def depth_of(config: Mapping[str, Any]) -> int | None:
    """Give the number of layers that a configuration says."""
    found = _first(config, _LAYERS)
    return found[1] if found else None


def with_layers(config: Mapping[str, Any], sources: Sequence[int]) -> dict[str, Any]:
    """Give the configuration of a model whose layers are these of another's, in this order.

    What is listed layer by layer (`layer_types`) is put in that order too.
    """
    depth = depth_of(config)

    def changed(key: str, value: Any) -> Any:
        if key in _LAYERS and value == depth:
            return len(sources)
        if isinstance(value, list) and len(value) == depth and key.startswith("layer"):
            return [value[at] for at in sources]
        return with_layers(value, sources) if key in _LANGUAGE else value

    return {key: changed(key, value) for key, value in config.items()}


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Give the configuration of a model whose embedding has only the first `rows` rows."""

    def changed(key: str, value: Any) -> Any:
        if key == "vocab_size" and _is_count(value):
            return min(value, rows)
        return with_vocabulary(value, rows) if key in _LANGUAGE and value else value

    return {key: changed(key, value) for key, value in config.items()}


def _value_faults(config: Mapping[str, Any]) -> list[str]:
    nan = find_nan(config)
    faults = [f"{nan} is NaN"] if nan else []
    for section in _sections(config):
        for key in (*_LAYERS, *_WIDTH, "vocab_size"):
            value = section.get(key)
            # Some vision models have one size per stage or part.
            if not isinstance(value, list | dict | None) and not _is_count(value):
                faults.append(f"{key} is {value!r}: a whole number above 0 is needed")
    return faults


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _dtype_faults(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} '{value}' is no floating-point dtype; known: {', '.join(sorted(_DTYPES))}"
        for section in _sections(config)
        for key in ("torch_dtype", "dtype")
        if isinstance(value := section.get(key), str)
        and value.removeprefix("torch.") not in _DTYPES
    ]


def _check_trust(where: str, config: Mapping[str, Any], problems: Problems) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        what = f"a quantized model ({method or 'quantization_config is set'})"
        problems.add(where, f"{what}: its weights cannot be averaged", "use the unquantized model")
    if config.get("auto_map"):
        problems.warn(where, "auto_map names custom code; it is not run (no trust_remote_code)")


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the parts that may describe the language model, the innermost first."""
    nested = [config[key] for key in _LANGUAGE if isinstance(config.get(key), dict)]
    return [*nested, config]


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """Find the first of `keys` that holds a count, and the count."""
    for section in _sections(config):
        for key in keys:
            value = section.get(key)
            if _is_count(value):
                return key, value
    return None


def check_config(
    config: Mapping[str, Any], tensors: Mapping[str, Stored], place: Place, problems: Problems
) -> None:
    """Report where `config` and the tensors' names and shapes contradict each other."""
    faults = [
        *_layer_faults(config, tensors),
        *_width_faults(config, tensors),
        *_vocabulary_faults(config, tensors),
    ]
    report(problems, place.of(CONFIG), faults, "do config and weights belong together?")
    unfit = [*_packed_faults(tensors), *_empty_faults(tensors)]
    report(problems, place.of(), unfit, "save the model again, in full and unquantized")
    _warn_padding(place.of(CONFIG), config, tensors, problems)
    _warn_names(place.of(), tensors, problems)


def _layer_faults(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[str]:
    found, said = stacks(tensors), _first(config, _LAYERS)
    if not found or not said or any(_SHARED_LAYERS in part for part in _sections(config)):
        return []
    # Convolutional networks, which state no width, count their layers in other ways.
    if _first(config, _WIDTH) is None:
        return []
    extra = _first(config, (_EXTRA_LAYERS,)) or ("", 0)
    counts = {said[1], said[1] + extra[1]}
    fits = any({len(layers), max(layers) + 1} & counts for layers in found.values())
    return [] if fits else [f"{said[0]} is {said[1]}, but {_shown(said[1], found)}"]


def _shown(said: int, found: Mapping[str, set[int]]) -> str:
    """Give `the weights of model.layers have 2; model.layers.2. is missing`, of the deepest."""
    stack = max(found, key=lambda name: len(found[name]))
    stored = len(found[stack])
    absent = next(at for at in range(stored + 1) if at not in found[stack])
    lack = f"; {stack}.{absent}. is missing" if stored < said else ""
    return f"the weights of {stack} have {stored}{lack}"


def _embedding_shape(tensors: Mapping[str, Stored]) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape of the embedding, unless several of other shapes make it doubtful."""
    names = embeddings(tensors)
    shapes = {tensors[name].shape for name in names}
    return (names[0], shapes.pop()) if len(shapes) == 1 else None


def _width_faults(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[str]:
    found, said = _embedding_shape(tensors), _first(config, _WIDTH)
    if not found or not said or any(_FACTORISED & section.keys() for section in _sections(config)):
        return []
    name, (_, width) = found
    return [f"{said[0]} is {said[1]}, but '{name}' has {width} columns"] if width != said[1] else []


def _vocabulary_faults(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[str]:
    """Name rows that lack a token; some models do have more rows than tokens, as padding."""
    found, said = _embedding_shape(tensors), _first(config, ("vocab_size",))
    if not found:
        return []
    name, (rows, _) = found
    faults = []
    if said and said[1] > rows and _PADDED_VOCABULARY not in config:
        faults.append(f"vocab_size is {said[1]}, but '{name}' has {rows} rows")
    head = tensors.get("lm_head.weight")
    if head and head.shape and head.shape[0] not in {rows, said and said[1]}:
        faults.append(f"'lm_head.weight' has {head.shape[0]} rows, but '{name}' has {rows}")
    return faults


def _warn_padding(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, Stored], problems: Problems
) -> None:
    found, said = _embedding_shape(tensors), _first(config, ("vocab_size",))
    if found and said and said[1] < found[1][0]:
        problems.warn(where, f"vocab_size is {said[1]}, '{found[0]}' has {found[1][0]} rows")


def _packed_faults(tensors: Mapping[str, Stored]) -> list[str]:
    """Weights that are codes or scaled: averaging them gives noise."""
    packed = [name for name in tensors if name.endswith(_PACKED)]
    packed += [
        name
        for name, stored in tensors.items()
        if stored.dtype.startswith("F8_")
        and any(f"{name}_{suffix}" in tensors for suffix in ("scale", "scale_inv"))
    ]
    what = "weights are quantized and cannot be averaged"
    return [f"{what} (tensor '{packed[0]}')"] if packed else []


def _empty_faults(tensors: Mapping[str, Stored]) -> list[str]:
    return [
        f"tensor '{name}' has shape {list(stored.shape)}: a weight without values"
        for name, stored in tensors.items()
        if not stored.numel and name.endswith((".weight", ".bias"))
    ]


def _warn_names(where: str, tensors: Mapping[str, Stored], problems: Problems) -> None:
    adapters = [name for name in tensors if ".lora_" in name or name.startswith("lora_")]
    if adapters:
        what = f"an adapter is left unmerged among the weights: {adapters[0]} (lora_A, lora_B)"
        problems.warn(where, f"{what}; it is not applied")
    odd = [name for name in tensors if not name.isprintable() or "/" in name or "\\" in name]
    for name in odd[:3]:
        problems.warn(where, f"odd tensor name '{name}'")
