"""A result made again from its manifest, to see whether its bytes are the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergepipe.digest import digest_file
from mergepipe.errors import DifferenceError, InputError, Problem, Problems
from mergepipe.evaluate import Scores, refuse_unallowed
from mergepipe.execute import Resources
from mergepipe.manifest import MANIFEST_FILE, RUN_FILE, read_manifest
from mergepipe.pipeline.dependencies import library_versions
from mergepipe.pipeline.finding import Search, check_inputs, check_transplants, placed
from mergepipe.pipeline.kinds import prepare
from mergepipe.pipeline.merging import Outcome, Report, Tell, merge
from mergepipe.pipeline.preparing import Prepared
from mergepipe.pipeline.transplanting import REPORT_FILE
from mergepipe.report.gathering import recorded_folders
from mergepipe.verify import verify
from mergepipe.write import check_target, disk_faults

__all__ = ["Again", "Reproduced", "ScorePair", "Version", "reproduce"]

_FAULTS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_SAME_TO = 1e-6  # of a score, relative: sums over threads are rounded in other places


@dataclass(frozen=True, slots=True)
class Version:
    """Something whose version is not the one that was recorded."""

    name: str
    recorded: str
    here: str


@dataclass(frozen=True, slots=True)
class ScorePair:
    """A score that was recorded, and what it is now; None where it is missing or no number."""

    model: str
    name: str
    metric: str
    recorded: float | None
    here: float | None

    @property
    def is_same(self) -> bool:
        """Whether they agree to a millionth."""
        if self.recorded is None or self.here is None:
            return self.recorded is self.here
        return abs(self.recorded - self.here) <= _SAME_TO * max(1.0, abs(self.recorded))


@dataclass(frozen=True, slots=True)
class Reproduced:
    """How a result that was made again compares; `folder` is where it is, if it was kept."""

    tensors: int
    bytes: int
    differences: tuple[Problem, ...]
    versions: tuple[Version, ...]
    scores: tuple[ScorePair, ...]
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Again:
    """How to make it again: where inputs are, what may be used, whether to keep it and score it."""

    inputs: tuple[Path, ...] = ()
    models: Mapping[str, Path] | None = None
    plugins: tuple[Path, ...] = ()
    resources: Resources | None = None
    out: Path | None = None
    allowed: frozenset[str] = frozenset()
    score: Callable[[Prepared, Outcome], Scores] | None = None
    report: Report | None = None
    tell: Tell | None = None


def reproduce(folder: Path, how: Again) -> Reproduced:
    """Make the result in `folder` again, and compare every tensor and file.

    Raises
    ------
    InputError
        if there is no manifest, an input is not found or not what it was, or a plugin is missing.
    DifferenceError
        if the files in `folder` are not what its manifest says.
    EnvironmentFault
        from the disk, the network, or memory.

    """
    tell = how.tell or _silent
    if how.out is not None:
        check_target(how.out, overwrite=False)
    tell(f"{folder}: verifying")
    asked = None if how.resources is None else how.resources.threads
    found = verify(folder, threads=asked or os.cpu_count() or 1)
    if found.differences:
        raise DifferenceError(*found.differences)
    content = read_manifest(folder).content
    plugins = used_plugins(content, how.plugins)
    with _scratch(folder) as scratch:
        prepared = _prepared(folder, content, how, plugins, scratch)
        _check(prepared, content, tell)
        outcome = merge(prepared, sync=how.out is not None, report=how.report, tell=how.tell)
        made = read_manifest(outcome.folder).content
        scores = how.score(prepared, outcome) if how.score is not None else None
        return Reproduced(
            tensors=len(made["output"]["tensors"]),
            bytes=sum(int(one["size"]) for one in made["output"]["shards"].values()),
            differences=tuple(_differences(content["output"], made["output"])),
            versions=tuple(_versions(content)),
            scores=() if scores is None else tuple(_pairs(content, scores)),
            folder=how.out,
        )


def _silent(_: str) -> None:
    """Tell nobody."""


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder on the disk that the result is on, where that can be written."""
    parent = folder.resolve().parent
    beside = parent if os.access(parent, os.W_OK) else None
    with disk_faults(parent):
        scratch = Path(tempfile.mkdtemp(prefix=".mergepipe-", dir=beside))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def used_plugins(content: Mapping[str, Any], files: Sequence[Path]) -> tuple[Path, ...]:
    """Give the plugins that a manifest says were used, each the same file; none is run here.

    Raises
    ------
    InputError
        if one is not among the files, or another one.

    """
    problems, by_name = Problems(), {file.name: file for file in files}
    for name, digest in content.get("plugins", {}).items():
        file = by_name.get(name)
        if file is None or not file.is_file():
            problems.add(name, "the plugin that was used is needed", f"--plugin {name}")
        elif f"blake3:{digest_file(file)}" != digest:
            problems.add(str(file), "the plugin is not the one that was used", "give that one")
    problems.raise_any()
    return tuple(files)


def _prepared(
    folder: Path, content: Mapping[str, Any], how: Again, plugins: tuple[Path, ...], scratch: Path
) -> Prepared:
    problems = Problems()
    search = Search(tuple(_roots(folder, how.inputs)), how.models or {}, scratch)
    try:
        data = placed(content, search, problems, scored=how.score is not None)
    except _FAULTS as error:
        what = f"holds no recipe that can be run: {error or type(error).__name__}"
        raise InputError(Problem(str(folder / MANIFEST_FILE), what)) from error
    problems.raise_any()
    recipe = scratch / MANIFEST_FILE  # so that messages name the file that the recipe is in
    recipe.write_text(json.dumps(data, indent=1), encoding="utf-8")
    prepared = prepare(
        recipe, out=how.out or scratch / "again", resources=how.resources, plugins=plugins
    )
    refuse_unallowed(prepared.evaluations if how.score is not None else (), how.allowed)
    return prepared


def _roots(folder: Path, inputs: Sequence[Path]) -> Iterator[Path]:
    """Give the folders that inputs may be in: those named, the recipe's, and beside the result."""
    missing = [one for one in inputs if not one.is_dir()]
    if missing:
        raise InputError(*(Problem("--inputs", f"no folder {one}") for one in missing))
    yield from (one.resolve() for one in inputs)
    try:
        said = recorded_folders(json.loads((folder / RUN_FILE).read_bytes()))
    except (OSError, *_FAULTS):
        said = []
    yield from ((folder / one).resolve() for one in said)
    yield folder.resolve().parent


def _check(prepared: Prepared, content: Mapping[str, Any], tell: Tell) -> None:
    """Refuse inputs that are not what was merged, before anything is made of them."""
    problems = Problems()
    tell("checking the inputs")
    check_inputs(prepared, content["inputs"], problems)
    check_transplants(prepared, content.get("transplants", {}), problems)
    problems.raise_any()


def _differences(recorded: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[Problem]:
    """Give what of a result differs: tensors, shards and files, by name."""
    for part, what in (("tensors", "tensor '{}'"), ("shards", "{}"), ("files", "{}")):
        was, here = recorded[part], made[part]
        # What a transplant did is also measured on the texts of evaluations, which are left out.
        for name in sorted((was.keys() | here.keys()) - {REPORT_FILE}):
            where = what.format(name)
            if name not in here:
                yield Problem(where, "is not made any more")
            elif name not in was:
                yield Problem(where, "is made, and was not before")
            elif was[name] != here[name]:
                yield Problem(where, "is not what it was")


def _versions(content: Mapping[str, Any]) -> Iterator[Version]:
    """Give what is of another version here."""
    recorded = {"mergepipe": content["mergepipe"], **content["libraries"]}
    here = {"mergepipe": version("mergepipe"), **library_versions()}
    for name in dict.fromkeys((*recorded, *here)):
        if recorded.get(name) != here.get(name):
            yield Version(name, str(recorded.get(name)), str(here.get(name)))


def _pairs(content: Mapping[str, Any], scores: Scores) -> Iterator[ScorePair]:
    """Give every score that was recorded, and what it is now."""
    here = {(one.model, one.evaluation, one.metric): one.value for one in scores.rows}
    for one in content.get("results", {}).get("scores", ()):
        key = (one["model"], one["name"], one["metric"])
        value = here.get(key)
        number = value if value is not None and value == value else None  # noqa: PLR0124 (NaN)
        yield ScorePair(*key, recorded=one["value"], here=number)
