"""A Python program that nobody has read, run with limits; and whether it got to its end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Literal, TypeAlias

from mergepipe.errors import EnvironmentFault, Problem

__all__ = ["Isolation", "Limits", "Verdict", "check_isolation", "run_program"]

# "limits": of time, memory, file size; it can still read, write and send what its user can.
Isolation: TypeAlias = Literal["full", "limits"]

_CAGE = Path(__file__).parent / "confined.py"
_CANNOT = 97
_KEPT_BYTES = 64 << 10
_SHOWN = 200  # characters of its last line


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use: seconds on the clock, bytes of address space."""

    seconds: int = 10
    memory_bytes: int = 1 << 30
    isolation: Isolation = "full"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program reached its end, and why not: `timeout`, or the last line it wrote."""

    passed: bool
    reason: str = ""


def run_program(source: str, limits: Limits) -> Verdict:
    """Run a program in a fresh interpreter and an empty folder, without the environment.

    It has passed if it ends with status 0 after its last line: one that exits early has not.

    Raises
    ------
    EnvironmentFault
        if the system does not give the isolation that is asked for.

    """
    mark = secrets.token_hex(16)
    program = f"{source}\nprint('\\n{mark}', flush=True)\n"
    # What it writes goes to a file, which the limit of file sizes bounds.
    with TemporaryDirectory(prefix="mergepipe-") as folder, TemporaryFile() as out:
        status = _run(program, limits, Path(folder), out)
        said = _tail(out)
    if status == _CANNOT:
        fix = "use isolation: limits only for code that you would run yourself"
        raise EnvironmentFault(Problem("code", f"cannot be isolated here: {said}", fix))
    lines = [line for line in said.splitlines() if line.strip()]
    if status == 0 and lines[-1:] == [mark]:
        return Verdict(passed=True)
    last = next((line for line in reversed(lines) if line != mark), f"exit status {status}")
    return Verdict(passed=False, reason="timeout" if status is None else last[-_SHOWN:])


def _run(program: str, limits: Limits, folder: Path, out: IO[bytes]) -> int | None:
    """Give the exit status; None if it did not end in time."""
    process = subprocess.Popen(  # noqa: S603 (this interpreter, our script)
        [sys.executable, "-I", str(_CAGE), json.dumps(asdict(limits))],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    try:
        process.communicate(program.encode(errors="replace"), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # what is left of it and of its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def _tail(out: IO[bytes]) -> str:
    size = out.seek(0, os.SEEK_END)
    out.seek(max(0, size - _KEPT_BYTES))
    return out.read().decode(errors="replace")


@cache
def check_isolation(isolation: Isolation) -> None:
    """Find out once whether programs can be run with this isolation.

    Raises
    ------
    EnvironmentFault
        saying what is missing.

    """
    run_program("", Limits(isolation=isolation))
