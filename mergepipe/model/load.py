"""A checkpoint folder as a `LocalModel`: no code from it is run, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer

from mergepipe.errors import InputError, Problem
from mergepipe.model.local import LocalModel

__all__ = ["local_model"]

_MAX_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
_MAX_LENGTH = 2048  # tokens, where the model's config names no limit
_transformers: Any = transformers  # half of it is untyped


def local_model(
    path: Path, name: str, *, dtype: str = "float32", device: str = "cpu"
) -> LocalModel:
    """Load the causal language model of a checkpoint folder: config, weights and tokenizer.

    Raises
    ------
    InputError
        if a file is missing or broken, or the weights do not fill the model.

    """
    if not (path / "config.json").is_file():
        raise InputError(Problem(str(path), "holds no config.json, so no model to ask"))
    with _quiet():
        tokenizer = _tokenizer(path)
        prefix, ends = _special_ids(path, tokenizer)
        module = _module(path, dtype).to(device)
    config = module.config.get_text_config()
    limits = (getattr(config, key, None) for key in _MAX_LENGTH_NAMES)
    max_length = next((limit for limit in limits if isinstance(limit, int)), _MAX_LENGTH)
    return LocalModel(name, module, tokenizer, prefix, ends, max_length)


def _module(path: Path, dtype: str) -> Any:
    try:
        module, loading = _transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(Problem(str(path), f"cannot be loaded: {error}")) from error
    absent = sorted(map(str, loading["missing_keys"] or loading["mismatched_keys"]))
    if absent:  # transformers would go on with random weights
        raise InputError(Problem(str(path), f"no tensor of the right shape for {absent[0]}"))
    # Else the folder's own sampling settings would mix with what is asked for.
    module.generation_config = _transformers.GenerationConfig()
    return module


def _tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json` as it is: AutoTokenizer may rebuild it by class and change ids."""
    file = path / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            loaded = _transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            tokenizer = loaded.backend_tokenizer
    except Exception as error:  # tokenizers raises the bare class
        raise InputError(Problem(str(path), f"has no usable tokenizer: {error}")) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_ids(path: Path, tokenizer: Tokenizer) -> tuple[int, frozenset[int]]:
    """Find the prefix token, and the tokens that end a text.

    Ids that the tokenizer does not hold as special tokens are defaults of some config class.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found: dict[str, list[int]] = {"bos": [], "eos": []}
    for file in ("tokenizer_config.json", "generation_config.json", "config.json"):
        settings = _read_json(path / file)
        for role in found:
            token, listed = settings.get(f"{role}_token"), settings.get(f"{role}_token_id")
            content = token.get("content") if isinstance(token, dict) else token
            named = tokenizer.token_to_id(content) if isinstance(content, str) else None
            listed = listed if isinstance(listed, list) else [listed]
            found[role] += [i for i in listed if i in special] if named is None else [named]
    prefixes = found["bos"] or found["eos"]
    if not prefixes:
        raise InputError(Problem(str(path), "its tokenizer has neither a BOS nor an EOS token"))
    return prefixes[0], frozenset(found["eos"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(Problem(str(path), f"not JSON: {error}")) from error
    return settings if isinstance(settings, dict) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal."""
    log = _transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
