"""Recipes whose candidates are adapters that a server loads: the base's weights are not here."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import Checkpoint, ModelSource
from mergepipe.checkpoint.source import adapter_place
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Scores, Settings, score
from mergepipe.execute import Budget
from mergepipe.model import Model
from mergepipe.pipeline.addressed import (
    api_model_of,
    check_served,
    read_address,
    served_model,
)
from mergepipe.pipeline.preparing import Options, Prepared, find_evaluations, named_target, settled
from mergepipe.recipe import Document, parse
from mergepipe.recipe.adapter_server import (
    AdapterServerSpec,
    CompositionSpec,
    read_adapter_server,
    rest_of,
)
from mergepipe.search.adapter_server import AdapterServer, Tell, run_name
from mergepipe.search.compositions import BASE, Compositions
from mergepipe.search.space import untuned
from mergepipe.write import check_target

__all__ = [
    "absolute_server",
    "addressed_compositions",
    "check_served_recipe",
    "prepare_served",
    "score_composition",
    "server_session",
    "write_composition",
]


def check_served_recipe(document: Document, problems: Problems) -> None:
    """Find what can be said of such a recipe without its adapters and its server."""
    document = untuned(document, problems)
    if read_adapter_server(document, problems) is not None:
        parse(rest_of(document), problems)


def prepare_served(document: Document, problems: Problems, options: Options) -> Prepared:
    """Prepare a recipe for a server of adapters: there are no plans, and nothing is asked yet.

    Raises
    ------
    InputError
        with every fault of the recipe, its adapters, and the address if it may not be asked.
    EnvironmentFault
        if the package that asks servers is not installed.

    """
    problems.found.extend(document.faults)
    still = untuned(document, problems)
    spec = read_adapter_server(still, problems)
    recipe = parse(rest_of(still), problems)
    problems.raise_any()
    assert spec is not None, "a recipe without problems"
    assert recipe is not None, "a recipe without problems"
    check_served([spec.served], problems)
    evaluations = find_evaluations(recipe.evaluations, document.folder, problems)
    places = {
        label: adapter_place(_as_adapter(source), problems, local_only=options.local_files_only)
        for label, source in recipe.sources.items()
    }
    problems.raise_any()
    adapters = {label: place.folder for label, place in places.items() if place is not None}
    target = named_target(options.out or recipe.output.path)
    made = _compositions(spec, adapters, recipe.output.dtype, target or document.file)
    return Prepared(
        recipe=replace(recipe, compares=True),
        checkpoints={label: _elsewhere(label) for label in (BASE, *adapters)},
        plans=(),
        evaluations=evaluations,
        target=target,
        resources=settled(options.resources),
        budget=Budget(1, 0),
        warnings=tuple(problems.warnings),
        plugins=options.plugins,
        searched=None if recipe.search is None else document,
        compositions=made,
    )


def _compositions(
    spec: AdapterServerSpec, adapters: Mapping[str, Path], dtype: str | None, owner: Path
) -> Compositions:
    """Give the adapters and the server; names of candidates are of this machine and `owner`."""
    base: Any = served_model(spec.served, BASE)
    server = AdapterServer(base, spec.folder, spec.seen_as, _run_of(owner), spec.loaded)
    made = Compositions(adapters, server, spec.merge, dtype or "float32")
    if spec.merge.method == "lora_composition":
        made.pool()  # that they are alike
    return made


def addressed_compositions(
    address: str, adapters: Mapping[str, Path], folder: Path, seen_as: str | None, owner: Path
) -> Compositions:
    """Give adapters, and the server of api:URL#MODEL; `owner` is what is made of them.

    Raises
    ------
    InputError
        if the address is none, or the adapters cannot be composed with each other.

    """
    problems = Problems()
    asked = read_address(address, problems)
    problems.raise_any()
    assert asked is not None, "an address without problems"
    base: Any = api_model_of(asked, BASE)
    seen_as = seen_as or str(folder.resolve())
    server = AdapterServer(base, folder, seen_as, _run_of(owner))
    share = 1 / max(1, len(adapters))
    uniform = CompositionSpec("lora_composition", dict.fromkeys(adapters, share), {})
    made = Compositions(adapters, server, uniform)
    made.pool()
    return made


def _run_of(owner: Path) -> str:
    return run_name(f"{socket.gethostname()}:{owner.resolve()}")


def _as_adapter(source: ModelSource) -> ModelSource:
    """A model of such a recipe is an adapter; a base that it names beside is not looked at."""
    if source.adapter is not None or source.adapter_hub is not None:
        return source
    adapter, hub, revision = source.path, source.hub, source.revision
    return ModelSource(source.label, None, None, None, adapter, hub, revision)


def _elsewhere(label: str) -> Checkpoint:
    place = Path("server") / label
    return Checkpoint(label, place, {}, {}, {}, {}, ModelSource(label, place, None, None, None))


@contextmanager
def server_session(prepared: Prepared, tell: Tell | None = None) -> Iterator[None]:
    """Begin and end with no adapters of ours on the server, and see that it takes one.

    Raises
    ------
    InputError, EnvironmentFault
        if it does not, or does not answer.

    """
    made = prepared.compositions
    with nullcontext() if made is None else made.session(tell):
        yield


def absolute_server(prepared: Prepared, found: dict[str, Any]) -> None:
    """Make the paths of the section absolute; models are made so as in every recipe."""
    assert prepared.compositions is not None, "a recipe for a server of adapters"
    section, folder = found["adapter_server"], prepared.recipe.file.parent
    section["folder"] = str(prepared.compositions.server.folder.resolve())
    if section.get("tokenizer"):
        section["tokenizer"] = str((folder / section["tokenizer"]).resolve())


def write_composition(prepared: Prepared, *, overwrite: bool = False) -> Path:
    """Write the adapter that a recipe says, as PEFT has it; give its folder.

    Raises
    ------
    InputError, EnvironmentFault
        if there is no place for it, or the disk fails.

    """
    made, target = prepared.compositions, prepared.target
    assert made is not None, "a recipe for a server of adapters"
    if target is None:
        raise InputError(Problem("output.path", "no output folder", "set it, or give --out DIR"))
    check_target(target, overwrite=overwrite)
    made.write(made.merge, target, overwrite=overwrite)
    return target


def score_composition(
    prepared: Prepared, *, notice: Callable[[str], None], settings: Settings | None = None
) -> Scores:
    """Score the base, each adapter and their merge on the server; keep the merge if it has a place.

    Raises
    ------
    InputError, EnvironmentFault
        as `write_composition` and `server_session`.

    """
    if prepared.target is not None:
        notice(str(write_composition(prepared)))
    if not prepared.evaluations:
        return Scores(())
    with server_session(prepared):
        return score(_asked(prepared, notice), prepared.evaluations, settings)


def _asked(prepared: Prepared, notice: Callable[[str], None]) -> Iterator[Model]:
    made = prepared.compositions
    assert made is not None, "a recipe for a server of adapters"
    for label in prepared.checkpoints:
        notice(label)
        yield made.alone(label)
    notice("merged")
    yield made.model(made.merge, "merged")
