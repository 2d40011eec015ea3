"""How a tokenizer cuts numbers, which decides what arithmetic a model has learned.

Models that were given another way of cutting by a transplant lose most of their arithmetic, even
where everything else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["DigitPolicy", "PolicyKind", "digit_policy", "numeral_warning"]

PolicyKind: TypeAlias = Literal["single", "group3_ltr", "group3_rtl", "bounded_n", "unbounded"]

_LONGEST = 12
_SAMPLE = "1234567"
# Runs of digits that vocabularies have, and that they do not.
_DIGITS = ("314159265358", "200020192024", "111111111111", "907060504030")
_CONTEXTS = ("{}", "is {}", "x{}", "{}.5", "{},000")

Groups: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DigitPolicy:
    """`most` digits are in one token; `groups` are the digits of each token of `1234567`.

    `single`: every digit is a token. `group3_ltr`, `group3_rtl`: threes from the left or right.
    `bounded_n`: never across every `most`-th digit from one end. `unbounded`: wherever the
    vocabulary has tokens. `varies` says that it is otherwise after a space or a letter, or
    beside a point or comma.
    """

    kind: PolicyKind
    most: int
    groups: Groups
    varies: bool

    def __str__(self) -> str:
        """Say it in words."""
        words = _WORDS[self.kind].format(self.most)
        return f"{words}, otherwise beside other characters" if self.varies else words


_WORDS: Mapping[PolicyKind, str] = MappingProxyType(
    {
        "single": "single digits",
        "group3_ltr": "threes from the left",
        "group3_rtl": "threes from the right",
        "bounded_n": "up to {} digits",
        "unbounded": "what its vocabulary has",
    }
)


def digit_policy(tokenizer: Tokenizer) -> DigitPolicy:
    """Find how runs of 1 to 12 digits are cut: alone, and beside other characters."""
    found = [_kind(_cuts(tokenizer, context)) for context in _CONTEXTS]
    kind, most = found[0]
    varies = any(other != kind for other, _ in found[1:])
    (groups,) = _cuts(tokenizer, "{}", [_SAMPLE])
    return DigitPolicy(kind, most, groups, varies)


def numeral_warning(
    base: DigitPolicy, donor: DigitPolicy, labels: tuple[str, str] = ("the base", "the donor")
) -> str | None:
    """Warn where two policies differ; None where they do not."""
    if (base.kind, base.most) == (donor.kind, donor.most):
        return None
    return (
        f"NUMERAL_MISMATCH: {labels[0]} cuts numbers into {base}, {labels[1]} into {donor}; "
        "arithmetic that a model has learned does not survive a transplant between them"
    )


def _cuts(tokenizer: Tokenizer, context: str, runs: Sequence[str] | None = None) -> list[Groups]:
    """Give how many digits of each run are in each token."""
    runs = runs or [run[:size] for run in _DIGITS for size in range(1, _LONGEST + 1)]
    start = context.index("{")
    encodings = tokenizer.encode_batch([context.format(r) for r in runs], add_special_tokens=False)
    return [
        _inside(encoding.offsets, start, start + len(run))
        for run, encoding in zip(runs, encodings, strict=True)
    ]


def _inside(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> Groups:
    """Give how many characters from `start` to `stop` each token has; none counts twice."""
    found = []
    # From the end: a space put in front shares its place with the first digit.
    for first, last in reversed(offsets):
        size = min(last, stop) - max(first, start)
        if size > 0:
            found.append(size)
            stop = max(first, start)
    return tuple(reversed(found))


def _kind(cuts: Sequence[Groups]) -> tuple[PolicyKind, int]:
    most = max(max(groups, default=0) for groups in cuts)
    if most <= 1:
        return "single", most
    for kind, rule in _RULES.items():
        if all(groups == rule(sum(groups)) for groups in cuts):
            return kind, most
    # Text may be split before it is looked up: such cuts are there whatever the digits are.
    if any(all(_cuts_every(groups, most, end) for groups in cuts) for end in (1, -1)):
        return "bounded_n", most
    return "unbounded", most


def _threes(count: int) -> Groups:
    return (3,) * (count // 3) + ((count % 3,) if count % 3 else ())


_RULES: Mapping[PolicyKind, Callable[[int], Groups]] = MappingProxyType(
    {"group3_ltr": _threes, "group3_rtl": lambda count: _threes(count)[::-1]}
)


def _cuts_every(groups: Groups, size: int, end: int) -> bool:
    """Tell whether there is a cut after every `size` digits, from the left (1) or right (-1)."""
    at, places = 0, {0}
    for group in groups[::end]:
        at += group
        places.add(at)
    return all(place in places for place in range(0, at, size))
