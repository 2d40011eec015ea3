"""What the layers of a model see of a few texts, with one layer of it in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mergepipe.checkpoint import Checkpoint, read_values
from mergepipe.errors import InputError, Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["EMBEDDING", "embedded", "layer_inputs"]

EMBEDDING = "model.embed_tokens.weight"


def embedded(base: Checkpoint, tokens: Sequence[int]) -> Tensor:
    """Give the embeddings of tokens: [tokens, hidden], fp64."""
    import torch

    width = base.tensors[EMBEDDING].shape[1]
    rows = {
        token: read_values(base, EMBEDDING, token * width, (token + 1) * width)
        for token in sorted(set(tokens))
    }
    return torch.stack([rows[token] for token in tokens]).double()


def layer_inputs(
    base: Checkpoint, texts: Sequence[Sequence[int]], device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Give, layer by layer, what enters it: [tokens, hidden] of every text, fp64.

    The layers are transformers' own, in fp64, so that neither threads nor the machine show in
    what is rounded to a stored dtype. Each text is run alone, without padding, and no adapter is
    forgotten.
    """
    import torch

    model = _skeleton(base, device)
    layers, kinds = list(model.layers), getattr(model.config, "layer_types", None)
    model.config.num_hidden_layers = 1
    states = tuple(embedded(base, text).to(device) for text in texts)
    for at in range(len(layers)):
        yield states
        if at + 1 == len(layers):
            return
        _fill(layers[at], base, f"model.layers.{at}.", device)
        model.layers = torch.nn.ModuleList([layers[at]])
        if kinds is not None:
            model.config.layer_types = [kinds[at]]
        with torch.inference_mode():
            states = tuple(_passed(model, state) for state in states)
        layers[at] = None


def _skeleton(base: Checkpoint, device: torch.device) -> Any:
    """Give the model without weights, and without the norm behind its last layer."""
    import torch
    import transformers

    auto: Any = transformers
    try:
        config = auto.AutoConfig.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            model = auto.AutoModel.from_config(config).eval()
        model.rotary_emb = type(model.rotary_emb)(config).to(device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        what = f"transformers cannot build it to run prompts: {error}"
        raise InputError(Problem(base.label, what, "correct its config.json")) from error
    model.norm = torch.nn.Identity()
    return model


def _fill(layer: Any, base: Checkpoint, prefix: str, device: torch.device) -> None:
    absent = [prefix + name for name in layer.state_dict() if prefix + name not in base.tensors]
    if absent:
        what = f"tensor '{absent[0]}' is missing, which its config.json asks for"
        raise InputError(Problem(base.label, what, "is the download complete?"))
    weights = {name: _whole(base, prefix + name).to(device) for name in layer.state_dict()}
    layer.load_state_dict(weights, assign=True)


def _whole(base: Checkpoint, name: str) -> Tensor:
    stored = base.tensors[name]
    return read_values(base, name, 0, stored.numel).reshape(stored.shape).double()


def _passed(model: Any, state: Tensor) -> Tensor:
    found: Tensor = model(inputs_embeds=state[None], use_cache=False).last_hidden_state
    return found[0]
