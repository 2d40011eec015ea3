"""Tiny models of every kind that can be asked, with byte-level tokenizers of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import edit_json, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

SENTENCES = [
    "In the beginning was the word, and the word was with the model.",
    "Der Fuchs überquert die Straße; größere Bären schlafen.",
    "def add(a, b):\n    return a + b\n",
    "12+30=42\n7+8=15\n",
]
LIMIT = 48
_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.3}
_BERT = {
    **_SIZES,
    "vocab_size": 320,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": LIMIT,
    "pad_token_id": 2,
}
_LLAMA = {
    **_SIZES,
    "vocab_size": 320,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": LIMIT,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_BART = {
    "vocab_size": 320,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": LIMIT,
    "init_std": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5 = {
    "vocab_size": 320,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "n_positions": LIMIT,
    "initializer_factor": 3.0,
    "pad_token_id": 2,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}
# Name -> the module, and what the tokenizer puts around a text.
_MODULES: dict[str, tuple[Any, Any, str]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**_LLAMA, tie_word_embeddings=True), "$A"),
    "untied": (LlamaForCausalLM, LlamaConfig(**_LLAMA, tie_word_embeddings=False), "$A"),
    "bert": (BertForMaskedLM, BertConfig(**_BERT), "<s> $A </s>"),
    "roberta": (
        RobertaForMaskedLM,
        RobertaConfig(**_BERT | {"max_position_embeddings": LIMIT + 3}, bos_token_id=0, eos_token_id=1),
        "<s> $A </s>",
    ),
    "t5": (T5ForConditionalGeneration, T5Config(**_T5), "$A </s>"),
    "bart": (BartForConditionalGeneration, BartConfig(**_BART), "<s> $A </s>"),
    "bert_classes": (
        BertForSequenceClassification,
        BertConfig(**_BERT, id2label={0: "bad", 1: "so so", 2: "good"}),
        "<s> $A </s>",
    ),
    "llama_classes": (LlamaForSequenceClassification, LlamaConfig(**_LLAMA, num_labels=3), "$A"),
}  # fmt: skip


def small_tokenizer(around: str = "<s> $A </s>") -> Tokenizer:
    """320 tokens: <s>, </s>, <pad>, <mask>, 256 bytes, and merges of the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<pad>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    # What must not reach the scores: truncation and padding of the tokenizer.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    return tokenizer


def askable(kind: str, folder: Path, *, seed: int = 0, dtype: str = "float32") -> Path:
    """Write a model of this kind, of random weights, with its tokenizer."""
    module_class, config, around = _MODULES[kind]
    torch.manual_seed(seed)
    module_class(config).to(getattr(torch, dtype)).save_pretrained(folder)
    small_tokenizer(around).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    if kind == "bart":
        edit_json(folder / "config.json", forced_bos_token_id=0)  # which new classes do not save
    return folder
