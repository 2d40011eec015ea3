"""A finished run, or a search, as one page: everything that lies beside it is read and laid out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergepipe.errors import InputError, Problem
from mergepipe.inspect import Reporter
from mergepipe.manifest import MANIFEST_FILE, PAGE_FILE, read_manifest
from mergepipe.pipeline.gathering import TRIALS, Gathered
from mergepipe.pipeline.locating import Measuring
from mergepipe.pipeline.reproducing import used_plugins
from mergepipe.pipeline.searching import TRIALS_FILE, search_folder
from mergepipe.plugins import load_plugins
from mergepipe.report.page import GENERATOR, IDENTITY, page
from mergepipe.write import disk_faults

__all__ = ["Reported", "report"]

_SEARCH = ".search"
_HEAD_BYTES = 4096  # of a page, in which it says whose it is


@dataclass(frozen=True, slots=True)
class Reported:
    """Where the page is, and what is missing from it."""

    file: Path
    missing: tuple[str, ...]


def report(
    run: Path,
    *,
    out: Path | None = None,
    inputs: Path | None = None,
    plugins: Sequence[Path] = (),
    threads: int | None = None,
    progress: Reporter | None = None,
) -> Reported:
    """Write a page about the output folder of a run, or about a search's folder.

    `inputs` is the folder of the recipe, or one that holds its models; `plugins` are those that it
    was run with. A page that is not of this run is not overwritten.

    Raises
    ------
    InputError
        if `run` is neither, what lies there cannot be read, `out` is somebody else's file, or a
        plugin is not the one that was used.
    EnvironmentFault
        if the page cannot be written.

    """
    result, searched = _folders(run)
    file = out or (result or run) / PAGE_FILE
    if plugins and result is not None:
        load_plugins(used_plugins(read_manifest(result).content, plugins))
    gathered = Gathered(result, searched, Measuring(inputs, threads, progress))
    contents = gathered.contents()
    _check_ours(file, contents.identity)
    _write(file, page(contents))
    return Reported(file, tuple(dict.fromkeys(gathered.missing)))


def _folders(run: Path) -> tuple[Path | None, Path | None]:
    """Give the folders of result and search, of which one was named."""
    if not run.is_dir():
        searched = search_folder(run)
        fix = f"did you mean {searched}?" if _is_search(searched) else "name the output of a run"
        raise InputError(Problem(str(run), "no such folder", fix))
    run = run.resolve()
    if (run / MANIFEST_FILE).is_file():
        searched = search_folder(run)
        return run, searched if _is_search(searched) else None
    if not _is_search(run):
        what = f"neither a result (with {MANIFEST_FILE}) nor a search (with {TRIALS_FILE})"
        raise InputError(Problem(str(run), what, "name what `mergepipe run` or `search` wrote"))
    result = run.with_name(run.name.removesuffix(_SEARCH))
    return result if (result / MANIFEST_FILE).is_file() else None, run


def _is_search(folder: Path) -> bool:
    return (folder / TRIALS).is_file() or (folder / TRIALS_FILE).is_file()


def _check_ours(file: Path, identity: str) -> None:
    """Refuse to replace a file that is not a report of this run."""
    if not file.exists() and not file.is_symlink():
        return
    fix = "choose another by --out, or remove it"
    if file.is_symlink() or not file.is_file():
        raise InputError(Problem(str(file), "is there and no file of ours", fix))
    with disk_faults(file), file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    found = dict(re.findall(r'<meta name="([\w-]+)" content="([^"]*)">', head))
    if found.get("generator") != GENERATOR:
        raise InputError(Problem(str(file), "is there and not a report", fix))
    if found.get(IDENTITY) != identity:
        raise InputError(Problem(str(file), "is the report of another run", fix))


def _write(file: Path, text: str) -> None:
    """Write a file in one step."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_faults(file):
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
