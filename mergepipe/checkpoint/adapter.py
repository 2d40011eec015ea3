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
from mergepipe.checkpoint.scaling import Scaling, scaling_of
from mergepipe.checkpoint.tensors import LowRank, Stored
from mergepipe.errors import Problems

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
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
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two factors of a module's update, as far as they were found."""

    a: Stored | None
    b: Stored | None
    is_embedding: bool


def apply_adapter(
    place: Place, base: Weights, problems: Problems
) -> tuple[Weights, Mapping[str, LowRank]]:
    """Give `base` with the adapter's whole tensors in place, and the low-rank updates by name."""
    config = _read_config(place, problems)
    scaling, faults = scaling_of(config) if config is not None else (None, [])
    report(problems, place.of(_CONFIG), faults)
    name = next((name for name in _WEIGHTS if (place.folder / name).exists()), _WEIGHTS[0])
    stored = read_file(place, name, problems)
    if config is None or scaling is None or stored is None:
        return base, {}
    pairs, whole, faults = _sorted_out(stored.tensors)
    whole_faults = [_whole_fault(name, tensor, base) for name, tensor in whole.items()]
    updates, update_faults = _updates(pairs, scaling, bool(config.get("fan_in_fan_out")), base)
    found = [*faults, *filter(None, whole_faults), *update_faults]
    report(problems, place.of(name), found, "is this adapter made for this base model?")
    return _replaced(base, whole), updates


def _read_config(place: Place, problems: Problems) -> dict[str, Any] | None:
    try:
        config = read_json(place.folder / _CONFIG)
    except FileFaultError as fault:
        problems.add(place.of(_CONFIG), str(fault), "a PEFT adapter folder is needed")
        return None
    if not isinstance(config, dict):
        problems.add(place.of(_CONFIG), "not a JSON object")
        return None
    report(problems, place.of(_CONFIG), _config_faults(config), "merge it with PEFT first")
    return config


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


def _sorted_out(
    tensors: Mapping[str, Stored],
) -> tuple[dict[str, _Pair], dict[str, Stored], list[str]]:
    """Give the adapter's tensors as pairs by module, and whole ones by the base's tensor name."""
    pairs: dict[str, _Pair] = {}
    whole: dict[str, Stored] = {}
    faults: list[str] = []
    for full_name, stored in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        match = _PAIR.fullmatch(name)
        # Embedding factors are bare parameters, all others are weights of a module.
        if match and bool(match["embedding"]) != bool(match["weight"]):
            known = pairs.get(match["module"], _Pair(None, None, bool(match["embedding"])))
            is_a = match["side"] == "A"
            pairs[match["module"]] = replace(known, a=stored) if is_a else replace(known, b=stored)
        elif ".lora_" in name:
            faults.append(f"tensor '{full_name}' is of a LoRA variant that is not supported")
        else:
            whole[_WRAPPER.sub("", name)] = stored
    return pairs, whole, faults


def _whole_fault(name: str, stored: Stored, base: Weights) -> str | None:
    target = base.tensors.get(name)
    if target is None:
        return f"the base has no tensor '{name}' to replace with the adapter's"
    if target.shape != stored.shape:
        return f"'{name}' has shape {list(stored.shape)}, in the base {list(target.shape)}"
    return None


def _updates(
    pairs: Mapping[str, _Pair], scaling: Scaling, fan_in_fan_out: bool, base: Weights
) -> tuple[dict[str, LowRank], list[str]]:
    updates: dict[str, LowRank] = {}
    faults: list[str] = []
    for module, pair in pairs.items():
        name = f"{module}.weight"
        found = _update(module, pair, scaling, fan_in_fan_out, base.tensors.get(name))
        if isinstance(found, str):
            faults.append(found)
        else:
            updates[name] = found
    faults += _orientation_faults(updates, fan_in_fan_out)
    faults += [
        f"'{alias}' and '{name}' are tied and both have an update"
        for alias, name in base.aliases.items()
        if alias in updates and name in updates
    ]
    return _with_tied(updates, base.aliases), faults


def _update(
    module: str, pair: _Pair, scaling: Scaling, fan_in_fan_out: bool, target: Stored | None
) -> LowRank | str:
    """Give the update of one module's weight, or what is wrong with it."""
    if target is None:
        return f"the base has no tensor '{module}.weight' for the adapter's module '{module}'"
    if pair.a is None or pair.b is None:
        return f"module '{module}' has only one of lora_A and lora_B"
    shapes = (pair.a.shape, pair.b.shape, target.shape)
    shown = f"'{module}': shapes A {list(shapes[0])}, B {list(shapes[1])}, W {list(shapes[2])}"
    if any(len(shape) != _MATRIX for shape in shapes):
        return f"{shown}: only updates of matrices are supported"
    rank, (out, inner) = scaling.rank_of(module), (pair.b.shape[0], pair.a.shape[1])
    if (pair.a.shape[0], pair.b.shape[1]) != (rank, rank):
        return f"{shown} do not have the rank {rank} of {_CONFIG}"
    if target.shape not in {(out, inner), (inner, out)}:
        return f"{shown} do not fit together"
    # A square matrix fits both ways; then only the config knows.
    square = fan_in_fan_out if out == inner else target.shape == (inner, out)
    return LowRank(pair.a, pair.b, scaling.scale_of(module), pair.is_embedding or square)


def _orientation_faults(updates: Mapping[str, LowRank], fan_in_fan_out: bool) -> list[str]:
    """Square matrices whose orientation is unknown, as others contradict `fan_in_fan_out`."""
    linear = {name: low for name, low in updates.items() if ".lora_A" in low.a.name}
    square = [name for name, low in linear.items() if low.a.shape[1] == low.b.shape[0]]
    contradicted = any(
        low.transposed != fan_in_fan_out for name, low in linear.items() if name not in square
    )
    what = f"fan_in_fan_out is {str(fan_in_fan_out).lower()}, which other modules contradict"
    return [f"'{square[0]}': {what}"] if square and contradicted else []


def _with_tied(updates: dict[str, LowRank], aliases: Mapping[str, str]) -> dict[str, LowRank]:
    """Extend `updates` to the other names of tensors that share one storage."""
    tied = {**{name: alias for alias, name in aliases.items()}, **aliases}
    extra = {tied[name]: update for name, update in updates.items() if name in tied}
    return {**extra, **updates}


def _replaced(base: Weights, whole: Mapping[str, Stored]) -> Weights:
    tensors = {
        name: replace(whole[name], name=name) if name in whole else stored
        for name, stored in base.tensors.items()
    }
    aliases = {
        alias: name
        for alias, name in base.aliases.items()
        if alias not in whole and name not in whole
    }
    return Weights(tensors, aliases)
