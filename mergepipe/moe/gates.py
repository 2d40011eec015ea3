"""The router's weights: for every layer and expert, a direction that its tokens point in.

The score of an expert for a token is the product of its gate with the token's hidden state. Modes,
as mergekit-moe defines them, where n(x) is x divided by its norm:

    cheap_embed          g = n( n(Σ embeddings of the positive prompts' tokens)
                              - n(Σ embeddings of the negative prompts' tokens) ), in every layer
    hidden, hidden_last  g = n( mean of p over the positive prompts
                              - mean of p over the negative prompts ), where p is what enters the
                              layer at a prompt's last token
    hidden_avg           the same, with p the mean over a prompt's tokens
    random               normal numbers
    uniform_random       uniform over ±1/√hidden, as `torch.nn.Linear` begins

"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from blake3 import blake3

from mergepipe.checkpoint import Checkpoint, torch_dtype
from mergepipe.errors import Problems
from mergepipe.kernels.random import stream_key
from mergepipe.moe.config import RANDOM, Mixture
from mergepipe.moe.noise import normals, uniforms
from mergepipe.moe.prompts import Prompts, tokenized
from mergepipe.moe.states import embedded, layer_inputs
from mergepipe.moe.targets import complete

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gate", "Router"]

_LEAST = 1e-8  # norms below are taken for it
_DEGENERATE = 5.0  # condition number above which mergekit warns


@dataclass(frozen=True)
class Router:
    """The gates of all layers. They are worked out when they are first asked for."""

    mode: str
    seed: int
    base: Checkpoint
    layers: int
    experts: int
    prompts: tuple[Prompts, ...]  # none in random modes
    device: str | None

    @classmethod
    def of(
        cls, mixture: Mixture, base: Checkpoint, device: str | None, problems: Problems
    ) -> Router:
        """Give the router of a mixture; prompts that cannot be read are faults."""
        return cls(
            mode=mixture.gate_mode,
            seed=mixture.recipe.seed,
            base=base,
            layers=complete(base.config)["num_hidden_layers"],
            experts=len(mixture.gated),
            prompts=() if mixture.gate_mode in RANDOM else tokenized(mixture, base, problems),
            device=device,
        )

    @property
    def digest(self) -> str:
        """Digest of all that the gates depend on beside the base's weights."""
        tokens = [[one.positive, one.negative] for one in self.prompts]
        cause = [self.mode, self.seed, self.layers, self.experts, tokens]
        return str(blake3(json.dumps(cause).encode()).hexdigest())

    @cached_property
    def gates(self) -> Tensor:
        """The gates: [layers, experts, hidden], fp64."""
        import torch

        if self.mode in RANDOM:
            return torch.stack([self._random(layer) for layer in range(self.layers)])
        if self.mode == "cheap_embed":
            gate = torch.stack([_of_embeddings(self.base, one) for one in self.prompts])
            return gate.expand(self.layers, -1, -1)
        return torch.stack(self._hidden())

    def _random(self, layer: int) -> Tensor:
        import torch

        width = complete(self.base.config)["hidden_size"]
        key = stream_key(self.seed, "router", f"model.layers.{layer}")
        count = self.experts * width
        if self.mode == "random":
            values = normals(key, 0, count)
        else:
            values = (2 * uniforms(key, 0, count) - 1) / math.sqrt(width)
        return torch.from_numpy(values).reshape(self.experts, width)

    def _hidden(self) -> list[Tensor]:
        import torch

        texts = [text for one in self.prompts for text in (*one.positive, *one.negative)]
        device = torch.device(self.device or "cpu")
        found = []
        for states in layer_inputs(self.base, texts, device):
            average = self.mode == "hidden_avg"
            points = [(state.mean(0) if average else state[-1]).cpu() for state in states]
            found.append(torch.stack(_directions(self.prompts, points)))
        return found

    def check(self, problems: Problems) -> None:
        """Work the gates out; warn of layers in which experts are hard to tell apart."""
        import torch

        if not self.gates.isfinite().all():
            what = f"its weights give gates that are not finite (gate_mode {self.mode})"
            problems.add(self.base.label, what, "fetch or train this model again")
            return
        conditions = torch.linalg.cond(self.gates)
        bad = [at for at in range(self.layers) if conditions[at] > _DEGENERATE]
        if bad:
            listed = f"layer{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}"
            which = "all layers" if len(bad) == self.layers else listed
            what = f"the gates of {which} are nearly alike, so some experts will hardly be used"
            problems.warn("gate_mode", f"{what}: are the prompts too similar?")


@dataclass(frozen=True, slots=True)
class Gate:
    """Some rows of one layer's gates, in a dtype, as a tensor that is read in runs."""

    router: Router
    layer: int
    rows: slice
    dtype: str

    def __getitem__(self, run: slice) -> Tensor:
        """Give a run of it."""
        rows = self.router.gates[self.layer, self.rows]
        return rows.to(torch_dtype(self.dtype)).flatten()[run]


def _unit(values: Tensor) -> Tensor:
    found: Tensor = values / values.norm().clamp(min=_LEAST)
    return found


def _of_embeddings(base: Checkpoint, prompts: Prompts) -> Tensor:
    positive, negative = (
        [token for text in texts for token in text]
        for texts in (prompts.positive, prompts.negative)
    )
    direction = _unit(embedded(base, positive).sum(0))
    return _unit(direction - _unit(embedded(base, negative).sum(0))) if negative else direction


def _directions(prompts: Sequence[Prompts], points: Sequence[Tensor]) -> list[Tensor]:
    """Give an expert's direction of the points of its prompts, which stand in order."""
    import torch

    found, at = [], 0
    for one in prompts:
        middle, end = at + len(one.positive), at + len(one.positive) + len(one.negative)
        direction = torch.stack(list(points[at:middle])).mean(0)
        if one.negative:
            direction = direction - torch.stack(list(points[middle:end])).mean(0)
        found.append(_unit(direction))
        at = end
    return found
