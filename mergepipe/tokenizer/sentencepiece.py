"""SentencePiece models (Kudo & Richardson, 2018, https://arxiv.org/abs/1808.06226), read as such.

A model is a protocol buffer, of which only these fields are needed: pieces (1: text, score, type),
trainer_spec (2: 3 model type, 35 byte fallback, 40 id of the unknown piece) and normalizer_spec
(3: 2 character map, 3 dummy prefix, 4 extra spaces removed).
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.tokenizer.faults import fault

__all__ = ["read_sentencepiece"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    kind: int


def read_sentencepiece(file: Path, where: str) -> dict[str, Any]:
    """Give the `tokenizer.json` of a SentencePiece model, of BPE or Unigram.

    Raises
    ------
    InputError
        if it is none.

    """
    try:
        fields = list(_fields(file.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (
            dict(_fields(next((v for number, v in fields if number == part), b"")))
            for part in (2, 3)
        )
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise fault(where, "is no SentencePiece model") from error
    if not pieces:
        raise fault(where, "is no SentencePiece model: it has no pieces")
    kind = trainer.get(3, _UNIGRAM)
    if kind not in {_UNIGRAM, _BPE}:
        raise fault(where, f"is a SentencePiece model of type {kind}, not Unigram or BPE")
    model = _bpe(pieces) if kind == _BPE else _unigram(pieces)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": one.text, **_FLAGS, "special": one.kind != _USER}
            for n, one in enumerate(pieces)
            if one.kind in {_UNKNOWN, _CONTROL, _USER}
        ],
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(normalizer))},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": list(_decoders(normalizer))},
        "model": {**model, "byte_fallback": bool(trainer.get(35))},
    }


def _bpe(pieces: list[_Piece]) -> dict[str, Any]:
    """Give a model that makes the piece of the highest score first, of any two that make it."""
    ids = {one.text: n for n, one in enumerate(pieces)}
    known = {one.text for one in pieces if one.kind == _NORMAL}
    ranked = sorted((one for one in pieces if one.kind == _NORMAL), key=lambda one: -one.score)
    merges = [
        [one.text[:at], one.text[at:]]
        for one in ranked
        for at in range(1, len(one.text))
        if one.text[:at] in known and one.text[at:] in known
    ]
    unknown = next((one.text for one in pieces if one.kind == _UNKNOWN), None)
    return {"type": "BPE", "vocab": ids, "merges": merges, "unk_token": unknown, "fuse_unk": True}


def _unigram(pieces: list[_Piece]) -> dict[str, Any]:
    unknown = next((n for n, one in enumerate(pieces) if one.kind == _UNKNOWN), None)
    return {"type": "Unigram", "unk_id": unknown, "vocab": [[p.text, p.score] for p in pieces]}


def _normalizers(stated: Mapping[int, Any]) -> Iterator[Mapping[str, Any]]:
    if stated.get(2):
        yield {"type": "Precompiled", "precompiled_charsmap": b64encode(stated[2]).decode()}
    if stated.get(4, 1):
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if stated.get(3, 1):
        yield {"type": "Prepend", "prepend": _SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _decoders(stated: Mapping[int, Any]) -> Iterator[Mapping[str, Any]]:
    yield {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    yield {"type": "ByteFallback"}
    yield {"type": "Fuse"}
    if stated.get(3, 1):
        yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _piece(raw: bytes) -> _Piece:
    stated = dict(_fields(raw))
    score = struct.unpack("<f", stated[2])[0] if 2 in stated else 0.0  # noqa: PLR2004
    return _Piece(bytes(stated.get(1, b"")).decode(), score, stated.get(3, _NORMAL))


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Give number and value of every field: whole numbers as int, all else as bytes.

    Raises
    ------
    ValueError, IndexError
        if these bytes are no message.

    """
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:  # noqa: PLR2004
            size, at = _varint(raw, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if not (0 <= size <= len(raw) - at) or not number:
            raise ValueError
        yield number, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:  # noqa: PLR2004
            return value, at
        if shift > 63:  # noqa: PLR2004
            raise ValueError
