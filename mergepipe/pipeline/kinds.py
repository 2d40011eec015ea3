"""What a file may be, and who prepares it: a merge, or one of the kinds without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergepipe.errors import Problems
from mergepipe.execute import Resources
from mergepipe.pipeline.adapter_serving import check_served_recipe, prepare_served
from mergepipe.pipeline.ensembles import check_ensemble, prepare_ensemble
from mergepipe.pipeline.mixing import check_moe, is_mixture, prepare_moe
from mergepipe.pipeline.preparing import (
    Options,
    Prepared,
    as_recipe,
    check_merge,
    prepare_merge,
    read_file,
)
from mergepipe.pipeline.remote import check_remote, prepare_remote
from mergepipe.plugins import load_plugins
from mergepipe.recipe import Document
from mergepipe.recipe.adapter_server import has_adapter_server
from mergepipe.recipe.ensembles import is_ensemble
from mergepipe.search.remote import is_remote

__all__ = ["check_file", "prepare", "prepare_document"]


@dataclass(frozen=True, slots=True)
class _Kind:
    prepare: Callable[[Document, Problems, Options], Prepared]
    check: Callable[[Document, Problems], object]  # what can be said without models


_MERGE = _Kind(prepare_merge, check_merge)
_OTHERS: tuple[tuple[Callable[[Document], bool], _Kind], ...] = (
    (is_mixture, _Kind(prepare_moe, check_moe)),
    (is_ensemble, _Kind(prepare_ensemble, check_ensemble)),
    (has_adapter_server, _Kind(prepare_served, check_served_recipe)),
    (is_remote, _Kind(prepare_remote, check_remote)),
)


def _kind(document: Document) -> _Kind:
    return next((kind for is_one, kind in _OTHERS if is_one(document)), _MERGE)


def prepare(
    file: Path,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resources: Resources | None = None,
    local_files_only: bool = False,
    plugins: Sequence[Path] = (),
    compat: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Read what a file says and the headers of its models, and plan everything.

    `settings` are `field=value` overrides, `plugins` files of merge methods, which are run, and
    `compat` sets the recipe's field of that name. No weight is read and nothing is written, but
    with `tell`, which is given messages, the gates of a mixture of experts are worked out, to
    warn of those that are nearly alike.

    Raises
    ------
    InputError
        with every fault of the recipe, configurations, indexes and headers at once.
    EnvironmentFault
        if the memory that may be used is not enough for one tensor.

    """
    problems = Problems()
    document, digests = _read(file, problems, settings, plugins, compat)
    options = Options(out, resources or Resources(), local_files_only, digests, tell)
    return prepare_document(document, problems, options)


def prepare_document(document: Document, problems: Problems, options: Options) -> Prepared:
    """Prepare a recipe that was read, whatever it is.

    Raises
    ------
    InputError, EnvironmentFault
        as `prepare`.

    """
    return _kind(document).prepare(document, problems, options)


def check_file(
    file: Path, problems: Problems, plugins: Sequence[Path] = (), compat: str | None = None
) -> None:
    """Find what can be said of a file without its models."""
    document, _digests = _read(file, problems, (), plugins, compat)
    _kind(document).check(document, problems)


def _read(
    file: Path,
    problems: Problems,
    settings: Sequence[str],
    plugins: Sequence[Path],
    compat: str | None,
) -> tuple[Document, Mapping[str, str]]:
    document = read_file(file, settings)
    if is_mixture(document):
        given = [name for name, value in (("plugin", plugins), ("compat", compat)) if value]
        problems.warnings.extend(
            f"{file.name}: --{x} has no effect on a mixture of experts" for x in given
        )
        return document, {}
    digests = load_plugins(plugins)
    return as_recipe(document, problems, compat=compat), digests
