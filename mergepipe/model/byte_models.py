"""Models in this process as models of bytes: so that different tokenizers can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergepipe.errors import InputError, Problem
from mergepipe.model import Ability, Usage
from mergepipe.model.bytes import Array, ByteModel, Ids
from mergepipe.model.local import LocalModel
from mergepipe.model.rows import Row, batches
from mergepipe.model.traces import Trace
from mergepipe.model.windows import spans

__all__ = ["ByteTraced", "byte_model"]

_ROOM = 1 << 26  # logits in memory: 256 MB in fp32
_LEAD = 0xC0  # bytes from here on begin a character of several
_PROBE = "One, two: 3 + 4"


def byte_model(model: LocalModel, tokens: Mapping[int, bytes]) -> ByteModel:
    """Give the bytes of a causal model; `tokens` is what the ids of ordinary tokens spell.

    Raises
    ------
    InputError
        if its tokenizer writes other bytes than those of the text.

    """
    encode = _encoder(model, tokens)
    if encode([_PROBE.encode()]) == [()]:
        what = "its tokenizer changes texts, so their bytes have no exact probability"
        raise InputError(Problem(model.name, what, "mix by `tokens`"))

    def logprobs(lefts: Sequence[Ids]) -> Sequence[Array]:
        rows = [
            Row(at, _led(model, left), at=len(left), targets=(0,)) for at, left in enumerate(lefts)
        ]
        for row in rows:
            model.loaded.check_length(len(row.ids) - 1, "a text")
        return [found for _, found in sorted(_last(model, rows), key=lambda one: one[0])]

    ends = frozenset(model.loaded.special.ends)
    return ByteModel(tokens, encode, logprobs, ends)


def _led(model: LocalModel, left: Ids) -> list[int]:
    assert model.family.prompt is not None, "a causal model"
    return list(model.family.prompt(model.loaded, list(left)))


def _last(model: LocalModel, rows: Sequence[Row]) -> Iterator[tuple[int, Array]]:
    """Give ln p of the next token after each row, float64 [id]."""
    for batch in batches(rows, max(1, _ROOM // model.loaded.vocabulary)):
        with torch.inference_mode():
            logits = model.family.logits(model.loaded, batch)
            at = torch.tensor([row.at for row in batch], device=logits.device)
            chosen = logits[torch.arange(len(batch), device=logits.device), at]
            found = chosen.float().log_softmax(-1).double().cpu().numpy()
        yield from zip((row.index for row in batch), found, strict=True)


def _encoder(
    model: LocalModel, tokens: Mapping[int, bytes]
) -> Callable[[Sequence[bytes]], list[tuple[Ids, ...]]]:
    """Give what encodes bytes, also those that end inside a character.

    That is then completed, and the tokens up to its end are taken, if one ends there. What
    tokenizers look ahead for is whether a space is the last: so texts also go on with a letter.
    """
    spelled = dict(tokens)

    def encode(texts: Sequence[bytes]) -> list[tuple[Ids, ...]]:
        whole = [_completed(text) for text in texts]
        ahead = [text for one in whole for text in (one, f"{one}a")]
        encodings = model.loaded.tokenizer.encode_batch(ahead, add_special_tokens=False)
        pairs = zip(encodings[::2], encodings[1::2], texts, strict=True)
        return [
            tuple(
                dict.fromkeys(
                    ids for one in two if (ids := _upto(one.ids, text, spelled)) is not None
                )
            )
            for *two, text in pairs
        ]

    return encode


def _upto(ids: Sequence[int], text: bytes, spelled: Mapping[int, bytes]) -> Ids | None:
    """Give the ids that spell a text; None where no token ends with it, or it is spelled else."""
    at = 0
    for count, number in enumerate(ids):
        if at == len(text):
            return tuple(ids[:count])
        piece = spelled.get(number, b"")
        if not piece or not text.startswith(piece, at):
            return None
        at += len(piece)
    return tuple(ids) if at == len(text) else None


def _completed(text: bytes) -> str:
    r"""Give a text whose last character is whole; by a letter, if any begins so.

    >>> _completed(b"a\xc3") in {"aÀ", "aÁ"}, _completed("a".encode())
    (True, 'a')
    """
    for size in range(1, min(4, len(text) + 1)):
        if text[-size] >= _LEAD:
            return text[:-size].decode(errors="replace") + _completion(text[-size:])
        if text[-size] < 0x80:  # noqa: PLR2004 (ASCII)
            break
    return text.decode(errors="replace")


def _completion(begun: bytes) -> str:
    """Give a character that begins with these bytes, or has them all."""
    found = ""
    for second in range(0x80, 0xC0):
        added = bytes([second]) if len(begun) == 1 else b""
        for padding in (b"", b"\x80", b"\x80\x80"):
            try:
                one = (begun + added + padding).decode()
            except UnicodeDecodeError:
                continue
            if len(one) == 1 and one.isalpha():
                return one
            found = found or one
    return found or "\ufffd"


@dataclass(slots=True)
class ByteTraced:
    """A model in this process that is traced by bytes: `Traceable`, all numbers are of bytes.

    No byte is said to be the likeliest.
    """

    model: LocalModel
    spelled: Mapping[int, bytes]
    _bytes: ByteModel | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """That of the model, by bytes."""
        return hashlib.sha256(f"bytes {self.model.fingerprint}".encode()).hexdigest()

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`; it has no conversations."""
        return self.model.abilities & {"loglikelihood", "rolling", "generate"}

    @property
    def usage(self) -> Usage:
        """The model's."""
        return self.model.usage

    @property
    def by_bytes(self) -> ByteModel:
        """The model of bytes."""
        if self._bytes is None:
            self._bytes = byte_model(self.model, self.spelled)
        return self._bytes

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`."""
        found = []
        for context, continuation in requests:
            first = len(context.rstrip(" ").encode())
            found.append(self._trace((context + continuation).encode(), first))
        return found

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`; windows are the model's own, of its tokens."""
        return [self._windowed(text, stride) for text in texts]

    def _trace(self, text: bytes, first: int) -> Trace:
        scores = np.diff(self.by_bytes.logprobs_of_starts(text))
        return _of_bytes(scores.tolist(), first)

    def _windowed(self, text: str, stride: int | None) -> Trace:
        ids = self.model.loaded.encode([text])[0]
        raw, scores = text.encode(), np.zeros(0)
        if len(ids) <= self.model.loaded.max_length:
            return self._trace(raw, 0)
        ends = np.cumsum([0, *(len(self.spelled.get(number, b"")) for number in ids)])
        if ends[-1] != len(raw):
            what = "a long text has tokens that do not spell it"
            raise InputError(Problem(self.name, what, "mix by `tokens`"))
        for begin, start, end in spans(len(ids), self.model.loaded.max_length, stride):
            window = self.by_bytes.logprobs_of_starts(raw[ends[begin] : ends[end]])
            scores = np.append(scores, np.diff(window)[ends[start] - ends[begin] :])
        return _of_bytes(scores.tolist(), 0)


def _of_bytes(scores: Sequence[float], first: int) -> Trace:
    size = len(scores)
    return Trace(tuple(range(size)), tuple(scores), (False,) * size, first, size)
