"""Checkpoint -> one GGUF file, as llama.cpp and what is built on it load."""

from mergepipe.gguf.architecture import ARCHITECTURES
from mergepipe.gguf.vocabulary import TokenTable, token_table
from mergepipe.gguf.writing import KINDS, check_gguf, digest_in, write_gguf

__all__ = [
    "ARCHITECTURES",
    "KINDS",
    "TokenTable",
    "check_gguf",
    "digest_in",
    "token_table",
    "write_gguf",
]
