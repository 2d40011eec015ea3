"""Small skills of text, each an endless source of (prompt, label) pairs.

`SKILLS` are what the adapters of the pool are trained on, `TARGETS` what no adapter was. One pair
in five is held out by its hash and never trained on; `texts` are passages of real files.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

Pair: TypeAlias = "tuple[str, str]"
Draw: TypeAlias = "Callable[[random.Random], Pair]"

_HELD_OUT = 5  # one pair in so many
_WORDS = (
    "stone",
    "river",
    "house",
    "bread",
    "light",
    "water",
    "garden",
    "winter",
    "summer",
    "letter",
    "table",
    "window",
    "silver",
    "golden",
    "forest",
    "mountain",
    "market",
    "morning",
    "evening",
    "candle",
    "mirror",
    "bridge",
    "island",
    "harbour",
    "castle",
    "village",
    "engine",
    "paper",
    "pencil",
    "button",
    "pocket",
    "basket",
    "bottle",
    "hammer",
    "ladder",
    "lantern",
    "feather",
    "thunder",
    "shadow",
    "copper",
    "cotton",
    "leather",
    "marble",
    "pepper",
    "butter",
    "orange",
    "lemon",
    "cherry",
    "walnut",
    "spider",
    "rabbit",
    "falcon",
    "salmon",
    "turtle",
    "badger",
    "donkey",
    "monkey",
    "planet",
    "comet",
    "rocket",
    "signal",
    "number",
    "circle",
    "square",
    "doctor",
    "farmer",
    "sailor",
    "singer",
    "writer",
    "painter",
    "baker",
    "hunter",
    "driver",
    "master",
    "captain",
)
_UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS = ("_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ROMAN = ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _spelled(n: int) -> str:
    if n < len(_UNITS):
        return _UNITS[n]
    return _TENS[n // 10] + (f"-{_UNITS[n % 10]}" if n % 10 else "")


def _roman(n: int) -> str:
    out = ""
    for value, letters in _ROMAN:
        while n >= value:
            out, n = out + letters, n - value
    return out


def _two(draw: random.Random) -> tuple[int, int]:
    """Operands as in the quickstart's sums: one has one digit."""
    a, b = draw.randrange(10, 90), draw.randrange(1, 10)
    return a, b


def _about_word(form: str, answer: Callable[[str], str]) -> Draw:
    def pair(draw: random.Random) -> Pair:
        word = draw.choice(_WORDS)
        return form.format(word), f"{answer(word)}\n"

    return pair


def _about_number(form: str, answer: Callable[[int], object], most: int = 89) -> Draw:
    def pair(draw: random.Random) -> Pair:
        number = draw.randrange(1, most + 1)
        return form.format(number), f"{answer(number)}\n"

    return pair


def _about_two(form: str, answer: Callable[[int, int], object]) -> Draw:
    def pair(draw: random.Random) -> Pair:
        a, b = _two(draw)
        return form.format(a, b), f"{answer(a, b)}\n"

    return pair


def _about_list(form: str, answer: Callable[[list[int]], object]) -> Draw:
    def pair(draw: random.Random) -> Pair:
        numbers = draw.sample(range(10), 4)
        return form.format(" ".join(map(str, numbers))), f"{answer(numbers)}\n"

    return pair


def _series(draw: random.Random) -> Pair:
    start, step = draw.randrange(1, 60), draw.randrange(1, 6)
    said = [str(start + step * i) for i in range(6)]
    return f"{', '.join(said[:3])}, ", f"{', '.join(said[3:])}\n"


def _object(draw: random.Random) -> Pair:
    word, number = draw.choice(_WORDS), draw.randrange(10, 90)
    return f"json {word} {number}: ", f'{{"{word}": {number}}}\n'


def _next_day(draw: random.Random) -> Pair:
    day, ahead = draw.randrange(7), draw.randrange(1, 7)
    return f"{ahead} days after {_DAYS[day]}: ", f"{_DAYS[(day + ahead) % 7]}\n"


SKILLS: Mapping[str, Draw] = MappingProxyType(
    {
        "sum": _about_two("{}+{}=", lambda a, b: a + b),
        "difference": _about_two("{}-{}=", lambda a, b: a - b),
        "product": _about_two("{}*{}=", lambda a, b: a * b),
        "compare": _about_two("{} and {}0: the larger is ", lambda a, b: max(a, 10 * b)),
        "parity": _about_number("{} is ", lambda n: "odd" if n % 2 else "even"),
        "successor": _about_number("after {} comes ", lambda n: n + 1),
        "series": _series,
        "roman": _about_number("roman {}: ", _roman),
        "spelled": _about_number("{} in words: ", _spelled),
        "binary": _about_number("binary {}: ", lambda n: f"{n:b}"),
        "sorted": _about_list("sort {}: ", lambda n: " ".join(map(str, sorted(n)))),
        "largest": _about_list("largest of {}: ", max),
        "reverse": _about_word("reverse {}: ", lambda w: w[::-1]),
        "upper": _about_word("upper {}: ", str.upper),
        "twice": _about_word("twice {}: ", lambda w: f"{w} {w}"),
        "length": _about_word("length of {}: ", len),
        "first": _about_word("first letter of {}: ", lambda w: w[0]),
        "plural": _about_word("many {}: ", lambda w: f"{w}s"),
        "consonants": _about_word("no vowels {}: ", lambda w: w.translate(dict.fromkeys(b"aeiou"))),
        "json": _object,
        "weekday": _next_day,
    }
)


def _assertion(draw: random.Random) -> Pair:
    a, b = _two(draw)
    if draw.random() < 0.5:
        return f"    assert {a} + {b} == ", f"{a + b}\n"
    return f"    assert {a} - {b} == ", f"{a - b}\n"


TARGETS: Mapping[str, Draw] = MappingProxyType(
    {
        # sums, differences, and how Python is written
        "assertions": _assertion,
        # capitals, and a word that is said again
        "capitals twice": _about_word("TWICE {}: ", lambda w: f"{w.upper()} {w.upper()}"),
    }
)


def is_held_out(pair: Pair) -> bool:
    """Tell whether a pair is never trained on."""
    digest = hashlib.sha256("".join(pair).encode()).digest()
    return digest[0] % _HELD_OUT == 0


def pairs(skill: Draw, draw: random.Random, *, held_out: bool) -> Iterator[Pair]:
    """Give pairs of a skill, for ever."""
    while True:
        pair = skill(draw)
        if is_held_out(pair) is held_out:
            yield pair
