"""Tiny models of many architectures, made by transformers with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

TEXT = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
_IDS = torch.tensor([[1, 5, 9, 30, 7, 2]])
_PIXELS = torch.linspace(-1.0, 1.0, 3 * 8 * 8).reshape(1, 3, 8, 8)


@dataclass(frozen=True)
class Family:
    """An architecture: its class, a tiny configuration, and inputs for a forward pass."""

    name: str
    model: str
    config: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, torch.Tensor] = field(default_factory=lambda: {"input_ids": _IDS})
    auto: str = "AutoModelForCausalLM"

    def build(self, seed: int = 0) -> PreTrainedModel:
        """The model with random weights, the same for the same seed."""
        torch.manual_seed(seed)
        config: PretrainedConfig = getattr(transformers, self.config)(**self.settings)
        return getattr(transformers, self.model)(config).eval()

    def load(self, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model in `folder` by its auto class, and what loading it found amiss."""
        auto = getattr(transformers, self.auto)
        model, found = auto.from_pretrained(folder, output_loading_info=True)
        return model.eval(), found


def _t5() -> dict[str, Any]:
    return {
        "vocab_size": 96,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


_SEQ2SEQ = {"input_ids": _IDS, "decoder_input_ids": _IDS}
_MOE = {**TEXT, "num_local_experts": 3, "num_experts_per_tok": 2}
_LLAVA_IDS = torch.tensor([[1, 90, 90, 90, 90, 5, 2]])

FAMILIES = (
    Family("llama", "LlamaForCausalLM", "LlamaConfig", {**TEXT, "tie_word_embeddings": False}),
    Family("llama-tied", "LlamaForCausalLM", "LlamaConfig", {**TEXT, "tie_word_embeddings": True}),
    Family("qwen2", "Qwen2ForCausalLM", "Qwen2Config", TEXT),
    Family("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**TEXT, "head_dim": 4}),
    Family("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", {**TEXT, "head_dim": 4}),
    Family("phi", "PhiForCausalLM", "PhiConfig", TEXT),
    Family("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 96,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    Family("mixtral", "MixtralForCausalLM", "MixtralConfig", _MOE),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **TEXT,
            "head_dim": 4,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
        },
    ),
    Family("gpt_oss", "GptOssForCausalLM", "GptOssConfig", {**_MOE, "head_dim": 4}),
    Family(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": 96,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    Family(
        "lfm2",
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {**TEXT, "layer_types": ["conv", "full_attention"], "block_ff_dim": 32},
    ),
    Family(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **TEXT,
            "head_dim": 8,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    Family("bert-mlm", "BertForMaskedLM", "BertConfig", TEXT, auto="AutoModelForMaskedLM"),
    Family(
        "bert-classifier",
        "BertForSequenceClassification",
        "BertConfig",
        {**TEXT, "num_labels": 3},
        auto="AutoModelForSequenceClassification",
    ),
    Family(
        "t5", "T5ForConditionalGeneration", "T5Config", _t5(), _SEQ2SEQ, "AutoModelForSeq2SeqLM"
    ),
    Family(
        "bart",
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": 96,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 64,
        },
        _SEQ2SEQ,
        "AutoModelForSeq2SeqLM",
    ),
    Family(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": 96,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        {"input_features": torch.linspace(-1, 1, 320).reshape(1, 8, 40), "decoder_input_ids": _IDS},
        "AutoModelForSpeechSeq2Seq",
    ),
    Family(
        "wav2vec2",
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 32,
            "conv_dim": (8, 8),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
        {"input_values": torch.linspace(-1, 1, 400).reshape(1, 400)},
        "AutoModelForCTC",
    ),
    Family(
        "vit",
        "ViTForImageClassification",
        "ViTConfig",
        {**_VISION, "num_labels": 4},
        {"pixel_values": _PIXELS},
        "AutoModelForImageClassification",
    ),
    Family(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**TEXT, "projection_dim": 8},
            "vision_config": {**_VISION, "projection_dim": 8},
            "projection_dim": 8,
        },
        {"input_ids": _IDS, "pixel_values": _PIXELS},
        "AutoModel",
    ),
    Family(
        "resnet",
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 4},
        {"pixel_values": _PIXELS.repeat(1, 1, 4, 4)},
        "AutoModelForImageClassification",
    ),
    Family(
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
            "image_token_id": 90,
            "image_seq_length": 4,
        },
        {"input_ids": _LLAVA_IDS, "pixel_values": _PIXELS},
        "AutoModelForImageTextToText",
    ),
    Family(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1]},
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 16,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
        },
        auto="AutoModelForImageTextToText",
    ),
)


def perturbed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Move every weight of `model` a little, as a fine-tune would; tied ones stay tied."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model
