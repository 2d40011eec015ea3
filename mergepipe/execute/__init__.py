"""Plan -> sink: read, merge and write tensors, several at a time, in bounded memory."""

from mergepipe.execute.budget import (
    Budget,
    Resources,
    as_device,
    default_memory,
    default_threads,
    share_out,
)
from mergepipe.execute.run import Surveys, execute
from mergepipe.execute.sink import Progress, Sink

__all__ = [
    "Budget",
    "Progress",
    "Resources",
    "Sink",
    "Surveys",
    "as_device",
    "default_memory",
    "default_threads",
    "execute",
    "share_out",
]
