"""Tokenizers: what their tokens stand for, whether they agree, one vocabulary out of several."""

from mergepipe.tokenizer.aligning import AlignedRows, align_checkpoints
from mergepipe.tokenizer.checking import check_tokenizers
from mergepipe.tokenizer.choice import RowSource, TokenizerChoice
from mergepipe.tokenizer.conflicts import check_union
from mergepipe.tokenizer.outcome import (
    ResultTokenizer,
    check_samples,
    vocabulary_size,
    with_ids,
    with_rows,
)
from mergepipe.tokenizer.reading import read_vocabulary, tokenizer_file
from mergepipe.tokenizer.rewriting import result_tokenizer
from mergepipe.tokenizer.uniting import ModelRows, Union, unite
from mergepipe.tokenizer.vocabulary import ROLES, Token, Vocabulary

__all__ = [
    "ROLES",
    "AlignedRows",
    "ModelRows",
    "ResultTokenizer",
    "RowSource",
    "Token",
    "TokenizerChoice",
    "Union",
    "Vocabulary",
    "align_checkpoints",
    "check_samples",
    "check_tokenizers",
    "check_union",
    "read_vocabulary",
    "result_tokenizer",
    "tokenizer_file",
    "unite",
    "vocabulary_size",
    "with_ids",
    "with_rows",
]
