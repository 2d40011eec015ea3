"""How scores are made and shown: the cache, progress, tables, JSON, and what failed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rich.text import Text

from mergepipe.cli.console import messages, results
from mergepipe.cli.progress import tell
from mergepipe.errors import EnvironmentFault, Problem, printable
from mergepipe.evaluate import (
    Difference,
    Evaluation,
    Scores,
    Settings,
    cache_file,
    differences,
    markdown,
    open_cache,
    page,
    refuse_unallowed,
    results_json,
    table,
)

__all__ = ["Shown", "opened", "progress", "show"]

Notice: TypeAlias = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Shown:
    """In what form: JSON in place of a table, standard errors, files for tables."""

    json: bool = False
    errors: bool = False
    markdown: Path | None = None
    html: Path | None = None


@contextmanager
def opened(
    evaluations: Sequence[Evaluation], allowed: frozenset[str], *, cached: bool
) -> Iterator[Settings]:
    """Check before any work that programs may be run, and open the cache if it is to be used."""
    refuse_unallowed(evaluations, allowed)
    settings = Settings(allowed=allowed, tell=tell)
    if not evaluations or not cached or not _may_write(cache_file()):
        yield settings
        return
    with open_cache(cache_file()) as cache:
        yield replace(settings, cache=cache)


def _may_write(file: Path) -> bool:
    """Tell whether there can be a cache; a place that the user named is not given up silently."""
    if "MERGEPIPE_CACHE" in os.environ:
        return True
    place = next(one for one in (file, *file.absolute().parents) if one.exists())
    if os.access(place, os.W_OK):
        return True
    tell(f"warning: {file}: cannot be written, so results are not kept")
    return False


@contextmanager
def progress(settings: Settings) -> Iterator[tuple[Notice, Settings]]:
    """Give what is told the model whose turn it is, and settings that tell how far it is."""
    if not messages.is_terminal:
        yield lambda _: None, replace(settings, progress=_Lines())
        return
    with messages.status("scoring") as status:

        def say(text: str) -> None:
            status.update(Text(f"scoring {printable(text)}"))

        def told(model: str, evaluation: str, done: int, total: int) -> None:
            say(f"{model}: {evaluation}, {done} of {total}")

        yield say, replace(settings, progress=told)


class _Lines:
    """Says every ten seconds how far the scoring is."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()

    def __call__(self, model: str, evaluation: str, done: int, total: int) -> None:
        if time.monotonic() - self.spoke >= _SECONDS_BETWEEN_LINES:
            self.spoke = time.monotonic()
            tell(f"scoring {model}: {evaluation}, {done} of {total}")


def show(
    scores: Scores,
    shown: Shown,
    *,
    reference: str | None = None,
    beside: Mapping[str, object] | None = None,
) -> None:
    """Print scores and write the files that are asked for; then say what failed.

    Models are compared with `reference`; `beside` is what else the JSON holds.

    Raises
    ------
    InputError, EnvironmentFault
        naming every evaluation that failed.

    """
    found = () if reference is None else differences(scores.rows, reference)
    if shown.json:
        plain = {**(beside or {}), **results_json(scores.rows, scores.failures, found)}
        print(json.dumps(plain, indent=2))  # noqa: T201
    elif scores.rows or scores.failures:
        results.print(table(scores.rows, found, scores.failures, errors=shown.errors))
    _write(scores, shown, found)
    error = scores.error()
    if error is not None:
        _print_tracebacks(one.traceback for one in scores.failures)
        raise error


def _write(scores: Scores, shown: Shown, found: Sequence[Difference]) -> None:
    texts = {}
    if shown.markdown is not None:
        texts[shown.markdown] = markdown(scores.rows, found, scores.failures, errors=shown.errors)
    if shown.html is not None:
        texts[shown.html] = page(scores.rows, found, scores.failures)
    for file, text in texts.items():
        _write_text(file, text)


def _write_text(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise EnvironmentFault(Problem(str(file), what)) from error


def _print_tracebacks(tracebacks: Iterable[str]) -> None:
    if os.environ.get("MERGEPIPE_DEBUG"):
        for text in tracebacks:
            messages.print(text, markup=False, highlight=False, soft_wrap=True)
