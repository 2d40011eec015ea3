"""Plan -> sink: read, merge and write tensors, several at a time, in bounded memory."""

from mergepipe.execute.budget import Budget, default_memory, default_threads, share_out
from mergepipe.execute.run import execute
from mergepipe.execute.sink import Progress, Sink

__all__ = [
    "Budget",
    "Progress",
    "Sink",
    "default_memory",
    "default_threads",
    "execute",
    "share_out",
]
