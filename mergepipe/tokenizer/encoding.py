"""Text -> tokens, by the tokenizer as its file has it, without special tokens around the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergepipe.errors import printable
from mergepipe.tokenizer.faults import fault, place
from mergepipe.tokenizer.vocabulary import Token, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["encode_all", "encoder"]


def encoder(vocabulary: Vocabulary) -> Tokenizer:
    """Give the tokenizer of a vocabulary; it neither truncates nor pads.

    Raises
    ------
    InputError
        if its file is none that can be used.

    """
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(json.dumps(vocabulary.stored, ensure_ascii=False))
    except Exception as error:  # the library raises nothing narrower
        where = place(vocabulary.folder, vocabulary.label)
        raise fault(where, f"its tokenizer cannot be used: {printable(error, 300)}") from error
    found.no_truncation()
    found.no_padding()
    return found


def encode_all(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[Token]]:
    """Give the tokens of every text."""
    encodings = encoder(vocabulary).encode_batch(list(texts), add_special_tokens=False)
    return [[vocabulary.tokens[i] for i in encoding.ids] for encoding in encodings]
