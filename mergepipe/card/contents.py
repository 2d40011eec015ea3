"""All that a card tells of a result, read from its folder alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.card.licences import MISSING
from mergepipe.checkpoint.files import Place
from mergepipe.checkpoint.folder import read_file
from mergepipe.digest import digest_of
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Scores, read_results
from mergepipe.manifest import MANIFEST_FILE, RESULTS_FILE, RUN_FILE, Manifest, read_manifest

__all__ = ["Contents", "Input", "Used", "read_contents"]

_FAULTS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_MOST_WARNINGS = 20
_TASKS = (
    (r"ForCausalLM$|LMHeadModel$", "text-generation"),
    (r"ForMaskedLM$", "fill-mask"),
    (r"ForSequenceClassification$", "text-classification"),
    (r"ForTokenClassification$", "token-classification"),
    (r"ForQuestionAnswering$", "question-answering"),
    (r"ForImageTextToText$|VLForConditionalGeneration$", "image-text-to-text"),
)


@dataclass(frozen=True, slots=True)
class Input:
    """A model that went in. `said` is what its folder and its adapter's say of themselves."""

    label: str
    hub: str | None
    commit: str | None
    name: str  # of the folder or file, where it is not on the hub
    adapter: str
    said: tuple[Mapping[str, Any], ...]

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of the model, and of its adapter if it has one."""
        return tuple(str(one.get("license", MISSING)) for one in self.said)


@dataclass(frozen=True, slots=True)
class Used:
    """A method, a post-step or a transplant that the recipe names."""

    kind: str  # `method`, `post-step`, `transplant`
    name: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a card is made of."""

    name: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: tuple[Input, ...]
    used: tuple[Used, ...]
    base: str | None
    scores: Scores
    result: str  # the label of the result among the scores
    parameters: int
    bytes: int
    task: str
    library: str
    has_chat_template: bool
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> Any:
        """The recipe, as the manifest has it."""
        return self.manifest["recipe"]


def read_contents(folder: Path) -> Contents:
    """Read what a card tells of the result in `folder`.

    Raises
    ------
    InputError
        if there is no manifest, it was edited, or results.jsonl is not what it says.

    """
    manifest = read_manifest(folder)
    if not manifest.is_sealed:
        what = "was edited or damaged after it was written"
        raise InputError(Problem(str(folder / MANIFEST_FILE), what, "merge again"))
    try:
        return _contents(folder, manifest)
    except _FAULTS as error:
        what = f"not a manifest that a card can be made of: {error or type(error).__name__}"
        raise InputError(Problem(str(folder / MANIFEST_FILE), what)) from error


def _contents(folder: Path, manifest: Manifest) -> Contents:
    content, config = manifest.content, _object(folder / "config.json")
    inputs = tuple(_input(label, one) for label, one in content["inputs"].items())
    last = list(content["stages"])[-1]
    is_encoder = (folder / "modules.json").is_file()
    return Contents(
        name=folder.resolve().name,
        manifest=content,
        config=config,
        inputs=inputs,
        used=tuple(dict.fromkeys(_used(content))),
        base=_base(content["recipe"], last, [one.label for one in inputs]),
        scores=_scores(folder, manifest),
        result="merged" if last == "merge" else last,
        parameters=_parameters(folder, manifest),
        bytes=sum(part.size for part in manifest.shards.values()),
        task="sentence-similarity" if is_encoder else _task(config, inputs),
        library="sentence-transformers" if is_encoder else "transformers" if config else "",
        has_chat_template=_has_template(folder),
        warnings=_warnings(folder, content),
    )


def _input(label: str, one: Mapping[str, Any]) -> Input:
    source, adapter = one["source"], one.get("adapter")
    return Input(
        label=label,
        hub=source.get("hub"),
        commit=source.get("commit"),
        name=str(source.get("folder") or source.get("file") or ""),
        adapter="" if adapter is None else _place(adapter["source"]),
        said=(one,) if adapter is None else (one, adapter),
    )


def _place(source: Mapping[str, Any]) -> str:
    return str(source.get("hub") or source.get("folder"))


def _used(content: Mapping[str, Any]) -> Iterator[Used]:
    """Give what the recipe names, in its order; where it is none of ours, what the stages did."""
    recipe = content["recipe"]
    if "mergepipe" not in recipe:
        yield from (Used("method", str(one["method"])) for one in content["stages"].values())
        return
    for name in ("merge", "transplant", "stages"):
        yield from _named(recipe.get(name), name)


def _named(data: Any, inside: str) -> Iterator[Used]:
    if isinstance(data, list):
        for one in data:
            yield from _named(one, inside)
    if not isinstance(data, dict):
        return
    if isinstance(data.get("method"), str):
        yield Used("transplant" if inside == "transplant" else "method", data["method"])
    for step in data.get("then") or ():
        yield Used("post-step", step if isinstance(step, str) else str(next(iter(step))))
    for name, inner in data.items():
        if name != "then":
            yield from _named(inner, name)


def _base(recipe: Any, stage: str, labels: list[str]) -> str | None:
    """Give the label that the others are compared with: the result's base, or the first model."""
    merge = recipe.get("merge") or (recipe.get("stages") or {}).get(stage, {}).get("merge") or {}
    base = merge.get("base") if isinstance(merge, dict) else None
    return base if base in labels else labels[0] if labels else None


def _scores(folder: Path, manifest: Manifest) -> Scores:
    file = folder / RESULTS_FILE
    if not file.is_file():
        return Scores(())
    raw = file.read_bytes()
    if manifest.results is not None and digest_of(raw) != manifest.results.digest:
        what = "not what was written: the manifest has another digest"
        raise InputError(Problem(str(file), what, "run the evaluation again"))
    return read_results(raw.decode())


def _parameters(folder: Path, manifest: Manifest) -> int:
    problems, total = Problems(), 0
    for shard in manifest.shards:
        weights = read_file(Place(shard, folder, ""), shard, problems)
        problems.raise_any()
        total += sum(one.numel for one in weights.tensors.values()) if weights else 0
    return total


def _task(config: Mapping[str, Any], inputs: tuple[Input, ...]) -> str:
    named = config.get("architectures") or [""]
    for pattern, task in _TASKS:
        if re.search(pattern, str(named[0])):
            return task
    said = {str(one.get("pipeline_tag", "")) for each in inputs for one in each.said[:1]}
    return said.pop() if len(said) == 1 else ""


def _has_template(folder: Path) -> bool:
    files = [folder / "chat_template.jinja", folder / "chat_template.json"]
    return any(file.is_file() for file in files) or bool(
        _object(folder / "tokenizer_config.json").get("chat_template")
    )


def _warnings(folder: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    said = _object(folder / RUN_FILE).get("warnings")
    found = [str(one) for one in said] if isinstance(said, list) else []
    found += [
        f"{tensor}: {note}"
        for stage in content["stages"].values()
        for tensor, note in stage.get("notes", {}).items()
    ]
    more = len(found) - _MOST_WARNINGS
    return (*found[:_MOST_WARNINGS], *([f"and {more:,} more"] if more > 0 else []))


def _object(file: Path) -> Mapping[str, Any]:
    """Read a JSON object; {} if there is no such file, or it holds something else."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
