"""Tiny Llamas with tokenizers of their own: words, special tokens, and rows for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints import edit_json, llama, write_json
from merges import tensors

from mergepipe.pipeline import Prepared, prepare

SPECIAL = ("<unk>", "<s>", "</s>")
WORDS = tuple(f"_tok_{n}" for n in range(3, 64))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def tokenizer_json(words: Sequence[str], added: Mapping[str, int]) -> dict[str, Any]:
    """A BPE without merges, whose ids are places in `words`; `added` tokens are special."""
    listed = [
        {"id": number, "content": token, **dict.fromkeys(_FLAGS, False), "special": True}
        for token, number in added.items()
    ]
    model = {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}, "merges": []}
    model |= {"unk_token": "<unk>", "byte_fallback": False, "fuse_unk": False}
    return {"version": "1.0", "added_tokens": listed, "model": model}


def worded(
    folder: Path,
    added: Sequence[str] = (),
    *,
    words: Sequence[str] = (*SPECIAL, *WORDS),
    rows: int | None = None,
    seed: int = 0,
    tied: bool = False,
    dtype: str = "F32",
    **settings: Any,
) -> Path:
    """Write a model of 64 words, then `added` special tokens; `settings` are the tokenizer's."""
    numbers = {token: words.index(token) for token in SPECIAL}
    numbers |= {token: len(words) + n for n, token in enumerate(added)}
    vocab = rows or len(words) + len(added)
    llama(folder, seed=seed, hidden=32, vocab=vocab, dtype=dtype, tied=tied)
    write_json(folder / "tokenizer.json", tokenizer_json(words, numbers))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", fast | roles | settings)
    edit_json(folder / "config.json", bos_token_id=numbers["<s>"], eos_token_id=numbers["</s>"])
    return folder


def ids_of(folder: Path) -> dict[str, int]:
    """The ids of a saved tokenizer, added tokens included."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {one["content"]: one["id"] for one in stored["added_tokens"]}
    return {**stored["model"]["vocab"], **added}


def rows_of(folder: Path, name: str = EMBEDDING) -> dict[str, Any]:
    """The row of each token."""
    table = tensors(folder)[name]
    ids = ids_of(folder).items()
    return {token: table[number] for token, number in ids if number < len(table)}


def planned(folder: Path, models: Mapping[str, Path], tokenizer: Any, /, **merge: Any) -> Prepared:
    """Prepare a recipe that averages the models, unless `merge` says otherwise."""
    fields = {"method": "linear", "models": {label: {} for label in models}} | merge
    recipe = {
        "mergepipe": 1,
        "models": {label: str(path) for label, path in models.items()},
        "merge": fields,
        "tokenizer": tokenizer,
    }
    return prepare(write_json(folder / "recipe.yaml", recipe), out=folder / "merged")
