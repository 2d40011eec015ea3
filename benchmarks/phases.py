"""Where the CPU's time of a merge goes: seconds of each phase, on one worker.

    python benchmarks/phases.py RECIPE [FIELD=VALUE ...]

Each phase is a function that workers call for a block; its time is the thread's own CPU time, the
kernel's included. What is left is Python between them, and threads that wait.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

START = time.process_time()

from mergepipe import trim  # noqa: E402
from mergepipe.execute import Resources, making, run, worker  # noqa: E402
from mergepipe.pipeline import merging, prepare  # noqa: E402

PHASES = {
    "read from the page cache": (worker, "read_into"),
    "look for NaN in inputs": (worker, "finite_row"),
    "digest inputs (XXH3)": (run, "hash_rows"),
    "sample": (trim, "magnitudes"),
    "collect about the bracket": (trim, "collect"),
    "place the rank": (trim, "within"),
    "choose the bracket": (trim, "bracket"),
    "merge, by the fused kernel": (making.Maker, "make"),
    "digest the output (blake3) and write it": (merging.FileSink, "write"),
}


def timed(
    call: Callable[..., object], phase: str, spent: dict[str, float]
) -> Callable[..., object]:
    def inner(*given: object, **named: object) -> object:
        before = time.thread_time()
        try:
            return call(*given, **named)
        finally:
            spent[phase] += time.thread_time() - before

    return inner


def main() -> None:
    recipe, *settings = sys.argv[1:]
    spent: dict[str, float] = defaultdict(float)
    for phase, (owner, name) in PHASES.items():
        setattr(owner, name, timed(getattr(owner, name), phase, spent))
    folder = Path(recipe).resolve().parent
    with tempfile.TemporaryDirectory(dir=folder, prefix="phases-") as scratch:
        for again in (False, True):  # the first time kernels are loaded
            out = Path(scratch) / f"out-{again}"
            prepared = prepare(
                Path(recipe), settings=settings, out=out, resources=Resources(threads=1)
            )
            if not again:
                print(f"| start, and read headers | {time.process_time() - START:.2f} s |")
            spent.clear()
            before = time.process_time()
            merging.merge(prepared, sync=False)
            whole = time.process_time() - before
    for phase, seconds in spent.items():
        print(f"| {phase} | {seconds:.2f} s |")
    print(f"| the rest | {whole - sum(spent.values()):.2f} s |")


if __name__ == "__main__":
    main()
