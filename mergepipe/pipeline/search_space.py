"""What a prepared recipe searches: its genes, every range of which makes recipes."""

from __future__ import annotations

from collections.abc import Iterator

from mergepipe.checkpoint import depth_of
from mergepipe.errors import Problems
from mergepipe.pipeline.preparing import Prepared
from mergepipe.recipe import Document, SearchSpec, parse
from mergepipe.recipe.adapter_server import has_adapter_server, read_adapter_server
from mergepipe.recipe.ensembles import is_ensemble, read_ensemble
from mergepipe.search.optimizer import batch_size, check_packages
from mergepipe.search.remote import local_form
from mergepipe.search.space import Choice, Gene, Space, Value, read_space

__all__ = ["batch_of", "planned_search", "searched_space"]


def planned_search(prepared: Prepared) -> tuple[tuple[Gene, ...], int] | None:
    """Give what a recipe searches, and the size of a batch; None if it searches nothing.

    Raises
    ------
    InputError
        if its ranges hold values that are none.
    EnvironmentFault
        if a package that searches need is not installed.

    """
    spec, document = prepared.recipe.search, prepared.searched
    if spec is None or document is None:
        return None
    check_packages()
    space, _ = searched_space(prepared, document)
    return space.genes, batch_of(spec, space)


def searched_space(prepared: Prepared, document: Document) -> tuple[Space, int | None]:
    """Give the space, checked: its bounds and choices must each make a recipe."""
    layers, problems = _layers(prepared), Problems()
    space = read_space(document, layers, problems)
    problems.raise_any()
    for values in _corners(space):
        found = Problems()
        filled = space.filled(values)
        if is_ensemble(filled):
            read_ensemble(filled, found)
        elif has_adapter_server(filled):
            read_adapter_server(filled, found)
        else:
            parse(local_form(filled), found)
        for one in found.found:
            problems.add(one.where, f"not all of the range can be used: {one.what}", one.fix)
    problems.raise_any()
    return space, layers


def batch_of(spec: SearchSpec, space: Space) -> int:
    """Give how many candidates are asked for before any is told."""
    return spec.fields.batch or batch_size(spec.fields.optimizer, len(space.genes))


def _layers(prepared: Prepared) -> int | None:
    if prepared.ensemble is not None or prepared.compositions is not None:
        return None
    if prepared.service is not None:
        return prepared.service.layers
    plan = prepared.plans[-1]
    return depth_of(plan.donor.config) if plan.layers is None else len(plan.layers)


def _corners(space: Space) -> Iterator[tuple[Value, ...]]:
    """Give all lows, all highs, and each choice of any place once."""
    most = max(len(one.values) if isinstance(one, Choice) else 2 for one in space.genes)
    for at in range(most):
        yield tuple(_corner(gene, at) for gene in space.genes)


def _corner(gene: Gene, at: int) -> Value:
    if isinstance(gene, Choice):
        return gene.values[at % len(gene.values)]
    value = gene.high if at % 2 else gene.low
    return round(value) if gene.is_int else value
