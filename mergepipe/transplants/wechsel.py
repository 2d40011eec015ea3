"""Mix the base's tokens that are nearest in a space of words, by a softmax of the similarity.

Minixhofer, Paischer and Rekabsaz, "WECHSEL: Effective initialization of subword embeddings for
cross-lingual transfer of monolingual language models", NAACL 2022.
https://arxiv.org/abs/2112.06598

    u_t  = vector of the token's text (fastText, by its n-grams; an embedder), or without such:
           Σ_w count(w) v_w / Σ_w count(w) over the words w that contain t, as tokenized
    R    = argmin ||X R - Y||_F, RᵀR = 1, over the pairs (x, y) of a bilingual dictionary
    y_d  = Σ_{b ∈ nearest n} softmax(cos(u_d, u_b R) / τ) E[b]

`donor_vectors` are those of the language of the donor's tokens, `base_vectors` of the base's. With
no `dictionary` they must lie in one space (aligned files, or one multilingual embedder). Where
their dimensions differ, the larger is reduced to the other's by principal components, once; the
authors' code reduces the base's twice. Dictionary words are also tried in lower case and as titles.

The paper makes all rows anew; here tokens that both vocabularies have keep the base's. Both tables
of a model with a head of its own get the same weights.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate.data import DataFile
from mergepipe.transplant import Fitted, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import Fallback, base_tokens, combined
from mergepipe.transplant.nearest import unit
from mergepipe.transplant.paths import AnyPath
from mergepipe.transplant.softmax import softmax_of_nearest
from mergepipe.transplant.task import Task
from mergepipe.transplant.token_vectors import token_vectors
from mergepipe.transplant.vectors import Words, read_pairs, read_vectors


class Parameters(Base):
    """Where the vectors are, and how many tokens are mixed."""

    donor_vectors: AnyPath = Field(description="word vectors, or an embedder, of the donor's side")
    base_vectors: AnyPath = Field(description="the same of the base's side")
    dictionary: DataFile | None = Field(
        None, description="lines `base word<TAB>donor word`; none: the spaces are one"
    )
    neighbours: PositiveInt = Field(10, description="base tokens that are mixed (n)")
    temperature: float = Field(0.1, gt=0, description="of the softmax over similarities (τ)")
    max_words: PositiveInt | None = Field(None, description="words read of each file, the first")
    fallback: Fallback = Field("normal", description="rows of tokens without a vector")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Place both vocabularies in one space.

    Raises
    ------
    InputError
        if they have other dimensions, and no dictionary says how they lie.

    """
    match, ids = task.match, base_tokens(task)
    theirs = read_vectors(parameters.donor_vectors, task.device, parameters.max_words)
    ours = read_vectors(parameters.base_vectors, task.device, parameters.max_words)
    queries = token_vectors(match.donor, task.missing, theirs)
    keys = token_vectors(match.base, ids, ours)
    sources, targets = dictionary_vectors(parameters.dictionary, ours, theirs)
    size = min(queries.shape[1], keys.shape[1])
    if parameters.dictionary is None and queries.shape[1] != keys.shape[1]:
        what = f"{keys.shape[1]} dimensions, and the donor's vectors have {queries.shape[1]}"
        fix = "give a `dictionary`, or vectors of one space"
        raise InputError(Problem(str(parameters.base_vectors), what, fix))
    keys, sources = _reduced(keys, sources, size)
    queries, targets = _reduced(queries, targets, size)
    if parameters.dictionary:
        keys = keys.double() @ rotation(sources, targets)
    weigh = softmax_of_nearest(
        task, unit(queries), (unit(keys), ids), parameters.neighbours, parameters.temperature
    )
    return combined(task, weigh, parameters.fallback)


def rotation(sources: Tensor, targets: Tensor) -> Tensor:
    """Give the orthogonal matrix that brings rows to rows (Schönemann 1966): U Vᵀ of XᵀY, fp64."""
    left, _, right = torch.linalg.svd(sources.double().T @ targets.double())
    turn: Tensor = left @ right
    return turn


def dictionary_vectors(path: Path | None, ours: Words, theirs: Words) -> tuple[Tensor, Tensor]:
    """Give the vectors of the dictionary's pairs that both sides know: two [pairs, dimensions].

    Raises
    ------
    InputError
        if there is a dictionary, and none of its pairs is known.

    """
    forms: dict[tuple[str, str], None] = {}
    for _, (base, donor) in read_pairs(path, 2) if path else ():
        forms |= dict.fromkeys(product(_cases(base), _cases(donor)))
    found = [(ours.of(base), theirs.of(donor)) for base, donor in forms]
    known = [(x, y) for x, y in found if x is not None and y is not None]
    if path and not known:
        raise InputError(
            Problem(str(path), "no pair of it is in both files of vectors", "base word first")
        )
    empty = torch.zeros(0)
    if not known:
        return empty, empty
    return torch.stack([x for x, _ in known]), torch.stack([y for _, y in known])


def _cases(word: str) -> tuple[str, str, str]:
    return word, word.lower(), word.title()


def _reduced(vectors: Tensor, pairs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Project both to the first principal components of `vectors`, if they have more columns."""
    if vectors.shape[1] == size:
        return vectors, pairs
    wide = vectors[vectors.any(1)].double()
    axes = torch.linalg.eigh(torch.cov(wide.T)).eigenvectors.flip(1)[:, :size]
    return vectors.double() @ axes, pairs.double() @ axes if len(pairs) else pairs


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"vectors"}))
