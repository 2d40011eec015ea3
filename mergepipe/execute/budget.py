"""How many workers there are, and how much memory each may use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergepipe.errors import EnvironmentFault, InputError, Problem, printable
from mergepipe.plan import Plan, Step

if TYPE_CHECKING:
    import torch

__all__ = ["Budget", "Resources", "default_memory", "default_threads", "share_out"]

_MOST = 4 << 30
_FREE_SHARE = 4
_MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use: workers, bytes of buffers, where torch computes, how models are asked."""

    threads: int | None = None
    max_memory: int | None = None
    device: str | None = None  # None: fused kernels on the CPU
    score_dtype: str = "float32"  # of models while they are asked


@dataclass(frozen=True, slots=True)
class Budget:
    """Workers at the same time, and bytes of buffers that each may hold."""

    workers: int
    share: int


def as_device(name: str) -> torch.device:
    """Give the torch device of that name.

    Raises
    ------
    InputError
        if there is none here.

    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f"there is no device '{printable(name, 100)}' here: {str(error).splitlines()[0]}"
        raise InputError(Problem("--device", what, "leave it out to run on the CPU")) from error
    return device


def default_threads() -> int:
    """Give the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_memory() -> int:
    """Give a quarter of the memory that is free, at most 4 GiB."""
    return min(_MOST, _free_memory() // _FREE_SHARE)


def _free_memory() -> int:
    if _MEMORY_INFO.is_file():
        for line in _MEMORY_INFO.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages > 0 else _MOST * _FREE_SHARE


def share_out(plans: Iterable[Plan], threads: int | None, memory: int | None) -> Budget:
    """Divide the memory among workers, fewer than `threads` where their shares would not do.

    Raises
    ------
    EnvironmentFault
        if it is not enough for one worker; names the tensor that needs most.

    """
    limit = default_memory() if memory is None else memory
    neediest: Step = max((s for plan in plans for s in plan.steps), key=lambda s: s.working_bytes)
    workers = min(threads or default_threads(), limit // max(neediest.working_bytes, 1))
    if workers < 1:
        needed = -(-neediest.working_bytes >> 20)
        raise EnvironmentFault(
            Problem(
                printable(neediest.name, 200),
                f"needs {needed} MiB of memory, {limit >> 20} MiB are allowed",
                f"give --max-memory {needed}MiB or more",
            )
        )
    return Budget(workers, limit // workers)
