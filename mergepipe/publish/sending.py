"""A parcel to a place: what would change is said first, and nothing is replaced unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mergepipe.errors import InputError, Problem
from mergepipe.publish.item import Item, Parcel
from mergepipe.publish.target import Options, Place, State
from mergepipe.publish.words import counted, listed, size

__all__ = ["Published", "look", "send"]


@dataclass(frozen=True, slots=True)
class Published:
    """What was sent, or with `--dry-run` would be, and where it is; sizes are in bytes."""

    target: str
    url: str
    visibility: str
    sent: tuple[str, ...]
    there: tuple[str, ...]  # files that were there already
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    size: int


def look(place: Place, parcel: Parcel, options: Options, tell: Callable[[str], None]) -> State:
    """Give what a place holds, and say what would be done there.

    Raises
    ------
    InputError
        if something else is there, and `options` do not say that it may be replaced.
    EnvironmentFault
        if the place cannot be reached, or lets nobody in.

    """
    state = place.look(parcel)
    tell(_summary(place, parcel, state))
    for note in state.notes:
        tell(f"{place.shown}: {note}")
    would = _changes(state)
    if would and not options.overwrite:
        what = f"holds something else: {would}"
        raise InputError(Problem(place.shown, what, "choose another name, or add --overwrite"))
    if would:
        tell(f"{place.shown}: {would}")
    return state


def send(
    target: str, place: Place, parcel: Parcel, state: State, tell: Callable[[str], None] | None
) -> Published:
    """Send what is not there yet; with `tell` None give only what would be sent.

    Raises
    ------
    InputError
        if a file changed since it was verified.
    EnvironmentFault
        if the place cannot be reached, or lets nobody in.
    KeyboardInterrupt
        on Ctrl-C, saying how to go on.

    """
    missing = _missing(parcel, state)
    url = place.shown
    if tell is not None and (missing or state.removed):
        try:
            url = place.send(parcel, state, tell)
        except KeyboardInterrupt as error:
            said = f"{place.shown}: not whole yet; the same command sends what is missing"
            raise KeyboardInterrupt(said) from error
    return Published(
        target=target,
        url=url,
        visibility=state.visibility,
        sent=tuple(item.name for item in missing),
        there=tuple(sorted(state.same)),
        replaced=state.replaced,
        removed=state.removed,
        size=sum(item.size for item in missing),
    )


def _missing(parcel: Parcel, state: State) -> tuple[Item, ...]:
    return tuple(item for item in parcel.items if item.name not in state.same)


def _summary(place: Place, parcel: Parcel, state: State) -> str:
    missing = _missing(parcel, state)
    words = [state.visibility] if state.visibility else []
    words += ["new"] if state.is_new else []
    kind = f" ({', '.join(words)})" if words else ""
    there = f", {len(state.same)} there already" if state.same else ""
    total = size(sum(item.size for item in missing))
    return f"{place.shown}{kind}: {counted(len(missing))} to send, {total}{there}"


def _changes(state: State) -> str:
    """Give what would be lost there, in words."""
    parts = [
        f"{what}: {listed(names)}"
        for names, what in ((state.replaced, "replaced"), (state.removed, "removed"))
        if names
    ]
    return f"to be {'; '.join(parts)}" if parts else ""
