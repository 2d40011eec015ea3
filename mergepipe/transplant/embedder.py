"""Texts -> vectors, by a model in a local folder: a sentence encoder, or a static table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from mergepipe.errors import InputError, Problem

__all__ = ["Embed", "load_embedder"]

# Texts -> vectors, fp32 [texts, dimensions]; zeros for a text that it cannot represent.
Embed: TypeAlias = Callable[[Sequence[str]], Tensor]

_TABLES = ("embeddings", "embedding.weight")  # what model2vec and WordLlama call theirs
_BATCH = 256  # texts, of one length in tokens


def load_embedder(folder: Path, device: torch.device) -> Embed:
    """Load the embedder of a folder; nothing is fetched, and no code of the folder is run.

    A static table is a `model.safetensors` with a matrix `embeddings` (model2vec; with `mapping`
    and `weights` by token, where they are there) or `embedding.weight`: a text has the mean of its
    tokens' rows. Any other folder is a `transformers` encoder: a text has the mean of its last
    hidden states. Both need a `tokenizer.json`.

    Raises
    ------
    InputError
        if the folder holds neither, or what it holds cannot be read.

    """
    tokenizer = _tokenizer(folder)
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file) if file.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise InputError(Problem(str(file), f"cannot be read: {error}")) from error
    table = next((tensors[name] for name in _TABLES if name in tensors), None)
    if table is not None and table.ndim == 2:  # noqa: PLR2004 - a matrix
        return _static(folder, tokenizer, table, tensors)
    return _encoder(folder, tokenizer, device)


def _tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(Problem(str(folder), "no tokenizer.json", "name an embedder's folder"))
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise InputError(Problem(str(file), f"no tokenizer: {error}")) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _static(folder: Path, tokenizer: Tokenizer, table: Tensor, tensors: dict[str, Tensor]) -> Embed:
    """Mean of w[t] E[m[t]] over the tokens t of a text, without the unknown one."""
    size = tokenizer.get_vocab_size()
    mapping = tensors.get("mapping", torch.arange(len(table)))
    weights = tensors.get("weights", torch.ones(len(mapping))).float()
    if len(mapping) < size or len(weights) < size or int(mapping.max()) >= len(table):
        what = f"{len(table)} rows do not serve the {size} tokens of its tokenizer.json"
        raise InputError(Problem(str(folder), what))
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])

    def embed(texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), table.shape[1])
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for row, encoding in enumerate(encodings):
            ids = torch.tensor([i for i in encoding.ids if i != unknown], dtype=torch.int64)
            if len(ids):
                rows[row] = (table[mapping[ids]].float() * weights[ids, None]).mean(0)
        return rows

    return embed


def _loaded(folder: Path) -> Any:
    """Load an encoder, all of whose weights its files hold."""
    from transformers import AutoModel

    try:
        with _quiet():
            model, told = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(Problem(str(folder), f"no sentence encoder: {said}")) from error
    # transformers draws at random what the files lack; the pooler alone is of no use here.
    lacking = sorted(name for name in told["missing_keys"] if "pooler" not in name)
    if lacking:
        what = f"no sentence encoder: its weights lack {lacking[0]}"
        raise InputError(Problem(str(folder), what))
    return model.eval()


def _encoder(folder: Path, tokenizer: Tokenizer, device: torch.device) -> Embed:
    """Mean of the last hidden states, special tokens included; texts of one length together."""
    model = _loaded(folder).to(device)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit:
        # Some place the first token behind the id of the padding: RoBERTa's 514 are 512.
        tokenizer.enable_truncation(limit - 2)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), model.config.hidden_size)
        lengths: dict[int, list[tuple[int, list[int]]]] = {}
        for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
            if encoding.ids:
                lengths.setdefault(len(encoding.ids), []).append((row, encoding.ids))
        for same in lengths.values():
            for start in range(0, len(same), _BATCH):
                _embed_batch(model, same[start : start + _BATCH], rows)
        return rows

    return embed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a bar, and from telling of weights that are not used."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _embed_batch(model: Any, batch: list[tuple[int, list[int]]], rows: Tensor) -> None:
    """Put the vectors of texts of one length in their rows."""
    ids = torch.tensor([one for _, one in batch], device=model.device)
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    rows[[row for row, _ in batch]] = states.float().mean(1).cpu()
