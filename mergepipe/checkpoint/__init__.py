"""Checkpoints on disk: headers read and checked first, then values, one range at a time."""

from mergepipe.checkpoint.config import depth_of, family, with_layers, with_vocabulary
from mergepipe.checkpoint.folder import is_weight_file
from mergepipe.checkpoint.names import embedding_name, layer_of, stacks
from mergepipe.checkpoint.opening import Checkpoint, open_checkpoint
from mergepipe.checkpoint.source import ModelSource
from mergepipe.checkpoint.tensors import (
    DTYPES,
    DType,
    Held,
    LowRank,
    Stored,
    read_into,
    read_range,
    torch_dtype,
)
from mergepipe.checkpoint.values import read_values

__all__ = [
    "DTYPES",
    "Checkpoint",
    "DType",
    "Held",
    "LowRank",
    "ModelSource",
    "Stored",
    "depth_of",
    "embedding_name",
    "family",
    "is_weight_file",
    "layer_of",
    "open_checkpoint",
    "read_into",
    "read_range",
    "read_values",
    "stacks",
    "torch_dtype",
    "with_layers",
    "with_vocabulary",
]
