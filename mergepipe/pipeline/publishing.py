"""A checkpoint published: checked once, then compared with every target, then sent to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergepipe.errors import InputError, Problem, printable
from mergepipe.publish import (
    Options,
    Parcel,
    Place,
    Published,
    look,
    open_target,
    pack,
    send,
)

__all__ = ["check_targets", "publish"]

_MOST_FILES = 10_000
_LARGE_BYTES = 50_000_000_000


def check_targets(targets: Sequence[str], options: Options) -> tuple[Place, ...]:
    """Give the places that targets name, without reaching them.

    Raises
    ------
    InputError, EnvironmentFault
        if one cannot be a place, needs what is not installed, or an option means nothing to any.

    """
    problems: list[Problem] = []
    places: list[Place] = []
    taken: set[str] = set()
    for text in targets:
        try:
            target, place = open_target(text, options)
        except InputError as error:
            problems.extend(error.problems)
            continue
        taken |= target.takes
        places.append(place)
    given = {"public": options.public, "branch": options.branch is not None, "pr": options.pr}
    if not problems:
        problems += [
            Problem(f"--{name}", "means nothing to the targets given", "it is for `hf:org/name`")
            for name, value in given.items()
            if value and name not in taken
        ]
    if problems:
        raise InputError(*problems)
    return tuple(places)


def publish(
    folder: Path,
    targets: Sequence[str],
    options: Options,
    *,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    threads: int = 1,
    strict: bool = False,
    allow_paths: bool = False,
    dry_run: bool = False,
) -> tuple[Published, ...]:
    """Put a checkpoint where each target says, and give what was sent there.

    Nothing is sent before the checkpoint is verified and all targets were looked at. `environment`
    are variables whose values may be secrets; `strict` refuses what is otherwise only said.

    Raises
    ------
    InputError
        if a target is wrong or holds something else, or a file may not be published.
    DifferenceError
        if the checkpoint is not what its manifest says.
    EnvironmentFault
        if a target cannot be reached, or lets nobody in.

    """
    if not targets:
        raise InputError(Problem("--to", "nowhere to publish", "give a target: a folder, hf:..."))
    places = check_targets(targets, options)
    tell(f"{folder}: verifying")
    parcel = pack(folder, environment, threads=threads, allow_paths=allow_paths)
    warnings = _warnings(parcel)
    if strict and warnings:
        raise InputError(*(Problem(str(folder), warning) for warning in warnings))
    for warning in warnings:
        tell(f"warning: {warning}")
    states = [look(place, parcel, options, tell) for place in places]
    done: list[Published] = []
    for target, place, state in zip(targets, places, states, strict=True):
        done.append(send(target, place, parcel, state, None if dry_run else tell))
        if not dry_run:
            tell(f"{done[-1].url}: {'published' if done[-1].sent else 'has all of it already'}")
    return tuple(done)


def _warnings(parcel: Parcel) -> tuple[str, ...]:
    found = [
        f"{printable(name)}: not published: it is on no list of a model's files"
        for name in parcel.left_out
    ]
    found += [
        f"{printable(item.name)}: larger than 50 GB, which many servers refuse; "
        "set a smaller output.max_shard_size"
        for item in parcel.items
        if item.size > _LARGE_BYTES
    ]
    if len(parcel.items) > _MOST_FILES:
        found.append(f"{len(parcel.items):,} files: servers grow slow above 10,000")
    return tuple(found)
