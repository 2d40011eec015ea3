"""Tiny Llamas with a tokenizer of words, and what a transplant makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints import edit_json, llama
from safetensors.torch import load_file, save_file
from torch import Tensor
from transplant_cases import words

from mergepipe.pipeline import REPORT_FILE, merge, prepare_transplant

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
WORDS = (*LETTERS, "▁", "▁the", "▁cat", "▁dog", "ing", "ed", "▁sing", "at")


def write_model(
    folder: Path, texts: Sequence[str] = WORDS, *, padding: int = 0, seed: int = 0, **config: Any
) -> Path:
    """Write a Llama whose tokens are `<unk>` and these, with `padding` rows more."""
    llama(folder, seed=seed, vocab=len(texts) + 1 + padding, **config)
    edit_json(folder / "config.json", bos_token_id=0, eos_token_id=0)
    words(folder, texts)
    return folder


def transplant(
    model: Path, donor: Path, out: Path, method: str = "subword", *settings: str, **options: Any
) -> dict[str, Tensor]:
    """Give a model the donor's tokenizer; the tensors of the result."""
    prepared = prepare_transplant(str(model), str(donor), method, settings, out=out, **options)
    merge(prepared, overwrite=True, sync=False)
    return tensors(out)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of one shard."""
    return load_file(folder / "model.safetensors")


def set_tensor(folder: Path, name: str, value: Tensor) -> None:
    """Put another tensor in a checkpoint."""
    held = tensors(folder) | {name: value.contiguous()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def report(folder: Path) -> dict[str, Any]:
    """What a transplant said of itself."""
    (said,) = json.loads((folder / REPORT_FILE).read_bytes()).values()
    return said
