"""The architectures that dense models can become: names of their tensors, and configurations.

Tensors are named as checkpoints on the hub name them, one matrix an expert. Loaders that keep the
experts of a layer in one tensor join them when they load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["MATRICES", "TARGETS", "Target", "complete"]

MATRICES = ("gate_proj", "up_proj", "down_proj")  # of a dense MLP
_ATTENTION = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_HEAD = "lm_head.weight"

# What a config.json of a family means where it is silent, as far as mixtures mean otherwise.
_LLAMA: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}
_QWEN: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
_DENSE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": {
            **_LLAMA,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        "qwen2": _QWEN,
        "qwen3": {**_QWEN, "head_dim": 128, "attention_bias": False},
    }
)
_THETA = 10000.0
_ROPE = ("rope_theta", "rope_parameters")

_ANY_MIXTURE: Mapping[str, Any] = {"output_router_logits": False, "router_aux_loss_coef": 0.001}
_QWEN_MIXTURE: Mapping[str, Any] = {
    **_ANY_MIXTURE,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "use_sliding_window": False,
    "sliding_window": None,
}
_DENSE_ONLY = ("auto_map", "mlp_bias", "pretraining_tp", "attention_bias")


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture: which dense models it can be made from, and what its tensors are called."""

    name: str  # as mergekit displays it; `architecture` gives its beginning
    model_type: str
    architecture: str
    dense: tuple[str, ...]
    shared: int  # how many shared experts it has
    block: str
    matrices: tuple[str, str, str]  # its names of MATRICES
    attention: tuple[str, ...]
    settings: Mapping[str, Any]
    count: str  # the field that holds the number of experts
    widths: tuple[str, ...] = ()  # fields that hold the width of an expert, beside the dense one
    drops: tuple[str, ...] = _DENSE_ONLY  # fields of dense models that it has not
    optional: tuple[str, ...] = ()  # of the attention, copied where the base has them
    zeros: tuple[str, ...] = ()  # of the attention, zero where the base lacks them

    def expert(self, layer: int, at: int, matrix: str) -> str:
        """Give the name of a matrix of an expert."""
        own = self.matrices[MATRICES.index(matrix)]
        return f"model.layers.{layer}.{self.block}.experts.{at}.{own}.weight"

    def gate(self, layer: int) -> str:
        """Give the name of the router's matrix: a row an expert."""
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def shared_expert(self, layer: int, matrix: str) -> str:
        """Give the name of a matrix of the shared expert."""
        return f"model.layers.{layer}.{self.block}.shared_expert.{matrix}.weight"

    def shared_gate(self, layer: int) -> str:
        """Give the name of the shared expert's gate."""
        return f"model.layers.{layer}.{self.block}.shared_expert_gate.weight"

    def dense_names(self, layers: int) -> tuple[str, ...]:
        """Give the names of the tensors that are the base's, in the order of storage."""
        inner = (*_NORMS, *(f"self_attn.{name}" for name in self.attention))
        stack = (f"model.layers.{layer}.{name}" for layer in range(layers) for name in inner)
        return ("model.embed_tokens.weight", *stack, "model.norm.weight", _HEAD)

    def may_lack(self, name: str) -> bool:
        """Tell whether a base need not have the tensor."""
        return name == _HEAD or name.endswith(self.optional)

    def is_zero(self, name: str) -> bool:
        """Tell whether the tensor is zero where the base lacks it."""
        return name.endswith(self.zeros)

    def config(self, dense: Mapping[str, Any], experts: int, per_token: int) -> dict[str, Any]:
        """Give the configuration of a mixture of models that are configured like `dense`."""
        settings = {k: v for k, v in complete(dense).items() if k not in self.drops}
        return {
            **settings,
            "architectures": [self.architecture],
            "model_type": self.model_type,
            self.count: experts,
            "num_experts_per_tok": per_token,
            **dict.fromkeys(self.widths, settings["intermediate_size"]),
            **self.settings,
        }


def complete(dense: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a dense configuration leaves to the defaults of its family."""
    rope = {} if any(name in dense for name in _ROPE) else {"rope_theta": _THETA}
    settings = {**_DENSE[dense["model_type"]], **rope, **dense}
    if settings.get("num_key_value_heads") is None:  # then there is one for each
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return settings


TARGETS = (
    Target(
        name="Mixtral",
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        dense=("llama", "mistral"),
        shared=0,
        block="block_sparse_moe",
        matrices=("w1", "w3", "w2"),
        attention=_ATTENTION,
        settings=_ANY_MIXTURE,
        count="num_local_experts",
    ),
    Target(
        name="Qwen MoE",
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        dense=("llama", "mistral", "qwen2"),
        shared=1,
        block="mlp",
        matrices=MATRICES,
        attention=(*_ATTENTION, *_BIASES),
        settings=_QWEN_MIXTURE,
        count="num_experts",
        widths=("moe_intermediate_size", "shared_expert_intermediate_size"),
        drops=(*_DENSE_ONLY, "layer_types"),
        zeros=_BIASES,
    ),
    Target(
        name="Qwen3 MoE",
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        dense=("qwen3",),
        shared=0,
        block="mlp",
        matrices=MATRICES,
        attention=(*_ATTENTION, *_BIASES, "o_proj.bias", "q_norm.weight", "k_norm.weight"),
        settings=_QWEN_MIXTURE,
        count="num_experts",
        widths=("moe_intermediate_size",),
        drops=("auto_map", "layer_types"),
        optional=(*_BIASES, "o_proj.bias"),
    ),
)
