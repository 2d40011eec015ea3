"""Give transliterated pieces the rows of the pieces that they transliterate.

Liu, Ma, Ye and Schütze, "TransMI: A Framework to Create Strong Baselines from Multilingual
Pretrained Language Models for Transliterated Data", COLING 2025. https://arxiv.org/abs/2405.09913

    U(v) = {w : transliteration of w = v}
    max      E[v] = E[argmax score(w)], w ∈ U(v);  min likewise
    average  E[v] = Σ_{w ∈ U(v)} E[w] / |U(v)|

It extends a vocabulary: the base has a Unigram tokenizer, and the donor is the same tokenizer with
more pieces behind its own, as `mergepipe.transplant.transliteration.write_extended` makes it with
the same transliteration. Old tokens keep ids, scores and rows. The transliteration is `table`, or
uroman's. Of equal scores the lowest id counts.

The authors' code sums in `average` mode and takes the first and the last id for the argmax and the
argmin; here the formulas of the paper hold. Both tables get the same weights.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from mergepipe.evaluate.data import DataFile
from mergepipe.transplant import Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import Fallback, combined, padded
from mergepipe.transplant.task import Task
from mergepipe.transplant.transliteration import Merge, sources, transliterator


class Parameters(Base):
    """How pieces are transliterated, and which of several counts."""

    table: DataFile | None = Field(
        None, description="lines `text<TAB>Latin`, longest first; none: uroman"
    )
    merge: Merge = Field("max", description="whose row, where several have one transliteration")
    fallback: Fallback = Field("subword", description="rows of tokens that transliterate nothing")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Transliterate the base's pieces.

    Raises
    ------
    InputError
        if the base's tokenizer is not a Unigram one.

    """
    base, donor = task.match.base, task.match.donor
    found = sources(base.stored, transliterator(parameters.table))
    scores = [float(score) for _, score in base.stored["model"]["vocab"]]

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        texts = [donor.tokens[int(task.missing[position])].text for position in positions]
        rows = [chosen(found.get(text, []), scores, parameters.merge) for text in texts]
        return padded(task, rows)

    return combined(task, weigh, parameters.fallback)


def chosen(ids: list[int], scores: list[float], merge: Merge) -> dict[int, float]:
    """Weigh the sources of a piece.

    >>> chosen([3, 5], [0, 0, 0, -7.0, 0, -2.0], "max")
    {5: 1.0}
    """
    if not ids:
        return {}
    if merge == "average":
        return dict.fromkeys(ids, 1 / len(ids))
    pick = max if merge == "max" else min
    return {pick(ids, key=lambda number: scores[number]): 1.0}


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"base tokenizer"}))
