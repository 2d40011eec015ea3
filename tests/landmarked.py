"""Tasks for transplant methods that look at embeddings alone: tables are tensors."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from mergepipe.tokenizer.matching import Match
from mergepipe.tokenizer.vocabulary import Token, Vocabulary
from mergepipe.transplant import Approximation, Ids, Task, load_transplant


class Rows:
    """A table that is a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.rows, self.columns = values.shape

    def __getitem__(self, ids: Ids) -> Tensor:
        """Give the rows of these ids."""
        return self.values[torch.from_numpy(ids)].float()


def vocabulary(size: int) -> Vocabulary:
    """Tokens `0`, `1` and so on."""
    nothing: MappingProxyType[str, int] = MappingProxyType({})
    tokens = {n: Token(n, str(n), "piece", str(n).encode(), False) for n in range(size)}
    return Vocabulary(
        "made", Path("made"), "bytelevel", "BPE", tokens, nothing, False, nothing, nothing
    )


def task(base: Tensor, donor: Tensor, known: int, **more: object) -> Task:
    """The first `known` rows are those of shared tokens; the donor's others are missing."""
    ours, theirs = vocabulary(len(base)), vocabulary(len(donor))
    same = {number: number for number in range(known)}
    missing = np.arange(known, len(donor))
    pairs = np.stack([np.arange(known)] * 2, axis=1)
    match = Match(ours, theirs, same, dict.fromkeys(same, "exact"), tuple(missing.tolist()))
    settings: dict[str, object] = {"seed": 0, "device": torch.device("cpu"), "side": "input"}
    settings |= {"segment": lambda text: [int(text) % known], **more}
    return Task(
        match=match, base=Rows(base), donor=Rows(donor), anchors=pairs, missing=missing, **settings
    )


def rows(made: Task, name: str, **parameters: object) -> Approximation:
    """What a method gives for all missing tokens."""
    method = load_transplant(name)
    fitted = method.fit(made, method.parameters(**parameters))
    return fitted(np.arange(len(made.missing)))


def table(count: int, columns: int, seed: int = 0) -> Tensor:
    """Embeddings with a mean, directions that matter more, and norms that differ."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(count, columns, generator=draws) * torch.arange(1, columns + 1) ** -0.3
    return values * torch.exp(0.2 * torch.randn(count, 1, generator=draws)) + 0.3
