"""A module in memory with what is needed to ask it, and what each kind of model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.model.chat import ChatTemplate
from mergepipe.model.rows import Row

__all__ = ["Family", "Loaded", "Special"]


@dataclass(frozen=True, slots=True)
class Special:
    """Ids of tokens with a role.

    `before` and `after` are what the tokenizer itself puts around a text ([CLS] and [SEP]);
    `start` is what a decoder that follows an encoder begins with.
    """

    prefix: int | None  # BOS, or EOS where there is no BOS
    ends: frozenset[int]
    mask: int | None
    pad: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    start: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module, its tokenizer, and the most tokens that it takes."""

    name: str
    module: Any  # a transformers PreTrainedModel: its forward and generate are untyped
    tokenizer: Tokenizer
    special: Special
    max_length: int
    template: ChatTemplate | None

    @property
    def vocabulary(self) -> int:
        """Entries of the logits of one token."""
        size: int = self.module.config.get_text_config().vocab_size
        return size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the ids of texts, without special tokens.

        Raises
        ------
        InputError
            if the tokenizer has more tokens than the model has rows.

        """
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = self.module.get_input_embeddings().weight.shape[0]
        if max((i for encoding in encodings for i in encoding.ids), default=0) >= rows:
            what = f"its tokenizer gives ids beyond its {rows} embedding rows"
            raise InputError(Problem(self.name, what))
        return [encoding.ids for encoding in encodings]

    def lossy(self, texts: Sequence[str]) -> list[bool]:
        """Tell which texts are not what their tokens stand for, but for a space in front.

        Such a text is scored, or shown to the model, as another: with <unk>, in lower case.
        """
        decoded = self.tokenizer.decode_batch(self.encode(texts), skip_special_tokens=False)
        return [
            one.removeprefix(" ") != text.removeprefix(" ")
            for one, text in zip(decoded, texts, strict=True)
        ]

    def check_length(self, tokens: int, what: str) -> None:
        """Refuse what is longer than the model takes.

        Raises
        ------
        InputError
            saying how long it is.

        """
        if tokens > self.max_length:
            what = f"{what} are {tokens} tokens, but the model takes {self.max_length}"
            raise InputError(Problem(self.name, what))

    def padded(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, int64 [row, position], on the module's device."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.special.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(len(row))
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return ids.to(self.module.device), mask.to(self.module.device)


@dataclass(frozen=True, slots=True)
class Family:
    """What models of one kind do with requests; what they cannot do is None.

    `pairs` and `texts` cut requests into rows, of which `logits` gives the logits, float
    [row, position, token]. `prompt` makes the ids of a text those of a prompt, `needed` says how
    many tokens a prompt and a number of new tokens need, and `begin` gives what the module's
    `generate` takes for prompts, and how many ids its sequences begin with. `logits` of a model
    that classifies are [row, class].
    """

    what: str  # "a causal language model"
    auto: str  # the class of transformers that loads them
    logits: Callable[[Loaded, Sequence[Row]], Tensor]
    pairs: Callable[[Loaded, Sequence[tuple[str, str]]], Iterator[Row]] | None = None
    texts: Callable[[Loaded, Sequence[str], int | None], Iterator[Row]] | None = None
    prompt: Callable[[Loaded, list[int]], list[int]] | None = None
    needed: Callable[[int, int], int] | None = None
    begin: Callable[[Loaded, Sequence[Sequence[int]]], tuple[Mapping[str, Any], int]] | None = None
