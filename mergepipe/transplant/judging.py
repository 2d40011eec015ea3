"""Bits per byte of a text by a model with other tables, of which few rows need be made.

Tokens of the text that both vocabularies have keep their rows. Of the missing ones those that
occur are wanted, and a sample of those that do not: each of these stands for its share in what
the softmax is divided by.

    z_t = exp l_t for tokens that occur or are kept, (missing / sampled) exp l_t for sampled ones
    bits per byte = - Σ log2(z_next / Σ_t z_t) / bytes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergepipe.checkpoint import Checkpoint, read_values
from mergepipe.errors import InputError, Problem
from mergepipe.tokenizer.encoding import encoder
from mergepipe.transplant.kinds import load_transplant
from mergepipe.transplant.task import Ids, Side, Task
from mergepipe.transplant.texts import read_pieces

__all__ = ["Judge", "judge_of", "judge_with"]

_WINDOW = 1024  # tokens
_SMALL = 1 << 30  # bytes as fp32 up to which a model is judged in fp32; larger ones in bf16


@dataclass(frozen=True)
class Judge:
    """A model and a text; `positions` in `task.missing` are those whose rows are wanted.

    `occurring` of them are in the text, the others a sample.

    The tables that it puts in the model have the rows `kept` of the base (-1: their mean), and
    then the wanted ones. `pieces` are ids in those tables; `weights` are added to the logits.
    """

    task: Task
    module: Any  # a transformers module: its forward is untyped
    positions: Ids
    occurring: int
    kept: Tensor
    pieces: tuple[Tensor, ...]
    weights: Tensor
    size: int  # bytes of the text
    window: int

    def bits(self, rows: Tensor) -> float:
        """Give bits per byte with these rows [len(positions), columns] at the wanted tokens.

        In a model with a head of its own, the other table's rows are the means of the pieces that
        spell the tokens.
        """
        with _restored(self.module) as tables:
            for side, layers in tables.items():
                made = rows if side == self.task.side else self._spelled(side)
                weight = torch.nn.Parameter(self._table(layers[0].weight, made), False)
                for layer in layers:
                    layer.weight = weight
            head = self.module.get_output_embeddings()
            if getattr(head, "bias", None) is not None:
                mean = head.bias.float().mean().expand(len(self.positions), 1)
                bias = self._table(head.bias[:, None], mean)[:, 0]
                head.bias = torch.nn.Parameter(bias, False)
            return self._nats() / math.log(2) / self.size

    def _spelled(self, side: Side) -> Tensor:
        assert self.task.other is not None, "a model with two tables"
        method = load_transplant("subword")
        other = replace(self.task, side=side, base=self.task.other)
        made: Tensor = method.fit(other, method.parameters())(self.positions).rows
        return made

    def _table(self, whole: Tensor, made: Tensor) -> Tensor:
        kept = whole[self.kept.clamp(min=0).to(whole.device)]
        kept[self.kept < 0] = whole.float().mean(0).to(whole.dtype)
        return torch.cat([kept, made.to(whole)])

    @torch.inference_mode()
    def _nats(self) -> float:
        total = 0.0
        for piece in self.pieces:
            for start in range(0, len(piece) - 1, self.window):
                part = piece[start : start + self.window + 1].to(self.module.device)
                logits = self.module(input_ids=part[None, :-1], use_cache=False).logits[0].float()
                logits += self.weights.to(logits)
                losses = torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum")
                total += float(losses)
        return total


@contextmanager
def _restored(module: Any) -> Iterator[dict[Side, tuple[Any, ...]]]:
    """Give the layers that each table is the weight of; what they had, they get back."""
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    layers = (embedding, head)
    before = [(one.weight, getattr(one, "bias", None)) for one in layers]
    embedding.padding_idx = None  # an id of the vocabulary that the model had
    tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    try:
        yield {"input": layers} if tied else {"input": (embedding,), "output": (head,)}
    finally:
        for layer, (weight, bias) in zip(layers, before, strict=True):
            layer.weight = weight
            if bias is not None:
                layer.bias = bias


def judge_of(task: Task, file: Path, *, most_bytes: int, sample: int) -> Judge:
    """Load the model of a task, and read at most so many bytes of a text.

    `file` is JSON Lines with `text`, or a plain text.

    Raises
    ------
    InputError
        if the text cannot be read or holds nothing, or the model is no causal language model.

    """
    assert task.checkpoint is not None, "a model that can be asked"
    texts = list(read_pieces(file, most_bytes))
    if not any(text.strip() for text in texts):
        raise InputError(Problem(str(file), "holds no text to judge by"))
    model = _model(task.checkpoint, str(task.device))
    return judge_with(task, model.module, texts, model.loaded.max_length, sample=sample)


def judge_with(task: Task, module: Any, texts: Sequence[str], limit: int, *, sample: int) -> Judge:
    """Judge by texts and a causal model of transformers that sees up to `limit` tokens."""
    found = encoder(task.match.donor).encode_batch(list(texts))
    ids = [np.array(one.ids, np.int64) for one in found]
    seen = np.unique(np.concatenate(ids))
    occurring = np.flatnonzero(np.isin(task.missing, seen))
    absent = np.setdiff1d(np.arange(len(task.missing)), occurring)
    drawn = np.random.Generator(np.random.Philox(key=task.seed)).permutation(absent)[:sample]
    positions = np.sort(np.concatenate([occurring, drawn]))
    copied = np.fromiter(task.match.ids, np.int64, len(task.match.ids))
    lost = np.setdiff1d(seen, np.concatenate([copied, task.missing]))
    sources = np.fromiter(task.match.ids.values(), np.int64, len(copied))
    kept = np.concatenate([sources, np.full(len(lost), -1)])
    order = np.concatenate([copied, lost, task.missing[positions]])
    places = np.full(int(order.max()) + 1, -1)
    places[order] = np.arange(len(order))
    weights = torch.zeros(len(order))
    stands_for = torch.from_numpy(np.isin(positions, drawn))
    if len(drawn):
        weights[len(kept) :][stands_for] = math.log(len(absent) / len(drawn))
    return Judge(
        task=task,
        module=module,
        positions=positions,
        occurring=len(occurring),
        kept=torch.from_numpy(kept),
        pieces=tuple(torch.from_numpy(places[one]) for one in ids),
        weights=weights,
        size=sum(len(text.encode()) for text in texts),
        window=min(_WINDOW, limit),
    )


def _model(checkpoint: Checkpoint, device: str) -> Any:
    from mergepipe.model.causal import CAUSAL
    from mergepipe.model.load import model_of_tensors

    stored = checkpoint.tensors
    size = 4 * sum(one.numel for one in stored.values())
    dtype = torch.float32 if size <= _SMALL else torch.bfloat16
    tensors = {
        name: read_values(checkpoint, name, 0, one.numel).reshape(one.shape).to(device, dtype)
        for name, one in stored.items()
        if one.is_float
    }
    name = str(dtype).removeprefix("torch.")
    model = model_of_tensors(
        tensors,
        checkpoint.folder,
        checkpoint.label,
        "a transplant's base",
        dtype=name,
        device=device,
    )
    if model.family is not CAUSAL:
        what = "is no causal language model, so no text can say which rows are better"
        raise InputError(Problem(checkpoint.label, what, "leave `text` out, or name a method"))
    return model
