"""LoRA adapters of tiny models, applied by PEFT and by us."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mergepipe.checkpoint import ModelSource, open_checkpoint, read_values
from mergepipe.errors import Problems


def by_peft(base, adapter):
    """The state dict of `base` with `adapter` merged in by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def by_us(base, adapter):
    """The same, read as a recipe's `{path, adapter}` is."""
    problems = Problems()
    checkpoint = open_checkpoint(ModelSource("m", base, None, None, adapter), problems)
    problems.raise_any()
    return {
        name: read_values(checkpoint, name, 0, stored.numel).reshape(stored.shape)
        for name, stored in checkpoint.tensors.items()
    }
