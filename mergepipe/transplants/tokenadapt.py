"""Mix the pieces that spell a token, and the tokens that mean the same to a sentence encoder.

Sharthak, Pahalwan, Kamath and Shirawalmath, "Achieving Tokenizer Flexibility in Language Models
through Heuristic Adaptation and Supertoken Learning", 2025. https://arxiv.org/abs/2505.09738

    local    α_j = cos(φ(s), φ(s_j));  c_j = (softmax(α)_j + |s_j| / |s|) / 2
             y = Σ_j softmax(c / τ)_j E[s_j]       over the base's pieces s_j that spell s
    global   y = Σ_b softmax(cos(φ(s), φ(b)) / τ)_b E[b]        over the k nearest base tokens b
    hybrid   (1 - w) local + w global; where there is only one, that one

φ is `embedder`: a folder with a sentence encoder (mean pooling), or a static table of tokens
(model2vec, WordLlama). `threshold` leaves out neighbours that are less similar. The paper has
τ = 0.6 with w = 0 (local alone) and w = 0.3, the authors' tool τ = 0.3, which is the default here.

s is the token's text, and |s| its bytes. A piece that is part of a character has no text, and
α = 0; the authors' code embeds all of them as U+FFFD. A token that is itself part of a character
gets the `fallback`. Both tables of a model with a head of its own get the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import (
    Fallback,
    base_tokens,
    combined,
    padded,
    pieces,
    text_of,
)
from mergepipe.transplant.embedder import load_embedder
from mergepipe.transplant.nearest import nearest, unit
from mergepipe.transplant.paths import Folder
from mergepipe.transplant.task import Task


class Parameters(Base):
    """What tells that texts mean the same, and how much that counts."""

    embedder: Folder = Field(description="folder of a sentence encoder or a static table (φ)")
    temperature: float = Field(0.3, gt=0, description="of both softmaxes (τ)")
    neighbours: PositiveInt = Field(3, description="nearest base tokens of the global part (k)")
    w_global: float = Field(0.3, ge=0, le=1, description="share of the global part (w)")
    threshold: float = Field(0.0, ge=-1, le=1, description="smallest similarity of a neighbour")
    fallback: Fallback = Field("subword", description="rows of tokens that are no text")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Embed the missing tokens and the base's."""
    embed = load_embedder(parameters.embedder, task.device)
    texts = [text_of(task.match.donor.tokens[int(number)]) for number in task.missing]
    known = [position for position, text in enumerate(texts) if text]
    place = {position: row for row, position in enumerate(known)}
    # All at once: what a token gets must not depend on those that it is asked for with.
    queries = unit(embed([text for text in texts if text])).to(task.device)
    named = {int(n): text_of(task.match.base.tokens[int(n)]) for n in base_tokens(task)}
    ours = np.array([number for number, text in named.items() if text], np.int64)
    vectors = unit(embed([text for text in named.values() if text])).to(task.device)
    rows = {int(number): row for row, number in enumerate(ours)}
    found = _neighbours(queries, (vectors, ours), parameters)

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        made: list[dict[int, float]] = []
        for position in map(int, positions):
            if position not in place:
                made.append({})
                continue
            row = place[position]
            spelled = pieces(task, position)
            local = local_weights(
                [len(task.match.base.tokens[number].bytes) for number in spelled],
                _similarities(queries[row], vectors, [rows.get(number) for number in spelled]),
                parameters.temperature,
            )
            made.append(hybrid(spelled, local, found[row], parameters.w_global))
        return padded(task, made)

    return combined(task, weigh, parameters.fallback)


def local_weights(sizes: list[int], similarities: list[float], temperature: float) -> list[float]:
    """Weigh pieces by their similarity to the whole (α) and their bytes.

    >>> local_weights([3, 1], [0.0, 0.0], 0.5)  # c = (0.625, 0.375)
    [0.6224593312018546, 0.37754066879814546]
    """
    if not sizes:
        return []
    alike = torch.tensor(similarities, dtype=torch.float64).softmax(0)
    lengths = torch.tensor(sizes, dtype=torch.float64)
    combined_ = (alike + lengths / lengths.sum()) / 2
    weights: list[float] = (combined_ / temperature).softmax(0).tolist()
    return weights


def hybrid(
    spelled: list[int], local: list[float], neighbours: Mapping[int, float], share: float
) -> dict[int, float]:
    """Add up the weights of both parts by base id; `share` is the global part's."""
    if not spelled or share == 1:
        share = 1.0 if neighbours else 0.0
    if not neighbours:
        share = 0.0
    total: dict[int, float] = {}
    for number, weight in zip(spelled, local, strict=True):
        total[number] = total.get(number, 0.0) + (1 - share) * weight
    for number, weight in neighbours.items():
        total[number] = total.get(number, 0.0) + share * weight
    return {number: weight for number, weight in total.items() if weight}


def _similarities(query: Tensor, vectors: Tensor, rows: list[int | None]) -> list[float]:
    """Give α of each piece: 0 for one that has no text."""
    return [0.0 if row is None else float(query.double() @ vectors[row].double()) for row in rows]


def _neighbours(
    queries: Tensor, known: tuple[Tensor, Ids], parameters: Parameters
) -> list[dict[int, float]]:
    """Give the global weights of every query by base id; none where nothing is near enough."""
    if not parameters.w_global:
        return [{} for _ in queries]
    keys, ids = known
    has = keys.any(1)
    similarity, index = nearest(queries, keys[has], parameters.neighbours)
    near = (similarity >= parameters.threshold) & queries.any(1, keepdim=True)
    scores = (similarity.double() / parameters.temperature).masked_fill(~near, -torch.inf)
    weights = scores.softmax(1).nan_to_num(0.0)  # a row of nothing but -inf
    chosen = torch.from_numpy(ids).to(keys.device)[has][index]
    return [
        {number: weight for number, weight in zip(numbers, row, strict=True) if weight}
        for numbers, row in zip(chosen.tolist(), weights.tolist(), strict=True)
    ]


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"embedder", "base tokenizer"}))
