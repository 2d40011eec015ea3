"""What the plan does with the inputs as a whole: tensors left out, words that would be mixed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from mergepipe.checkpoint import Checkpoint, depth_of, embedding_name, layer_of
from mergepipe.errors import Problems
from mergepipe.plan.align import Alignment, head_name, is_buffer, place_of, shown_names
from mergepipe.plan.steps import Dropped, Step
from mergepipe.tokenizer import check_tokenizers

__all__ = ["account", "check_words"]

_NO_SUCH = "has no such tensor"
# What a model cannot do without, outside of its layers.
_ESSENTIAL = re.compile(r"(?:^|\.)(?:norm|ln_f|ln_final|final_norm|final_layer_?norm)\.weight$")


def account(
    donor: Checkpoint,
    models: Mapping[str, Alignment],
    steps: Iterable[Step],
    problems: Problems,
) -> tuple[Dropped, ...]:
    """Account for every input tensor that no step uses; warn of those that should be missed."""
    used = {(one.label, one.name) for step in steps for one in step.all_inputs}
    planned = {step.name for step in steps}
    dropped, told = [], []
    for label, model in models.items():
        back = {other: name for name, other in model.names.items()}
        for name in model.checkpoint.tensors:
            if (label, name) not in used:
                quiet = _as_it_should(model, name, is_planned=back.get(name) in planned)
                one = Dropped(label, name, quiet or _why_dropped(donor, name))
                dropped.append(one)
                told += [] if quiet else [one]
    _check_donor(donor, models, told, problems)
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in told:
        by_reason.setdefault((one.label, one.reason), []).append(one.name)
    for (label, reason), names in by_reason.items():
        what = f"{len(names)} tensors dropped: {reason}: {shown_names(names)}"
        problems.warn(place_of(models[label].checkpoint), what)
    return tuple(dropped)


def _as_it_should(model: Alignment, name: str, *, is_planned: bool) -> str | None:
    """Say why nothing is lost with a tensor that no step uses; None where something may be."""
    if name in model.copies:
        return f"tied to {model.copies[name]}"
    if is_planned:
        return "not used: another model's is taken, or the method does not read it"
    if is_buffer(name) or not model.checkpoint.tensors[name].is_float:
        return "buffer, not a parameter"
    return None


def _why_dropped(donor: Checkpoint, name: str) -> str:
    if ".lora_" in name or ".lora." in name:
        return "an adapter that was not merged into the weights"
    if name == head_name((name,)):
        return (
            f"{donor.label} ties its head to the embedding; to keep this one, `take` it "
            "and name this model in `output.config`"
        )
    return f"{donor.label} {_NO_SUCH}"


def _check_donor(
    donor: Checkpoint,
    models: Mapping[str, Alignment],
    dropped: Iterable[Dropped],
    problems: Problems,
) -> None:
    """Refuse a result that has not all that its layers need: the donor lost some of its tensors."""
    depth, kinds = depth_of(donor.config), {_kind(name)[0] for name in donor.tensors}
    lost: dict[str, None] = {}
    for one in dropped:
        kind, layer = _kind(one.name)
        if layer is None:
            embedding = embedding_name(models[one.label].checkpoint.tensors)
            is_lost = one.name == embedding or _ESSENTIAL.search(one.name) is not None
        else:
            is_lost = kind in kinds and depth is not None and layer < depth
        if is_lost and one.reason.endswith(_NO_SUCH) and one.name not in donor.tensors:
            lost[one.name] = None
    if lost:
        what = f"{len(lost)} tensors are missing that the others have: {shown_names(list(lost))}"
        fix = "fetch the model again: a result without them could not be loaded whole"
        problems.add(place_of(donor), what, fix)


def _kind(name: str) -> tuple[str, int | None]:
    """Give a tensor's name without the number of its layer, and that number."""
    layer = layer_of(name)
    if layer is None:
        return name, None
    stack, number = layer
    return f"{stack}.*.{name.removeprefix(f'{stack}.').partition('.')[2]}", number


def check_words(tokenizer: Checkpoint, steps: Iterable[Step], problems: Problems) -> None:
    """Hold the vocabularies of all whose rows of words enter the result against its tokenizer."""
    held = {step.name: step for step in steps}
    embedding = embedding_name({name: step.all_inputs[0].stored for name, step in held.items()})
    if embedding is None or tokenizer.is_bare:
        return
    words = [held[name] for name in dict.fromkeys((embedding, head_name(held) or embedding))]
    sources = {one.label: one.checkpoint for step in words for one in step.all_inputs}
    others = tuple(one for one in sources.values() if one is not tokenizer)
    for one in (tokenizer, *others):
        _check_settings(one, problems)
    rows = max(one.stored.shape[0] for one in held[embedding].all_inputs)
    check_tokenizers(tokenizer, others, rows, problems)


def _check_settings(model: Checkpoint, problems: Problems) -> None:
    """Find a broken tokenizer_config.json now rather than when the merge is written."""
    file = model.tokenizer_folder / "tokenizer_config.json"
    try:
        if file.is_file():
            json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        where = f"{place_of(model)}/{file.name}"
        problems.add(where, f"not valid JSON: {error}", "fetch the file again")
