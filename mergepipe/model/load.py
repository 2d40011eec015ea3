"""A checkpoint folder, or weights in memory, as a `LocalModel`.

No code from a folder is run, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.model.causal import CAUSAL
from mergepipe.model.classifier import CLASSIFIER
from mergepipe.model.companions import Companions, companions_of
from mergepipe.model.fingerprint import fingerprint_of, precision_of, weight_digests
from mergepipe.model.loaded import Family, Loaded, Special
from mergepipe.model.local import LocalModel
from mergepipe.model.masked import MASKED
from mergepipe.model.seq2seq import SEQ2SEQ
from mergepipe.model.special import read_special, read_tokenizer

__all__ = ["local_model", "model_of_tensors"]

_MAX_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
_MAX_LENGTH = 2048  # tokens, where the model's config names no limit
_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "ForSequenceClassification": CLASSIFIER,
        "ForMaskedLM": MASKED,
        "ForPreTraining": MASKED,  # a masked model that also told next sentences
    }
)
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError)
_transformers: Any = transformers  # half of it is untyped


def local_model(
    path: Path, name: str, *, dtype: str = "float32", device: str = "cpu"
) -> LocalModel:
    """Load the model of a checkpoint folder: config, weights and tokenizer.

    What it is for follows from the architecture that its config names: a causal or masked language
    model, an encoder-decoder or a classifier. `dtype` is torch's name for a float type.

    Raises
    ------
    InputError
        if a file is missing or broken, or the weights do not fill the model.

    """
    companions = companions_of(path)
    fingerprint = fingerprint_of(companions, precision_of(dtype, device), weight_digests(path))
    with _quiet(), _loading(str(path)):
        config = _transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        found = getattr(_transformers, _family(config).auto).from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return _asked(name, _whole(found, str(path)), companions, fingerprint, device)


def model_of_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    name: str,
    made_of: object,
    *,
    dtype: str = "float32",
    device: str = "cpu",
) -> LocalModel:
    """Make a model of the tensors of a checkpoint, which need be in no file.

    It is what `local_model` makes of a folder with these tensors beside the files of `folder`.
    Those that are on the device and of the dtype become its parameters as they are, not copies.
    `made_of` is JSON that tells these tensors from others, for the fingerprint.

    Raises
    ------
    InputError
        if the configuration is not understood, or the tensors do not fill the model.

    """
    companions = companions_of(folder, name)
    fingerprint = fingerprint_of(companions, precision_of(dtype, device), made_of)
    with _quiet(), _loading(name):
        settings = dict(companions.settings)
        kind = settings.get("model_type")
        if kind not in _transformers.CONFIG_MAPPING:
            raise InputError(Problem(name, f"no architecture for model_type {kind!r}"))
        config = _transformers.CONFIG_MAPPING[kind].from_dict(settings)
        with torch.device("meta"):
            model_class = type(getattr(_transformers, _family(config).auto).from_config(config))
        found = model_class.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
    return _asked(name, _whole(found, name), companions, fingerprint, device)


def _family(config: Any) -> Family:
    """Tell what a model is for by the architecture that its configuration names."""
    for architecture in config.architectures or ():
        for ending, family in _FAMILIES.items():
            if architecture.endswith(ending):
                return family
    return SEQ2SEQ if config.is_encoder_decoder else CAUSAL


def _whole(found: tuple[Any, Mapping[str, Any]], where: str) -> Any:
    """Give the module, if every parameter has a tensor: transformers would draw the others."""
    module, loading = found
    absent = sorted(map(str, loading["missing_keys"] or loading["mismatched_keys"]))
    if absent:
        raise InputError(Problem(where, f"no tensor of the right shape for {absent[0]}"))
    return module


def _asked(
    name: str, module: Any, companions: Companions, fingerprint: str, device: str
) -> LocalModel:
    family = _family(module.config)
    # Else the folder's own sampling settings would mix with what is asked for.
    module.generation_config = _transformers.GenerationConfig()
    with _quiet():
        tokenizer = read_tokenizer(companions)
    special = read_special(companions, tokenizer)
    _check(family, special, companions.where)
    if getattr(module.config.get_text_config(), "pad_token_id", None) is None:
        module.config.pad_token_id = special.pad  # by which classifiers find the last token
    loaded = Loaded(
        name, module.to(device), tokenizer, special, _max_length(module), companions.template
    )
    return LocalModel(name, fingerprint, family, loaded)


def _check(family: Family, special: Special, where: str) -> None:
    """Refuse a tokenizer without the tokens that models of this kind need."""
    if family is CAUSAL and special.prefix is None:
        raise InputError(Problem(where, "its tokenizer has neither a BOS nor an EOS token"))
    if family is MASKED and special.mask is None:
        raise InputError(Problem(where, "its tokenizer has no mask token"))
    if family is SEQ2SEQ and not special.start:
        raise InputError(Problem(where, "its config names no decoder_start_token_id"))


def _max_length(module: Any) -> int:
    config = module.config.get_text_config()
    limits = (getattr(config, key, None) for key in _MAX_LENGTH_NAMES)
    limit = next((limit for limit in limits if isinstance(limit, int)), _MAX_LENGTH)
    # RoBERTa counts positions from the one after the padding's.
    tables = (one for key, one in module.named_modules() if key.endswith("position_embeddings"))
    unused = (one.padding_idx for one in tables if getattr(one, "padding_idx", None) is not None)
    return limit - next((first + 1 for first in unused if first), 0)


@contextmanager
def _loading(where: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise InputError(Problem(where, f"cannot be loaded: {error}")) from error


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
