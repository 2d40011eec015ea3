"""How well a tokenizer fits texts, and how two tokenizers compare on them.

Fertility and the share of continued words: Rust et al., 2021 (https://arxiv.org/abs/2012.15613).
Rényi efficiency: Zouhar et al., 2023 (https://arxiv.org/abs/2306.16842); it has counterexamples
(Cognetta et al., 2024, https://arxiv.org/abs/2402.14614) and is never a criterion alone. Parity:
Petrov et al., 2023 (https://arxiv.org/abs/2305.15425).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mergepipe.tokenizer.matching import Match
from mergepipe.tokenizer.normalizing import adds_space
from mergepipe.tokenizer.vocabulary import Token, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = [
    "Parity",
    "Quality",
    "gini",
    "measure",
    "parity",
    "pieces_per_missing",
    "renyi_efficiency",
    "unreachable",
    "weighted_overlap",
]

# Language -> its premium: the ratio of the sums, and the mean of the ratios.
Parity: TypeAlias = "dict[str, tuple[float, float] | None]"

_ALPHA = 3.0
_MOST_UNKNOWN = 0.1


@dataclass(frozen=True, slots=True)
class Quality:
    """What a tokenizer makes of texts; special tokens are not counted.

    A word lies between Unicode's word boundaries and has a letter or digit. `fertility` and
    `fertility_spaced` are tokens per word, and per run without spaces; `continued` and `whole`
    are the shares of words that more than one token, and one token, has a part of. `unknown`
    is the share of tokens that stand for what cannot be spelled, `unknown_characters` that of
    characters; `byte_fallback` the share of tokens that are single bytes; `round_trip_failures`
    that of texts that are not given back. `utilisation` is observed types / size of the
    vocabulary, `gini` that of the observed types' counts. Ratios are None where nothing was
    counted.
    """

    tokens: int
    types: int
    bytes: int
    characters: int
    words: int
    bytes_per_token: float | None
    characters_per_token: float | None
    fertility: float | None
    fertility_spaced: float | None
    continued: float | None
    whole: float | None
    renyi_efficiency: float | None
    unknown: float | None
    unknown_characters: float | None
    byte_fallback: float | None
    round_trip_failures: float | None
    utilisation: float
    gini: float | None


def measure(vocabulary: Vocabulary, tokenizer: Tokenizer, texts: Sequence[str]) -> Quality:
    """Measure a tokenizer on texts."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    counts = Counter(number for one in encodings for number in one.ids)
    pieces = [n for text, one in zip(texts, encodings, strict=True) for n in _per_word(text, one)]
    total, characters = sum(counts.values()), sum(map(len, texts))
    size = sum(len(text.encode()) for text in texts)
    back = tokenizer.decode_batch([one.ids for one in encodings], skip_special_tokens=False)
    fallbacks = sum(n for i, n in counts.items() if vocabulary.tokens[i].kind == "byte")
    lost = sum(
        stop - start
        for one in encodings
        for number, (start, stop) in zip(one.ids, one.offsets, strict=True)
        if number == vocabulary.unknown
    )
    failed = sum(text != other for text, other in zip(texts, back, strict=True))
    return Quality(
        tokens=total,
        types=len(counts),
        bytes=size,
        characters=characters,
        words=len(pieces),
        bytes_per_token=_ratio(size, total),
        characters_per_token=_ratio(characters, total),
        fertility=_ratio(total, len(pieces)),
        fertility_spaced=_ratio(total, sum(len(text.split()) for text in texts)),
        continued=_ratio(sum(n > 1 for n in pieces), len(pieces)),
        whole=_ratio(sum(n == 1 for n in pieces), len(pieces)),
        renyi_efficiency=renyi_efficiency(counts.values()),
        unknown=_ratio(
            counts.get(-1 if vocabulary.unknown is None else vocabulary.unknown, 0), total
        ),
        unknown_characters=_ratio(lost, characters),
        byte_fallback=_ratio(fallbacks, total),
        round_trip_failures=_ratio(failed, len(texts)),
        utilisation=len(counts) / max(len(vocabulary), 1),
        gini=gini(counts.values()),
    )


def renyi_efficiency(
    counts: Iterable[int], alpha: float = _ALPHA, size: int | None = None
) -> float | None:
    """Give H_α / log2 |V| with H_α = log2(Σ p_i^α) / (1 - α); |V| is the observed types.

    α = 1 is Shannon's entropy. None where fewer than two types were seen.

    >>> counts = Counter("pick @@ed pick @@l @@ed pick @@les".split()).values()
    >>> round(renyi_efficiency(counts, 2.5), 10)
    0.8265064834
    """
    seen = [count for count in counts if count]
    total, size = sum(seen), size or len(seen)
    if size < 2 or not seen:  # noqa: PLR2004
        return None
    shares = [count / total for count in seen]
    if alpha == 1:
        entropy = -sum(p * math.log2(p) for p in shares)
    else:
        entropy = math.log2(sum(p**alpha for p in shares)) / (1 - alpha)
    return entropy / math.log2(size)


def gini(counts: Iterable[int]) -> float | None:
    """Give how unequal counts are: 0 all alike, towards 1 all in one.

    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
    (0.0, 0.75)
    """
    ordered = sorted(counts)
    total, n = sum(ordered), len(ordered)
    if not total:
        return None
    return sum((2 * i - n - 1) * count for i, count in enumerate(ordered, 1)) / (n * total)


def parity(
    vocabulary: Vocabulary, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]
) -> Parity:
    """Give each language's premium over the first: tokens of translations, as a ratio.

    The texts of all languages say the same, one by one. The two numbers are the ratio of the sums
    and the mean of the ratios. None where over 10 % of the tokens of either stand for what cannot
    be spelled.
    """
    sizes: dict[str, list[int]] = {}
    unknown: dict[str, float] = {}
    for language, said in texts.items():
        encodings = tokenizer.encode_batch(list(said), add_special_tokens=False)
        sizes[language] = [len(one.ids) for one in encodings]
        lost = sum(number == vocabulary.unknown for one in encodings for number in one.ids)
        unknown[language] = lost / max(sum(sizes[language]), 1)
    first = next(iter(texts), "")
    found: Parity = {}
    for language, counts in sizes.items():
        pairs = [(n, m) for n, m in zip(counts, sizes[first], strict=True) if m]
        is_lost = max(unknown[language], unknown[first]) > _MOST_UNKNOWN
        if is_lost or not pairs:
            found[language] = None
            continue
        whole = sum(n for n, _ in pairs) / sum(m for _, m in pairs)
        found[language] = (whole, sum(n / m for n, m in pairs) / len(pairs))
    return found


def unreachable(vocabulary: Vocabulary, tokenizer: Tokenizer) -> tuple[Token, ...]:
    """Give the ordinary tokens whose own text is not encoded as them, by id.

    Parts of characters are no text and are passed over, as are fallbacks. Where the tokenizer
    puts a space in front of a text, and for what goes on inside words, only the model is asked.
    """
    spaced = adds_space(vocabulary.stored)
    prefix = vocabulary.stored.get("model", {}).get("continuing_subword_prefix") or ""
    asked: dict[int, str] = {}
    inner = []
    for number, token in vocabulary.tokens.items():
        text = _text(token)
        if token.kind != "piece" or token.is_added or not text or number == vocabulary.unknown:
            continue
        if prefix and token.text.startswith(prefix):
            continue
        if vocabulary.family == "wordpiece" or (spaced and text.startswith(" ")):
            asked[number] = text[1:]
        elif spaced:
            inner.append(token)
        else:
            asked[number] = text
    encodings = tokenizer.encode_batch(list(asked.values()), add_special_tokens=False)
    lost = {n for n, one in zip(asked, encodings, strict=True) if one.ids != [n]}
    for token in inner:
        if [one.id for one in tokenizer.model.tokenize(token.text)] != [token.id]:
            lost.add(token.id)
    return tuple(vocabulary.tokens[number] for number in sorted(lost))


def weighted_overlap(match: Match, tokenizer: Tokenizer, texts: Sequence[str]) -> float | None:
    """Give the share of the tokens of texts, as the donor has them, that the base has too."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    found = [number in match.ids for one in encodings for number in one.ids]
    return _ratio(sum(found), len(found))


def pieces_per_missing(match: Match, base: Tokenizer) -> float | None:
    """Give the mean number of tokens of the base that a token it lacks is made of."""
    spaced = adds_space(match.base.stored)
    texts = [text for n in match.missing if (text := _text(match.donor.tokens[n]))]
    said = [text.removeprefix(" ") if spaced else text for text in texts]
    encodings = base.encode_batch([text for text in said if text], add_special_tokens=False)
    return _ratio(sum(len(one.ids) for one in encodings), len(encodings))


def _text(token: Token) -> str | None:
    """Give the text of an ordinary token; None for a part of a character."""
    if token.kind == "special":
        return None
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return None


def _per_word(text: str, encoding: Encoding) -> Iterator[int]:
    """Give for each word of a text how many tokens have a part of it."""
    spans = sorted({span for span in encoding.offsets if span[0] < span[1]})
    counts = Counter(encoding.offsets)
    at = 0
    for start, stop in _words(text):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        found, here = 0, at
        while here < len(spans) and spans[here][0] < stop:
            # Several tokens with one place are the bytes of one character.
            found += counts[spans[here]] if spans[here][1] > start else 0
            here += 1
        yield found


def _words(text: str) -> Iterator[tuple[int, int]]:
    import regex  # type: ignore[import-untyped]

    found: Any
    for found in regex.finditer(r"(?w)\b\w.*?\b", text, regex.DOTALL):
        yield found.start(), found.end()


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None
