"""Being asked to stop: Ctrl-C, `kill`, a terminal that goes away."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mergepipe.errors import printable

__all__ = ["stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DIED_OF = 128  # a shell's exit status for a signal is this and its number


@contextmanager
def stoppable() -> Iterator[None]:
    """Stop the block in good order at the first signal, the process at the second.

    Raises
    ------
    SystemExit
        with 130, 143 or 129, after what was kept is said.

    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(_DIED_OF + number)
        raise KeyboardInterrupt

    # A signal that is ignored stays so: `nohup`, or a job in the background.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    except KeyboardInterrupt as error:
        kept = f": {error}" if str(error) else ""
        print(printable(f"interrupted{kept}"), file=sys.stderr)  # noqa: T201
        sys.exit(_DIED_OF + (received or [signal.SIGINT])[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
