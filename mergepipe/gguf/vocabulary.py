"""A tokenizer as GGUF holds it: tokens in the order of their ids, merges or scores, special ones.

llama.cpp splits texts by rules of its own that GGUF names (`tokenizer.ggml.pre`). The names below
are for those whose rules are exactly a tokenizer's; others are refused, since a model with another
split speaks worse and nobody knows why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergepipe.errors import InputError, Problem

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from mergepipe.tokenizer.vocabulary import Vocabulary

__all__ = ["TokenTable", "add_tokens", "token_table"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHARACTERS = r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
# What a text is cut by before bytes are merged -> llama.cpp's name for it.
_SPLITS = {
    ("bytes",): "gpt-2",
    ("digit", "bytes"): "smollm",
    (f"{_CONTRACTIONS}{_LETTERS}|\\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
    (f"{_CONTRACTIONS}{_LETTERS}|\\p{{N}}{_REST}",): "qwen2",
    (f"{_CASED}{_CHARACTERS}",): "tekken",
}


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A tokenizer in GGUF's words; `merges` for byte-level BPE, `scores` for SentencePiece's."""

    model: str  # gpt2, llama
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]  # bos, eos, unk, pad
    begins: bool  # whether a text starts with bos
    ends: bool
    space_first: bool  # whether a space is put before a text
    chat_template: str | None


def token_table(vocabulary: Vocabulary, rows: int, chat_template: str | None) -> TokenTable:
    """Give the table of a tokenizer for an embedding of so many rows.

    Raises
    ------
    InputError
        if llama.cpp cannot split texts as the tokenizer does.

    """
    stored = vocabulary.stored
    is_bytes = stored["model"].get("byte_fallback") is not True
    pre = _byte_split(vocabulary) if is_bytes else "default"
    if vocabulary.model != "BPE" or pre is None or not (is_bytes or _is_plain(stored)):
        what = "llama.cpp has no name for how this tokenizer splits texts"
        fix = "llama.cpp's convert_hf_to_gguf.py may know it"
        raise InputError(Problem(str(vocabulary.folder / "tokenizer.json"), what, fix))
    tokens, types = _tokens(vocabulary, rows, is_bytes=is_bytes)
    merges = [one if isinstance(one, str) else " ".join(one) for one in stored["model"]["merges"]]
    begins, ends = _ends(vocabulary)
    return TokenTable(
        model="gpt2" if is_bytes else "llama",
        pre=pre,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merges) if is_bytes else (),
        scores=() if is_bytes else tuple(_scores(tokens, merges)),
        special={role: vocabulary.roles[role] for role in _ROLES if role in vocabulary.roles},
        begins=begins,
        ends=ends,
        space_first=not is_bytes and "prepend" in json.dumps(stored.get("normalizer")),
        chat_template=chat_template,
    )


_ROLES = ("bos", "eos", "unk", "pad")


def _byte_split(vocabulary: Vocabulary) -> str | None:
    """Give llama.cpp's name of how a byte-level tokenizer cuts texts; None if it has none."""
    stored = vocabulary.stored
    found = stored.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    normalizer = stored.get("normalizer") or {}
    if normalizer.get("type") not in {None, "NFC"} or normalizer.get("normalizers"):
        return None
    return _SPLITS.get(tuple(filter(None, map(_step, steps))))


def _step(step: Mapping[str, Any]) -> str:
    """Give one step of a pre-tokenizer in the words of the table; nothing where it cuts nothing."""
    if step.get("type") == "ByteLevel":
        return "bytes" if all(step.get(k) == v for k, v in _BYTES.items()) else _quiet(step)
    if step.get("type") == "Digits":
        return "digit" if step.get("individual_digits") else "digits"
    pattern = (step.get("pattern") or {}).get("Regex")
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or pattern is None:
        return "another"
    return "digit" if pattern in {r"\d", r"\p{N}"} else str(pattern)


def _quiet(step: Mapping[str, Any]) -> str:
    return "another" if step.get("add_prefix_space") or step.get("use_regex") else ""


def _is_plain(stored: Mapping[str, Any]) -> bool:
    """Whether a tokenizer with byte fallback only makes spaces visible before it merges."""
    normalizer = stored.get("normalizer") or {}
    kinds = {one.get("type") for one in normalizer.get("normalizers", [normalizer])}
    pre = (stored.get("pre_tokenizer") or {}).get("type")
    return kinds <= {None, "Prepend", "Replace"} and pre in {None, "Metaspace"}


def _tokens(vocabulary: Vocabulary, rows: int, *, is_bytes: bool) -> tuple[list[str], list[int]]:
    """Give the text and type of every row; rows without a token are unused."""
    added = {one["id"]: bool(one["special"]) for one in vocabulary.stored.get("added_tokens", ())}
    tokens, types = [], []
    for number in range(rows):
        token = vocabulary.tokens.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        tokens.append(token.text)
        if number == vocabulary.unknown and not is_bytes:
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number] else USER_DEFINED)
        elif not is_bytes and _is_byte(token.text):
            types.append(BYTE)
        else:
            types.append(NORMAL)
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == len("<0x00>") and text.startswith("<0x") and text.endswith(">")


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Give scores by which the pair that merges first has the highest."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault(pair.replace(" ", ""), rank)
    return [-float(first.get(token, 0)) for token in tokens]


def _ends(vocabulary: Vocabulary) -> tuple[bool, bool]:
    """Say whether bos and eos are put around a text, by trying it."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps(vocabulary.stored))
    ids = plain.encode("a").ids
    roles = vocabulary.roles
    return ids[:1] == [roles.get("bos")], ids[-1:] == [roles.get("eos")]


def add_tokens(writer: GGUFWriter, table: TokenTable) -> None:
    """Add a tokenizer to a file."""
    writer.add_tokenizer_model(table.model)
    writer.add_tokenizer_pre(table.pre)
    writer.add_token_list(list(table.tokens))
    if table.scores:
        writer.add_token_scores(list(table.scores))
    writer.add_token_types(list(table.types))
    if table.merges:
        writer.add_token_merges(list(table.merges))
    for role, number in table.special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(table.begins)
    writer.add_add_eos_token(table.ends)
    writer.add_add_space_prefix(table.space_first)
    if table.chat_template is not None:
        writer.add_chat_template(table.chat_template)
