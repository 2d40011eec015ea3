"""How a text that is longer than a model's limit is seen."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["spans"]


def spans(count: int, room: int, stride: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Windows over `count` tokens: from where each sees, from where it scores, and its end.

    Every token is scored once. The first window scores `room` tokens, and each later one `stride`
    of the `room` that it sees: all of them where no stride is given, and fewer in the last one,
    which is completed to the left.

    >>> list(spans(5, room=3))
    [(0, 0, 3), (2, 3, 5)]
    >>> list(spans(6, room=4, stride=1))
    [(0, 0, 4), (1, 4, 5), (2, 5, 6)]
    """
    start, end = 0, min(room, count)
    while start < count:
        yield max(0, end - room), start, end
        start, end = end, min(end + min(stride or room, room), count)
