"""A PEFT LoRA adapter, laid over the checkpoint it was trained on.

Low-rank updates stay low-rank: they are added when values are read (`read_values`). Tensors that
the adapter stores whole (`modules_to_save`, biases) take the place of the base's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergepipe.checkpoint.files import FileFaultError, Place, read_json, report
from mergepipe.checkpoint.folder import Weights, read_file
from mergepipe.checkpoint.names import embedding_name
from mergepipe.checkpoint.scaling import Scaling, scaling_of
from mergepipe.checkpoint.tensors import LowRank, Stored
from mergepipe.errors import Problems

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TYING = "ensure_weight_tying"
_FIX = "is it made for this base? else merge it with PEFT first"
_PREFIX = "base_model.model."
# What changes neither the values of an update nor their place. Any other field that is set may
# change them (DoRA, layer replication, ...), so it is refused.
_UNDERSTOOD = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        _TYING,
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
# Other initialisations (PiSSA, OLoRA, LoftQ, ...) also change the base's weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_PAIR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(?P<weight>\.weight)?"
)
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save)(\.default)?(?=\.)")
_HEAD = "lm_head.weight"
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of a module's update, as far as they were found."""

    a: Stored | None
    b: Stored | None
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, read: its config, and the tensors in `file`."""

    config: Mapping[str, Any]
    scaling: Scaling
    file: str
    tensors: Mapping[str, Stored]


def apply_adapter(
    place: Place, base: Weights, base_config: Mapping[str, Any], problems: Problems
) -> tuple[Weights, Mapping[str, LowRank]]:
    """Give `base` with the adapter's whole tensors in place, and the low-rank updates by name."""
    adapter = read_adapter(place, problems)
    if adapter is None:
        return base, {}
    pairs, whole, faults = sorted_out(adapter.tensors)
    whole, tie_faults = _with_ties(whole, pairs, adapter.config, base, base_config)
    replaced = _replaced(base, whole)
    updates, update_faults = _updates(pairs, adapter, replaced)
    faults += _whole_faults(whole, base) + tie_faults + update_faults
    report(problems, place.of(adapter.file), faults, _FIX)
    return replaced, updates


def read_adapter(place: Place, problems: Problems) -> Adapter | None:
    """Read config and weight headers of an adapter; None if one of them cannot be used."""
    file = next((name for name in _WEIGHTS if (place.folder / name).exists()), _WEIGHTS[0])
    weights = read_file(place, file, problems)
    try:
        config = read_json(place.folder / _CONFIG)
    except FileFaultError as fault:
        problems.add(place.of(_CONFIG), str(fault), "a PEFT adapter folder is needed")
        return None
    if not isinstance(config, dict):
        problems.add(place.of(_CONFIG), "not a JSON object", "fetch the adapter again")
        return None
    scaling, faults = scaling_of(config)
    report(problems, place.of(_CONFIG), _config_faults(config) + faults, _FIX)
    return Adapter(config, scaling, file, weights.tensors) if scaling and weights else None


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')!r}; only LORA adapters can be applied"]
    faults = [
        f"{field} is set, which is not supported"
        for field, value in config.items()
        if value and field not in _UNDERSTOOD
    ]
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        faults.append(f"init_lora_weights is {start!r}, which also changes the base's weights")
    return faults


def _with_ties(
    whole: Mapping[str, Stored],
    pairs: Mapping[str, Pair],
    config: Mapping[str, Any],
    base: Weights,
    base_config: Mapping[str, Any],
) -> tuple[dict[str, Stored], list[str]]:
    """Give the whole tensors as they apply to a base with tied weights, and what would untie it."""
    # PEFT may store the base layer of an updated embedding too: the same values, still tied.
    kept = [name for name in whole if name.removesuffix(".weight") in pairs]
    spread = {alias: whole[name] for alias, name in base.aliases.items() if name in kept}
    if _HEAD in base.tensors:
        return {**whole, **spread}, []
    if config.get(_TYING):
        # The head is then the new embedding again, for which a tied base has no place.
        return {name: stored for name, stored in whole.items() if name != _HEAD} | spread, []
    new = [name for name in whole if name not in kept]
    if embedding_name(base.tensors) not in new or _says_untied(base_config):
        return {**whole, **spread}, []
    return {}, ["it replaces the embedding, to which the base's output head is tied"]


def _says_untied(config: Mapping[str, Any]) -> bool:
    sections = [config, *(part for part in config.values() if isinstance(part, dict))]
    return any(section.get("tie_word_embeddings") is False for section in sections)


def sorted_out(
    tensors: Mapping[str, Stored],
) -> tuple[dict[str, Pair], dict[str, Stored], list[str]]:
    """Give the adapter's tensors as pairs by module, and whole ones by the base's tensor name."""
    pairs: dict[str, Pair] = {}
    whole: dict[str, Stored] = {}
    faults: list[str] = []
    for full_name, stored in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        match = _PAIR.fullmatch(name)
        # Embedding factors are bare parameters, all others are weights of a module.
        if match and bool(match["embedding"]) != bool(match["weight"]):
            known = pairs.get(match["module"], Pair(None, None, bool(match["embedding"])))
            is_a = match["side"] == "A"
            pairs[match["module"]] = replace(known, a=stored) if is_a else replace(known, b=stored)
        elif ".lora_" in name:
            faults.append(f"tensor '{name}' is of a LoRA variant that is not supported")
        else:
            whole[_WRAPPER.sub("", name)] = stored
    return pairs, whole, faults


def _whole_faults(whole: Mapping[str, Stored], base: Weights) -> list[str]:
    faults: list[str] = []
    for name, stored in whole.items():
        target = base.tensors.get(name)
        if target is None:
            faults.append(f"the base has no tensor '{name}' to replace with the adapter's")
        elif target.shape != stored.shape:
            shapes = f"{list(stored.shape)}, in the base {list(target.shape)}"
            faults.append(f"'{name}' has shape {shapes}")
    return faults


def _updates(
    pairs: Mapping[str, Pair], adapter: Adapter, base: Weights
) -> tuple[dict[str, LowRank], list[str]]:
    """Give the low-rank updates by tensor name, and the faults of those that cannot be made."""
    fan_in_fan_out = bool(adapter.config.get("fan_in_fan_out"))
    updates: dict[str, LowRank] = {}
    faults: list[str] = []
    for module, pair in pairs.items():
        target = base.tensors.get(f"{module}.weight")
        found = _update(module, pair, adapter.scaling, fan_in_fan_out, target)
        if isinstance(found, str):
            faults.append(found)
        else:
            updates[f"{module}.weight"] = found
    faults += _orientation_faults(updates, fan_in_fan_out)
    first = {name: base.aliases.get(name, name) for name in base.tensors}
    if len({first[name] for name in updates}) < len(updates):
        faults.append("it updates two tensors that are tied")
    # A tied tensor is one parameter: its other names get the same update.
    by_first = {first[name]: update for name, update in updates.items()}
    return {name: by_first[first[name]] for name in first if first[name] in by_first}, faults


def _update(
    module: str, pair: Pair, scaling: Scaling, fan_in_fan_out: bool, target: Stored | None
) -> LowRank | str:
    """Give the update of one module's weight, or what is wrong with it."""
    if target is None:
        return f"the base has no tensor '{module}.weight' for the adapter's module '{module}'"
    if pair.a is None or pair.b is None:
        return f"module '{module}' has only one of lora_A and lora_B"
    # A square matrix fits both ways; then only the config knows.
    transposed = pair.is_embedding or (
        fan_in_fan_out
        if pair.a.shape[-1:] == pair.b.shape[:1]
        else target.shape == pair.a.shape[-1:] + pair.b.shape[:1]
    )
    update = LowRank(pair.a, pair.b, scaling.scale_of(module), transposed)
    fault = _update_fault(update, target, scaling.rank_of(module))
    return f"'{module}': {fault}" if fault else update


def _update_fault(update: LowRank, target: Stored, rank: int) -> str | None:
    a, b = update.a, update.b
    shapes = f"shapes A {list(a.shape)}, B {list(b.shape)}, W {list(target.shape)}"
    if any(len(stored.shape) != _MATRIX for stored in (a, b, target)):
        return f"{shapes}: only updates of matrices are supported"
    if not (a.is_float and b.is_float and target.is_float):
        return "only updates of floats by floats are supported"
    if (a.shape[0], b.shape[1]) != (rank, rank):
        return f"{shapes} do not have the rank {rank} of {_CONFIG}"
    full = (b.shape[0], a.shape[1])
    if target.shape != (full[::-1] if update.transposed else full):
        return f"{shapes} do not fit together"
    return None


def _orientation_faults(updates: Mapping[str, LowRank], fan_in_fan_out: bool) -> list[str]:
    """Name a square matrix whose orientation is unknown, if others contradict the config."""
    linear = {name: low for name, low in updates.items() if ".lora_A" in low.a.name}
    square = [name for name, low in linear.items() if low.a.shape[1] == low.b.shape[0]]
    contradicted = any(
        low.transposed != fan_in_fan_out for name, low in linear.items() if name not in square
    )
    what = f"fan_in_fan_out is {str(fan_in_fan_out).lower()}, which other modules contradict"
    return [f"'{square[0]}': {what}"] if square and contradicted else []


def _replaced(base: Weights, whole: Mapping[str, Stored]) -> Weights:
    tensors = {
        name: replace(whole[name], name=name) if name in whole else stored
        for name, stored in base.tensors.items()
    }
    aliases = {
        alias: name for alias, name in base.aliases.items() if whole.get(alias) is whole.get(name)
    }
    return Weights(tensors, aliases)
