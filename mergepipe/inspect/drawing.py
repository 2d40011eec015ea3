"""Where heat maps go, and as what."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mergepipe.errors import InputError, Problem
from mergepipe.inspect.report import Report
from mergepipe.write import disk_faults

__all__ = ["draw", "plot_file"]


def plot_file(target: Path) -> Path:
    """Give the file to draw to: `target`, or `inspect.html` in it; its folder is made.

    Raises
    ------
    InputError
        if it is of another kind than HTML or PNG, or what draws it is not installed.
    EnvironmentFault
        if its folder cannot be made.

    """
    suffix = target.suffix.lower()
    if target.is_dir() or not suffix:
        target, suffix = target / "inspect.html", ".html"
    if suffix not in {".html", ".png"}:
        what = f"cannot draw '{target.suffix}'"
        raise InputError(Problem("--plot", what, "give FILE.html, FILE.png or a folder"))
    if suffix == ".png" and find_spec("matplotlib") is None:
        what = "a PNG is drawn by matplotlib, which is not installed"
        fix = 'pip install "mergepipe[plot]", or give FILE.html'
        raise InputError(Problem("--plot", what, fix))
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def draw(report: Report, file: Path) -> None:
    """Draw a report to a file, which is replaced if it exists.

    Raises
    ------
    EnvironmentFault
        if it cannot be written.

    """
    drawn = _png(report) if file.suffix.lower() == ".png" else _html(report)
    with disk_faults(file):
        file.write_bytes(drawn)


def _html(report: Report) -> bytes:
    from mergepipe.inspect.page import page

    return page(report).encode()


def _png(report: Report) -> bytes:
    from mergepipe.inspect.figure import figure

    return figure(report)
