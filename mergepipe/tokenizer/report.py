"""Everything that is worth knowing of two tokenizers before their models are merged."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergepipe.tokenizer.compare import Comparison, compare
from mergepipe.tokenizer.digits import DigitPolicy, digit_policy, numeral_warning
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.normalizing import adds_space
from mergepipe.tokenizer.quality import (
    Parity,
    Quality,
    measure,
    parity,
    pieces_per_missing,
    unreachable,
    weighted_overlap,
)
from mergepipe.tokenizer.vocabulary import Token, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Report", "Side", "as_json", "examples", "report", "surface"]

_SAMPLES = (
    "internationalization",
    "Donaudampfschiff",
    "1234567",
    "    return x",
    "café",
    "今天天气",
)
_MOST_WORDS = 6
_SHORTEST_WORD = 4
_SHOWN = 10

Texts = Mapping[str, Sequence[str]]
Pair = tuple[tuple[Token, ...], tuple[Token, ...]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two tokenizers, on its own and on the texts."""

    vocabulary: Vocabulary
    digits: DigitPolicy
    unreachable: tuple[Token, ...]
    template: str | None
    quality: Mapping[str, Quality]
    parity: Parity


@dataclass(frozen=True, slots=True)
class Report:
    """Two tokenizers held against each other; `a` is what the model has, `b` what it would get.

    `overlap` is by text the share of b's tokens that a has too; `pieces` the mean number of a's
    tokens that one of b's which it lacks is made of; `words` what both make of some words.
    """

    comparison: Comparison
    a: Side
    b: Side
    pieces: float | None
    overlap: Mapping[str, float | None] = field(default_factory=dict)
    words: Mapping[str, Pair] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def report(a: Vocabulary, b: Vocabulary, texts: Texts, *, is_parallel: bool = False) -> Report:
    """Compare two tokenizers, also on texts; parallel ones say the same, document by document."""
    found = compare(a, b)
    ours, theirs = encoder(a), encoder(b)
    said = texts if is_parallel else {}
    sides = [_side(v, t, texts, said) for v, t in ((a, ours), (b, theirs))]
    spoken = {text: (_tokens(a, ours, text), _tokens(b, theirs, text)) for text in _SAMPLES}
    spoken |= _words(texts, a, ours, b, theirs)
    warning = numeral_warning(sides[0].digits, sides[1].digits, (a.label, b.label))
    return Report(
        comparison=found,
        a=sides[0],
        b=sides[1],
        pieces=pieces_per_missing(found.match, ours),
        overlap={name: weighted_overlap(found.match, theirs, said) for name, said in texts.items()},
        words=spoken,
        warnings=(warning,) if warning else (),
    )


def _side(vocabulary: Vocabulary, tokenizer: Tokenizer, texts: Texts, said: Texts) -> Side:
    return Side(
        vocabulary=vocabulary,
        digits=digit_policy(tokenizer),
        unreachable=unreachable(vocabulary, tokenizer),
        template=_template(vocabulary),
        quality={name: measure(vocabulary, tokenizer, text) for name, text in texts.items()},
        parity=parity(vocabulary, tokenizer, said),
    )


def _template(vocabulary: Vocabulary) -> str | None:
    """Give the chat template as text; it is not rendered."""
    file: Path = vocabulary.folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    stated = vocabulary.settings.get("chat_template")
    return None if stated is None else str(stated)


def _words(
    texts: Texts, a: Vocabulary, ours: Tokenizer, b: Vocabulary, theirs: Tokenizer
) -> dict[str, Pair]:
    """Give the most frequent words that the two cut into different numbers of tokens."""
    counts = Counter(word for text in texts.values() for one in text for word in one.split())
    found: dict[str, Pair] = {}
    for word, _ in counts.most_common():
        if len(word) >= _SHORTEST_WORD:
            pair = (_tokens(a, ours, _inside(a, word)), _tokens(b, theirs, _inside(b, word)))
            if len(pair[0]) != len(pair[1]):
                found[word] = pair
        if len(found) == _MOST_WORDS:
            break
    return found


def _inside(vocabulary: Vocabulary, word: str) -> str:
    """Give a word as it is within a text: after a space, unless the tokenizer puts one there."""
    has_space = adds_space(vocabulary.stored) or vocabulary.family == "wordpiece"
    return word if has_space else f" {word}"


def _tokens(vocabulary: Vocabulary, tokenizer: Tokenizer, text: str) -> tuple[Token, ...]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return tuple(vocabulary.tokens[number] for number in ids)


def as_json(found: Report) -> dict[str, Any]:
    """Give a report as plain data."""
    one = found.comparison
    return {
        "a": _side_json(found.a),
        "b": _side_json(found.b),
        "relation": one.relation,
        "ordinary_relation": one.ordinary,
        "shared": len(one.shared),
        "only_a": {"count": len(one.only_a), "examples": _few(one.a, one.only_a)},
        "only_b": {"count": len(one.only_b), "examples": _few(one.b, one.only_b)},
        "moved": {
            "count": len(one.moved),
            "renamed": len(one.renamed),
            "examples": [[m.id, surface(m.here), surface(m.there)] for m in one.moved[:_SHOWN]],
        },
        "match": dict(one.match.counts),
        "overlap": one.overlap,
        "pieces_per_missing": found.pieces,
        "roles": {
            role: dict(zip("ab", (_token_json(token) for token in pair), strict=True))
            for role, pair in one.roles.items()
        },
        "chat_template_is_same": found.a.template == found.b.template,
        "quality": {
            name: {
                "a": dataclasses.asdict(found.a.quality[name]),
                "b": dataclasses.asdict(found.b.quality[name]),
                "weighted_overlap": weight,
            }
            for name, weight in found.overlap.items()
        },
        "words": {
            word: {
                side: [surface(t) for t in tokens] for side, tokens in zip("ab", pair, strict=True)
            }
            for word, pair in found.words.items()
        },
        "warnings": list(found.warnings),
    }


def _side_json(side: Side) -> dict[str, Any]:
    vocabulary = side.vocabulary
    return {
        "label": vocabulary.label,
        "family": vocabulary.family,
        "model": vocabulary.model,
        "tokens": len(vocabulary),
        "rows": vocabulary.rows,
        "special": len(vocabulary.special),
        "is_lossy": vocabulary.is_lossy,
        "digits": dataclasses.asdict(side.digits),
        "unreachable": {
            "count": len(side.unreachable),
            "examples": [surface(token) for token in side.unreachable[:_SHOWN]],
        },
        "has_chat_template": side.template is not None,
        "parity": side.parity,
    }


def _few(vocabulary: Vocabulary, ids: Iterable[int]) -> list[str]:
    return [surface(token) for token in examples(vocabulary, ids, _SHOWN)]


def examples(vocabulary: Vocabulary, ids: Iterable[int], count: int) -> list[Token]:
    """Give the first of some tokens, those first that are whole characters."""
    tokens = [vocabulary.tokens[number] for number in ids]
    whole = [
        one
        for one in tokens
        if "\N{REPLACEMENT CHARACTER}" not in one.bytes.decode(errors="replace")
    ]
    return (whole or tokens)[:count]


def surface(token: Token) -> str:
    """Give what a token stands for as text, bytes that are none as escapes."""
    return token.bytes.decode(errors="backslashreplace")


def _token_json(token: Token | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token.id, "text": token.text}
