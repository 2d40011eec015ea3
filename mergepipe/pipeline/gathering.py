"""What lies in the folders of a run and of its search, read part by part for a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mergepipe.digest import digest_of
from mergepipe.errors import MergepipeError, Problems, printable
from mergepipe.evaluate import Scores, read_results
from mergepipe.manifest import MANIFEST_FILE, RESULTS_FILE, RUN_FILE, read_manifest
from mergepipe.moe import is_moe
from mergepipe.pipeline.locating import Measuring, measured
from mergepipe.pipeline.searching import TRIALS_FILE
from mergepipe.pipeline.transplanting import REPORT_FILE
from mergepipe.recipe import Document, Recipe, parse
from mergepipe.report.contents import Contents, Found, Maps, RunRecord, Stage
from mergepipe.report.gathering import (
    facts_of,
    inputs_of,
    notes_of,
    recipe_text,
    record_of,
    transplants_of,
    verdict_of,
    versions_of,
)
from mergepipe.report.paths import without_paths
from mergepipe.report.stages import stages_of
from mergepipe.search.outputs import read_trials
from mergepipe.search.space import untuned
from mergepipe.search.study import read_study

__all__ = ["TRIALS", "Gathered"]

T = TypeVar("T")
TRIALS = "trials.json"
_FAULTS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class Gathered:
    """What lies in the folders; `missing` grows by what cannot be read."""

    result: Path | None
    searched: Path | None
    how: Measuring
    missing: list[str] = field(default_factory=list)

    def contents(self) -> Contents:
        """Read everything."""
        found = None if self.searched is None else self._found(self.searched)
        if self.result is None:
            assert self.searched is not None, "one of the two is there"
            names = [] if found is None else [gene.name for gene in found.genes]
            identity = digest_of(json.dumps([self.searched.name, *names]).encode())
            contents = Contents(name=self.searched.name, identity=identity, found=found)
        else:
            contents = replace(self._made(self.result), found=found)
        return replace(contents, warnings=(*contents.warnings, *dict.fromkeys(self.missing)))

    def _made(self, folder: Path) -> Contents:
        """Give all that is known of a result."""
        read_manifest(folder)  # which says what is wrong with it
        manifest = _json(folder / MANIFEST_FILE)
        record, warnings = self._part(RUN_FILE, lambda: _record(folder / RUN_FILE)) or (None, [])
        roots = self._roots(folder, record)
        recipe = self._part("the recipe", lambda: self._recipe(manifest, roots))
        scores = self._scores(folder)
        labels = [] if scores is None else _labels(scores)
        base = None if recipe is None else recipe.merges[recipe.result].base
        config = self._part("config.json", lambda: _optional(folder / "config.json")) or {}
        maps, no_maps = self._maps(folder, manifest, recipe, roots)
        return Contents(
            name=folder.name,
            identity=_identity(manifest),
            facts=self._part(MANIFEST_FILE, lambda: list(facts_of(manifest, config))) or (),
            result=_result(recipe, labels, manifest),
            base=base if base in labels else next(iter(labels), None),
            scores=scores,
            inputs=self._part("the inputs", lambda: inputs_of(manifest, base)) or (),
            stages=self._stages(recipe, tuple(manifest["output"]["tensors"])),
            maps=maps,
            no_maps=no_maps,
            transplants=self._part(
                REPORT_FILE, lambda: transplants_of(_optional(folder / REPORT_FILE))
            )
            or (),
            warnings=[
                *(self._part("the notes", lambda: notes_of(manifest)) or ()),
                *warnings,
            ],
            record=record,
            recipe=self._part("the recipe", lambda: recipe_text(manifest["recipe"])) or "",
            again=_again(folder.name, manifest.get("plugins", {})),
            versions=self._part("the versions", lambda: versions_of(manifest)) or "",
        )

    def _part(self, name: str, read: Callable[[], T | None]) -> T | None:
        """Read one part; if it is damaged, the page says so and goes on without it."""
        try:
            return read()
        except MergepipeError as error:
            why = str(error)
        except _FAULTS as error:
            why = str(error) or type(error).__name__
        self.missing.append(f"{name} cannot be read: {printable(without_paths(why), 200)}")
        return None

    def _roots(self, folder: Path, record: RunRecord | None) -> list[Path]:
        """Give the folders that the recipe's relative paths may be relative to."""
        said = () if record is None else record.folders
        recorded = [(folder / one).resolve() for one in said]
        given = [] if self.how.inputs is None else [self.how.inputs]
        return [one for one in (*given, *recorded, folder.parent) if one.is_dir()]

    def _recipe(self, manifest: Mapping[str, Any], roots: Sequence[Path]) -> Recipe | None:
        """Read the recipe as if it lay where its paths lead somewhere; a mixture has none."""
        data, said = manifest["recipe"], ""
        if is_moe(data):
            return None
        for root in roots:
            problems = Problems()
            document = Document(root / "recipe.yaml", data, {(): (1, 1)})
            recipe = parse(untuned(document, problems), problems)
            if recipe is not None and recipe.merges and not problems.found:
                return recipe
            said = said or "; ".join(dict.fromkeys(one.what for one in problems.found[:2]))
        if said:
            options = " ".join(f"--plugin {name}" for name in manifest.get("plugins", {}))
            if options:  # first, as long texts are cut
                said = f"it was run with {options}, which can be given here too; without, {said}"
                raise ValueError(said)
            raise ValueError(f"{said} (if it needs files, give its folder by --inputs)")
        return None

    def _stages(self, recipe: Recipe | None, names: Sequence[str]) -> Sequence[Stage]:
        if recipe is None:
            return ()
        return self._part("the parameters", lambda: stages_of(recipe, names)) or ()

    def _maps(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        recipe: Recipe | None,
        roots: Sequence[Path],
    ) -> tuple[Maps | None, str]:
        if is_moe(manifest["recipe"]):
            return None, "A mixture of experts has no task vectors."
        if recipe is None:
            return None, "The recipe cannot be read here, so no task vectors were measured."
        return measured(folder, manifest, recipe, roots, self.how)

    def _scores(self, folder: Path) -> Scores | None:
        file = folder / RESULTS_FILE
        if not file.is_file():
            return None
        scores = self._part(RESULTS_FILE, lambda: read_results(file.read_text(encoding="utf-8")))
        if scores is None:
            return None
        failures = tuple(replace(x, reason=without_paths(x.reason)) for x in scores.failures)
        return replace(scores, failures=failures)

    def _found(self, folder: Path) -> Found | None:
        """Give a search: as it was written at its end, or its study as far as it is."""

        def read() -> Found:
            trials = folder / TRIALS
            if trials.is_file():
                genes, names, listed = read_trials(trials.read_text(encoding="utf-8"))
            else:
                genes, names, listed = read_study(folder / TRIALS_FILE)
            listed = tuple(replace(one, reason=without_paths(one.reason)) for one in listed)
            return Found(genes, names, listed, verdict_of(_optional(folder / "verdict.json")))

        return self._part("the search", read)


def _labels(scores: Scores) -> list[str]:
    """Give the models that were scored, or failed to be."""
    return [*(one.model for one in scores.rows), *(one.model for one in scores.failures)]


def _result(
    recipe: Recipe | None, labels: Sequence[str], manifest: Mapping[str, Any]
) -> str | None:
    """Give the name of the result among the scores: the recipe's, or what is no input."""
    name = "merged" if recipe is None or recipe.result == "merge" else recipe.result
    if name in labels:
        return name
    others = [one for one in dict.fromkeys(labels) if one not in manifest["inputs"]]
    return others[0] if len(others) == 1 else None


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _optional(file: Path) -> Any:
    return _json(file) if file.is_file() else None


def _record(file: Path) -> Any:
    return record_of(file.read_text(encoding="utf-8")) if file.is_file() else None


def _identity(manifest: Mapping[str, Any]) -> str:
    """Give what tells a result from others; it stays as it is when the result is scored again."""
    parts = [manifest["inputs"], manifest["output"], manifest["recipe"]]
    return digest_of(json.dumps(parts, sort_keys=True).encode())


def _again(name: str, plugins: Mapping[str, Any]) -> list[str]:
    shown = shlex.quote(printable(name, 200))
    options = "".join(f" --plugin {shlex.quote(printable(one, 200))}" for one in plugins)
    return [
        "# hold the files against the manifest",
        f"mergepipe verify {shown}",
        "# make it again from the manifest, and compare every byte",
        f"mergepipe reproduce {shown} --inputs FOLDER-OF-THE-MODELS{options}",
    ]
