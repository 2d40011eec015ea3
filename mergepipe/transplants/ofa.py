"""Mix the base's tokens that are nearest in a space of words of many languages.

Liu, Lin, Wang and Schütze, "OFA: A Framework of Initializing Unseen Subword Embeddings for
Efficient Large-scale Multilingual Continued Pretraining", Findings of NAACL 2024.
https://arxiv.org/abs/2311.08849

    u_t = mean of v_w over the words w that contain t, as tokenized: alone, after a space,
          capitalised
    y_d = Σ_{b ∈ nearest n} softmax(cos(u_d, u_b) / τ) F[b] Z,   E = U Σ Vᵀ

`vectors` cover the languages of both vocabularies (ColexNet+), so nothing is aligned. Of E, the
base's table, F = U_D' are coordinates and Z = Σ_D' V_D'ᵀ primitives, D' = `dimensions`: rows are
then combinations of E V_D' V_D'ᵀ, whose plain weights are not told, since they do not give them.
None (the default) keeps all dimensions: F Z = E.

The result is one matrix: a factorised model would need code of its own. Both tables of a model
with a head of its own get the same weights, each factorised by itself.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.transplant import Approximation, Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import Fallback, base_tokens, combined
from mergepipe.transplant.nearest import unit
from mergepipe.transplant.paths import AnyPath
from mergepipe.transplant.softmax import softmax_of_nearest
from mergepipe.transplant.task import Task
from mergepipe.transplant.token_vectors import bare_and_spaced, token_vectors
from mergepipe.transplant.vectors import Words, read_vectors

_LANGUAGE = re.compile(r"^[a-z]{3}(_[a-z]{4})?:", re.IGNORECASE)
_BLOCK = 4096


class Parameters(Base):
    """Where the vectors are, and how many tokens are mixed."""

    vectors: AnyPath = Field(description="word vectors of all languages, or an embedder")
    languages: bool = Field(True, description="words are written `eng:word`")
    neighbours: PositiveInt = Field(10, description="base tokens that are mixed (n)")
    temperature: float = Field(0.1, gt=0, description="of the softmax over similarities (τ)")
    dimensions: PositiveInt | None = Field(None, description="kept of the base's table (D')")
    max_words: PositiveInt | None = Field(None, description="words that are read, the first")
    fallback: Fallback = Field("normal", description="rows of tokens without a vector")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Place both vocabularies in one space."""
    match, ids = task.match, base_tokens(task)
    source = read_vectors(parameters.vectors, task.device, parameters.max_words)
    source = _plain(source, languages=parameters.languages)
    queries = unit(token_vectors(match.donor, task.missing, source, forms))
    keys = unit(token_vectors(match.base, ids, source, forms))
    weigh = softmax_of_nearest(
        task, queries, (keys, ids), parameters.neighbours, parameters.temperature
    )
    fitted = combined(task, weigh, parameters.fallback)
    if parameters.dimensions is None:
        return fitted
    projection = primitives(task, ids, parameters.dimensions)

    def factorised(positions: Ids) -> Approximation:
        made = fitted(positions)
        rows = (made.rows.double() @ projection).float()
        return replace(made, rows=rows, ids=None, weights=None)

    return factorised


def forms(word: str) -> tuple[str, ...]:
    """Give the forms of a word that texts have: small or capitalised, alone or after a space."""
    return tuple(dict.fromkeys((*bare_and_spaced(word), *bare_and_spaced(word.capitalize()))))


def primitives(task: Task, ids: Ids, dimensions: int) -> Tensor:
    """Give V_D' V_D'ᵀ of the base's rows, fp64 [columns, columns].

    Raises
    ------
    InputError
        if the base has fewer columns than `dimensions`.

    """
    columns = task.base.columns
    if dimensions > columns:
        what = f"`dimensions: {dimensions}` of the base's {columns}"
        raise InputError(Problem("ofa", what, "give fewer, or leave it out"))
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=task.device)
    for start in range(0, len(ids), _BLOCK):
        block = task.base[ids[start : start + _BLOCK]].double()
        gram += block.T @ block
    axes = torch.linalg.eigh(gram).eigenvectors[:, columns - dimensions :]
    projection: Tensor = axes @ axes.T
    return projection


def _plain(source: Words, *, languages: bool) -> Words:
    """Leave the languages of words away."""
    if not languages:
        return source
    words = tuple(_LANGUAGE.sub("", word, count=1) for word in source.words)
    return replace(source, words=words)


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"vectors"}))
