"""What a target is, and the table of them.

A target is written `SCHEME:ADDRESS`, or as a folder. The file `mergepipe/publish/targets/SCHEME.py`
says what its scheme means; its first line says what it gives, and at its end stands::

    TARGET = Target("hf:org/name", open_place, takes=frozenset({"public"}))

What has no scheme is `folder.py`'s; `anything://` without a file of its own is `storage.py`'s.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mergepipe.errors import InputError, Problem, did_you_mean
from mergepipe.publish.item import Parcel

__all__ = ["Options", "Place", "State", "Target", "open_target", "target_names"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(.*)", re.DOTALL)
_NAMELESS = ("folder", "storage")  # files that no scheme is named after


@dataclass(frozen=True, slots=True)
class Options:
    """What else was said on where to publish; None where nothing was."""

    overwrite: bool = False
    public: bool = False
    branch: str | None = None
    pr: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What a place holds already, beside what shall go there."""

    is_new: bool
    same: frozenset[str]  # files that are there, byte for byte
    replaced: tuple[str, ...]  # files of these names with other bytes
    removed: tuple[str, ...]  # files of a model that is not this one
    visibility: str = ""  # `private`, `public`; empty where the place has no word for it
    notes: tuple[str, ...] = ()  # what to know before it is sent
    revision: str = ""


class Place(Protocol):
    """Somewhere a checkpoint can be put."""

    @property
    def shown(self) -> str:
        """Where it is, as people know it."""

    def look(self, parcel: Parcel) -> State:
        """Give what is there; nothing is changed."""

    def send(self, parcel: Parcel, state: State, tell: Callable[[str], None]) -> str:
        """Put there what is not there yet, and give where it can be found."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of place: how it is written, how one is opened, and which options it knows."""

    example: str
    open: Callable[[str, Options], Place]
    takes: frozenset[str] = frozenset()


def target_names() -> tuple[str, ...]:
    """Give the names of all kinds of targets, sorted, without importing any."""
    package = importlib.import_module("mergepipe.publish.targets")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def open_target(text: str, options: Options) -> tuple[Target, Place]:
    """Give the place that a target names; it is not reached yet.

    Raises
    ------
    InputError
        if there is no such kind, or the address cannot be one.
    EnvironmentFault
        if it needs what is not installed.

    """
    match = _SCHEME.fullmatch(text)
    scheme, address = match.groups() if match else ("folder", text)
    names = target_names()
    if match and scheme not in names and address.startswith("//"):
        scheme, address = "storage", text
    if scheme not in names or (match and scheme == "folder"):
        known = [name for name in names if name not in _NAMELESS]
        what = f"unknown kind of target '{scheme}:'{did_you_mean(scheme, known)}"
        raise InputError(Problem(text, what, "a folder is written ./NAME"))
    target: Target = importlib.import_module(f"mergepipe.publish.targets.{scheme}").TARGET
    return target, target.open(address, options)
