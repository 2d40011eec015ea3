"""A program of the user's: given bytes, heard within bounds, and ended with all it started."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from mergepipe.errors import InputError, Problem, printable

__all__ = ["ProgramError", "run"]

_MOST_BYTES = 64 << 20  # of its answer
_KEPT_BYTES = 4096  # of the end of its standard error
_SHOWN = 300  # characters of the last line there
_POLL_SECONDS = 0.1


class ProgramError(Exception):
    """A program that ended in another way than well."""


def run(command: Sequence[str], question: bytes, folder: Path, timeout: float) -> bytes:
    """Give what a program answers on its standard output.

    Raises
    ------
    InputError
        if it cannot be started.
    ProgramError
        if it has not ended after `timeout` seconds, says more than 64 MiB, or ends with another
        status than 0.

    """
    with TemporaryFile() as asked:  # a program need not read it
        asked.write(question)
        asked.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603 (the user has allowed it)
                command,
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(Problem(command[0], f"cannot be run: {error.strerror}")) from error
    with process:
        try:
            answer, complaint = _listen(process, timeout)
        finally:
            with suppress(ProcessLookupError):  # what is left of it and of its children
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise ProgramError(f"{_ending(process.returncode)}: {_last_line(complaint)}")
    return answer


def _listen(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    """Read until the program has ended; its children may live on and hold its output open."""
    assert process.stdout is not None, "it is piped"
    assert process.stderr is not None, "it is piped"
    deadline = time.monotonic() + timeout
    heard = {process.stdout: bytearray(), process.stderr: bytearray()}
    answer, complaint = heard.values()
    with selectors.DefaultSelector() as selector:
        for stream in heard:
            selector.register(stream, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            events = selector.select(0 if ended else _POLL_SECONDS) if selector.get_map() else []
            for key, _ in events:
                piece = os.read(key.fd, 1 << 16)
                heard[key.fileobj] += piece  # type: ignore[index]
                if not piece:
                    selector.unregister(key.fileobj)
            del complaint[:-_KEPT_BYTES]
            if len(answer) > _MOST_BYTES:
                raise ProgramError(f"it says more than {_MOST_BYTES:,} bytes")
            if ended and not events:
                return bytes(answer), bytes(complaint)
            if time.monotonic() > deadline:
                raise ProgramError(f"no end after {timeout:g} s")
            if not events and not selector.get_map():
                time.sleep(_POLL_SECONDS)


def _ending(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"


def _last_line(complaint: bytes) -> str:
    lines = [line for line in complaint.decode(errors="replace").splitlines() if line.strip()]
    return printable(lines[-1] if lines else "it said nothing", _SHOWN)
