"""Vocabularies that are no `tokenizer.json`, turned into one.

tekken.json (Mistral), tiktoken files (OpenAI, Llama 3, Qwen 1), SentencePiece models, and GPT-2's
vocab.json with merges.txt. A tiktoken file does not say how text is split before its bytes are
merged: the patterns of the two models that publish such files are known here.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergepipe.checkpoint.files import FileFaultError, read_json
from mergepipe.tokenizer.family import spelled
from mergepipe.tokenizer.faults import fault
from mergepipe.tokenizer.sentencepiece import read_sentencepiece

__all__ = ["CONVERTERS"]

Stored = dict[str, Any]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN = _WORDS + r"\p{N}" + _REST
# The first ids of a Tekken vocabulary that does not name its special tokens.
_TEKKEN_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"),
)


def _from_tekken(file: Path, where: str) -> Stored:
    """Special tokens have the first ids; ordinary ones follow in the order of their ranks."""
    try:
        stored = read_json(file)
        config = stored["config"]
        count = config["default_num_special_tokens"]
        listed = stored["vocab"][: config["default_vocab_size"] - count]
        ranks = {b64decode(one["token_bytes"], validate=True): one["rank"] for one in listed}
        named = {one["rank"]: one["token_str"] for one in stored.get("special_tokens") or ()}
        pattern = str(config["pattern"])
    except (FileFaultError, binascii.Error) as error:
        raise fault(where, str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise fault(where, "holds no Tekken vocabulary (config, vocab)") from error
    named = named or dict(enumerate(_TEKKEN_SPECIAL))
    special = {named.get(n, f"<SPECIAL_{n}>"): n for n in range(count)}
    shifted = {raw: rank + count for raw, rank in ranks.items()}
    return _byte_level(shifted, pattern, special)


def _from_tiktoken(file: Path, where: str) -> Stored:
    """Each line is a token's bytes in base64, and its rank, which is its id."""
    pairs = [line.split() for line in file.read_bytes().splitlines()]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not pair[1].isdigit():  # noqa: PLR2004
            raise fault(where, f"line {number} is no token in base64 and its rank")
    try:
        ranks = {b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise fault(where, f"holds a token that is not in base64: {error}") from error
    if not ranks:
        raise fault(where, "holds no vocabulary")
    pattern = _QWEN if file.name.startswith("qwen") else _LLAMA_3
    return _byte_level(ranks, pattern, {})


def _from_model(file: Path, where: str) -> Stored:
    """Read `tokenizer.model`: Llama 3's is a tiktoken file, all others are SentencePiece's."""
    with file.open("rb") as opened:
        head = opened.read(256).split(b"\n")[0].split()
    if len(head) == 2 and head[1].isdigit():  # noqa: PLR2004
        return _from_tiktoken(file, where)
    return read_sentencepiece(file, where)


def _from_merges(file: Path, where: str) -> Stored:
    """Read GPT-2's two files: ids of tokens, and merges in their order."""
    try:
        ids = read_json(file)
        lines = (file.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (FileFaultError, OSError, UnicodeDecodeError) as error:
        raise fault(where, str(error)) from error
    merges = [line for line in lines if line.count(" ") == 1 and not line.startswith("#version")]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return _tokenizer(ids, merges, {**split, "use_regex": True}, {})


# What a folder is searched for, in this order, where there is no tokenizer.json.
CONVERTERS: Mapping[str, Callable[[Path, str], Stored]] = MappingProxyType(
    {
        "tekken.json": _from_tekken,
        "tokenizer.model": _from_model,
        "spiece.model": read_sentencepiece,
        "sentencepiece*.model": read_sentencepiece,
        "*.spm": read_sentencepiece,
        "*.tiktoken": _from_tiktoken,
        "vocab.json": _from_merges,
    }
)


def _byte_level(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> Stored:
    """Give a byte-level BPE that merges what makes the token of the lowest rank first."""
    ids = {spelled(raw): rank for raw, rank in ranks.items()}
    merges = [
        f"{spelled(left)} {spelled(right)}"
        for left, right in _splits(sorted(ranks, key=ranks.__getitem__), ranks)
    ]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [{**split, "invert": False}, {**level, "use_regex": False}]
    return _tokenizer(ids, merges, {"type": "Sequence", "pretokenizers": steps}, special)


def _splits(tokens: Iterable[bytes], known: Mapping[bytes, int]) -> Iterable[tuple[bytes, bytes]]:
    """Give every way to make each token of two others."""
    for token in tokens:
        for at in range(1, len(token)):
            if token[:at] in known and token[at:] in known:
                yield token[:at], token[at:]


def _tokenizer(
    ids: Any, merges: Sequence[str], pre_tokenizer: Stored, special: Mapping[str, int]
) -> Stored:
    model = {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": False}
    unset = {"dropout": None, "unk_token": None, "byte_fallback": False, "fuse_unk": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for token, number in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {**model, **unset},
    }
