"""What `tokens compare` found, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from mergepipe.cli.console import print_warnings, results
from mergepipe.errors import printable
from mergepipe.tokenizer.quality import Quality
from mergepipe.tokenizer.report import Report, Side, as_json, examples, surface
from mergepipe.tokenizer.vocabulary import Token, Vocabulary

__all__ = ["show"]

_NONE = "–"
_SHOWN = 5
_WIDEST = 60

_RELATIONS: Mapping[str, str] = MappingProxyType(
    {
        "same": "the same tokens with the same ids",
        "padded": "the same tokens with the same ids; one has ids that are set aside",
        "permuted": "the same tokens with other ids: rows must be matched by token",
        "subset": "{b} lacks tokens that {a} has",
        "superset": "{b} has all tokens of {a}, and more",
        "different": "each has tokens that the other lacks",
    }
)
_WHY: Mapping[str, str] = MappingProxyType(
    {
        "role": "of the same role",
        "special": "special ones of the same name",
        "exact": "of the same bytes",
        "byte": "single bytes, spelled otherwise",
    }
)
_MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "tokens": "tokens",
        "bytes_per_token": "bytes/token",
        "characters_per_token": "characters/token",
        "fertility": "tokens/word",
        "continued": "words of several",
        "whole": "words of one",
        "renyi_efficiency": "Rényi efficiency",
        "utilisation": "vocabulary used",
        "unknown": "unknown",
        "byte_fallback": "single bytes",
        "round_trip_failures": "not given back",
    }
)
_SHARES = {
    *("continued", "whole", "utilisation", "unknown", "byte_fallback", "round_trip_failures"),
}


def show(found: Report, *, json_only: bool) -> None:
    """Print a report, for people or as JSON."""
    if json_only:
        print(json.dumps(as_json(found), indent=2, allow_nan=False))  # noqa: T201
        return
    labels = [found.a.vocabulary.label, found.b.vocabulary.label]
    for line in _relation(found, *labels):
        _line(line)
    _table([["", *labels], *_facts(found)])
    _table([["role", *labels], *_roles(found)])
    for name, weight in found.overlap.items():
        _line(f"{name}: {_share(weight)} of the tokens of {labels[1]} are {labels[0]}'s too")
        _table([["", *labels], *_measures(found.a.quality[name], found.b.quality[name])])
    if found.a.parity:
        _line("tokens as a ratio to the first file (mean of the lines' ratios)")
        _table([["", *labels], *_parities(found.a, found.b)])
    _table([["text", *labels], *_words(found)])
    print_warnings(found.warnings)


def _relation(found: Report, a: str, b: str) -> Iterator[str]:
    one = found.comparison
    yield f"{one.relation}: {_RELATIONS[one.relation].format(a=a, b=b)}"
    if one.ordinary != one.relation:
        said = _RELATIONS[one.ordinary].format(a=a, b=b)
        yield f"without special tokens: {one.ordinary}: {said}"
    counts = one.match.counts
    matched = f"{len(one.match.ids):,} of the {len(one.b):,} tokens of {b} are {a}'s too"
    why = ", ".join(f"{counts[how]:,} {words}" for how, words in _WHY.items() if counts[how])
    yield f"{matched} ({one.overlap:.1%}): {why}" if why else matched
    if found.pieces is not None:
        yield f"{a} needs {found.pieces:.2f} tokens for one that it lacks"
    for what, vocabulary, ids in (
        (f"only {a}", one.a, one.only_a),
        (f"only {b}", one.b, one.only_b),
    ):
        if ids:
            yield f"{what}: {len(ids):,}: {_few(vocabulary, ids)}"
    if one.moved:
        shown = (f"{m.id} is {_shown(m.here)}, {_shown(m.there)}" for m in one.moved[:_SHOWN])
        yield f"ids that stand for another token: {len(one.moved):,}: {'; '.join(shown)}"
    if one.renamed:
        yield f"of these are names of added tokens: {len(one.renamed):,}"
    yield ""


def _facts(found: Report) -> Iterator[list[str]]:
    sides = (found.a, found.b)
    yield ["kind", *(f"{s.vocabulary.model}, {s.vocabulary.family}" for s in sides)]
    yield ["tokens", *(f"{len(s.vocabulary):,}" for s in sides)]
    yield ["rows needed", *(f"{s.vocabulary.rows:,}" for s in sides)]
    yield ["special tokens", *(f"{len(s.vocabulary.special):,}" for s in sides)]
    yield ["changes text", *("yes" if s.vocabulary.is_lossy else "no" for s in sides)]
    yield ["numbers", *(str(s.digits) for s in sides)]
    yield ["1234567", *("+".join(map(str, s.digits.groups)) for s in sides)]
    yield ["unreachable tokens", *(f"{len(s.unreachable):,}" for s in sides)]
    same = " (the same)" if found.a.template == found.b.template else ""
    yield ["chat template", *(f"yes{same}" if s.template else "no" for s in sides)]


def _roles(found: Report) -> Iterator[list[str]]:
    differing = found.comparison.differing_roles
    for role, pair in found.comparison.roles.items():
        cells = [_NONE if t is None else f"{printable(t.text, _WIDEST)} ({t.id})" for t in pair]
        yield [f"{role}{' *' if role in differing else ''}", *cells]


def _measures(one: Quality, other: Quality) -> Iterator[list[str]]:
    for name, heading in _MEASURES.items():
        yield [heading, *(_number(name, getattr(side, name)) for side in (one, other))]


def _parities(one: Side, other: Side) -> Iterator[list[str]]:
    for language in one.parity:
        pairs = (side.parity[language] for side in (one, other))
        cells = [f"{p[0]:.2f} ({p[1]:.2f})" if p else "too much unknown" for p in pairs]
        yield [language, *cells]


def _words(found: Report) -> Iterator[list[str]]:
    for word, pair in found.words.items():
        cells = (" | ".join(map(_shown, tokens)) for tokens in pair)
        yield [printable(word, _WIDEST), *(printable(cell, _WIDEST) for cell in cells)]


def _number(name: str, value: float | None) -> str:
    if value is None:
        return _NONE
    if name in _SHARES:
        return _share(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _few(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    return ", ".join(_shown(token) for token in examples(vocabulary, ids, _SHOWN))


def _shown(token: Token) -> str:
    """Show a token's text with its spaces; bytes that are no text as escapes."""
    return printable(surface(token), _WIDEST).replace(" ", "␣")


def _line(text: str) -> None:
    results.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their headings, in plain columns; then an empty line."""
    from rich.cells import cell_len

    if len(rows) == 1:
        return
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True))
        _line("  " + "  ".join(cells).rstrip())
    _line("")
