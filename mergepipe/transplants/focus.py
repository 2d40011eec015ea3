"""Mix the tokens that both vocabularies have, by a sparsemax of the similarity of their vectors.

Dobler and de Melo, "FOCUS: Effective Embedding Initialization for Monolingual Specialization of
Multilingual Models", EMNLP 2023. https://arxiv.org/abs/2305.14481

    s_a = cos(u_d, u_a) for the tokens a that both have;  w = sparsemax(s)
    y_d = Σ_a w_a E[a]

The vectors u of the donor's tokens are, in this order: trained with fastText (CBOW) on `corpus`, a
text that the donor's tokenizer splits, one line a sentence, as in the paper (needs gensim; a token
seen fewer than `min_count` times has none); made of `vectors` (word vectors, or an embedder); or,
with neither, the rows of the donor's table. With `corpus` or `vectors` both tables of a model with
a head of its own get the same weights; with the donor's rows each has those of its own table.

Shared tokens without a vector are left out. Similarities are made a few tokens at a time; the
authors' code holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.evaluate.data import DataFile
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.vocabulary import Vocabulary
from mergepipe.transplant import Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import Fallback, combined
from mergepipe.transplant.nearest import similarities, unit
from mergepipe.transplant.paths import AnyPath
from mergepipe.transplant.softmax import tell_lacking
from mergepipe.transplant.sparsemax import sparsemax
from mergepipe.transplant.task import Task
from mergepipe.transplant.token_vectors import token_vectors
from mergepipe.transplant.vectors import gensim_models, read_vectors


class Parameters(Base):
    """Where the donor's tokens get their vectors."""

    vectors: AnyPath | None = Field(None, description="word vectors, or an embedder")
    corpus: DataFile | None = Field(None, description="text to train fastText on")
    dimensions: PositiveInt = Field(100, description="of the vectors trained on the corpus")
    epochs: PositiveInt = Field(3, description="passes over the corpus")
    min_count: PositiveInt = Field(10, description="occurrences a token needs in the corpus")
    max_words: PositiveInt | None = Field(None, description="words read of `vectors`, the first")
    fallback: Fallback = Field("normal", description="rows of tokens without a vector")

    @model_validator(mode="after")
    def _one_source(self) -> Parameters:
        if self.vectors and self.corpus:
            raise ValueError("either `vectors` or `corpus`")
        return self


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Give the donor's tokens their vectors."""
    vectors = _vectors(task, parameters)
    queries, keys = (
        unit(vectors(ids)).to(task.device) for ids in (task.missing, task.anchors[:, 0])
    )
    tell_lacking(task, queries)
    has = keys.any(1)
    keys, ids = keys[has], torch.from_numpy(task.anchors[:, 1]).to(task.device)[has]

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        return sparse_weights(queries[torch.from_numpy(positions).to(task.device)], keys, ids)

    return combined(task, weigh, parameters.fallback)


def sparse_weights(queries: Tensor, keys: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Give the ids and weights of the keys in the support of each query: both [n, k], -1 padded."""
    found = [sparsemax(block) for _, block in similarities(queries, keys)] if len(keys) else []
    width = max((columns.shape[1] for columns, _ in found), default=1)
    chosen = torch.full((len(queries), width), -1, device=queries.device)
    weights = torch.zeros(len(queries), width, device=queries.device)
    row = 0
    for columns, their in found:
        part = slice(row, row := row + len(columns)), slice(columns.shape[1])
        chosen[part] = torch.where(columns < 0, -1, ids[columns])
        weights[part] = their
    none = ~queries.any(1, keepdim=True)
    return chosen.masked_fill(none, -1), weights.masked_fill(none, 0)


def _vectors(task: Task, parameters: Parameters) -> Callable[[Ids], Tensor]:
    """Donor ids -> vectors, zeros for a token that has none."""
    donor, table = task.match.donor, task.donor
    if parameters.corpus:
        trained = train(donor, parameters.corpus, parameters, task.seed)
        return lambda ids: trained[torch.from_numpy(ids)]
    if parameters.vectors:
        source = read_vectors(parameters.vectors, task.device, parameters.max_words)
        return lambda ids: token_vectors(donor, ids, source)
    if table is None:
        what = "focus needs vectors of the donor's tokens, and the donor has no table"
        raise InputError(Problem(donor.label, what, "give `vectors` or `corpus`, or a donor model"))
    return lambda ids: table[ids] if len(ids) else torch.zeros(0, table.columns)


def train(donor: Vocabulary, corpus: Path, parameters: Parameters, seed: int) -> Tensor:
    """Train fastText's CBOW on the tokens of a text: vectors by donor id, zeros where too rare.

    Raises
    ------
    EnvironmentFault
        if gensim is not installed.
    InputError
        if the text is not UTF-8, or too short for any token.

    """
    models = gensim_models()
    try:
        lines = corpus.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(corpus), "is not UTF-8")) from error
    encodings = encoder(donor).encode_batch(lines, add_special_tokens=False)
    sentences = [[donor.tokens[i].text for i in one.ids] for one in encodings if one.ids]
    # One worker: with more, the order of updates is chance.
    model = models.FastText(
        vector_size=parameters.dimensions,
        min_count=parameters.min_count,
        negative=10,
        sg=0,
        workers=1,
        seed=seed,
    )
    model.build_vocab(sentences)
    if not model.wv.index_to_key:
        what = f"no token occurs {parameters.min_count} times"
        raise InputError(Problem(str(corpus), what, "lower `min_count`, or give more text"))
    model.train(sentences, total_examples=len(sentences), epochs=parameters.epochs)
    rows = torch.zeros(donor.rows, parameters.dimensions)
    for text in model.wv.index_to_key:
        rows[donor.ids[text]] = torch.from_numpy(model.wv.get_vector(text).copy())
    return rows


METHOD = TransplantMethod(Parameters, fit)
