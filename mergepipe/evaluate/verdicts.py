"""What judges' replies are worth: read by a form, put together over repeats and judges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mergepipe.evaluate.agreement import cohen, krippendorff
from mergepipe.evaluate.judging import NoVerdict, last_line_verdict
from mergepipe.evaluate.result import Metric
from mergepipe.model import Generation

__all__ = ["TIE", "Form", "Verdict", "agreement", "calibration", "judged", "repeated"]

TIE = 0.5
_PAIR = 2


@dataclass(frozen=True, slots=True)
class Form:
    """What a mode asks, and what its verdicts are worth; `swapped` is that of the other order."""

    text: str
    word: str
    verdicts: str
    marks: Mapping[str, float]
    metric: str
    unit: str
    swapped: Mapping[str, float] | None = None

    @property
    def orders(self) -> int:
        """How often a judge is asked of one answer."""
        return 1 if self.swapped is None else _PAIR


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's mark, how often it followed the place of an answer, and its repeats that agree."""

    mark: float
    biased: float = 0.0
    consistent: float = 1.0


def judged(form: Form, replies: Sequence[Generation | NoVerdict]) -> Verdict | NoVerdict:
    """Give the verdict of a judge's replies, one for each order."""
    marks: list[float] = []
    for reply, table in zip(replies, (form.marks, form.swapped), strict=False):
        if isinstance(reply, NoVerdict):
            return reply
        verdict = last_line_verdict(reply.text, form.word, form.verdicts)
        if isinstance(verdict, NoVerdict):
            return verdict
        assert table is not None, "as many replies as orders"
        marks.append(table[verdict])
    if len(set(marks)) == 1:
        return Verdict(marks[0])
    return Verdict(TIE, biased=float(TIE not in marks))


def repeated(verdicts: Sequence[Verdict | NoVerdict]) -> Verdict | NoVerdict:
    """Put a judge's verdicts on one answer together: the median mark, and how far they agree.

    Repeats without a verdict do not count, as long as there is one.

    >>> repeated([Verdict(1.0), Verdict(0.5), Verdict(1.0)])
    Verdict(mark=1.0, biased=0.0, consistent=0.6666666666666666)
    """
    given = [one for one in verdicts if isinstance(one, Verdict)]
    if not given:
        return next(one for one in verdicts if isinstance(one, NoVerdict))
    marks = [one.mark for one in given]
    commonest = max(Counter(marks).values())
    return Verdict(median(marks), fmean(one.biased for one in given), commonest / len(marks))


def agreement(marks: Sequence[Sequence[float]]) -> dict[str, Metric]:
    """Give how far several judges agree on items, where their marks differ at all."""
    judges = len(marks[0])
    found = {"agreement": (krippendorff(marks), "α")} if judges > 1 else {}
    if judges == _PAIR:
        found["kappa"] = (cohen(*zip(*marks, strict=True)), "κ")
    return {
        name: Metric(value, True, len(marks), unit)
        for name, (value, unit) in found.items()
        if value is not None
    }


def calibration(pairs: Sequence[tuple[float, float]]) -> dict[str, Metric]:
    """Give how far the judges agree with the marks of people: pairs of theirs and the gold ones.

    `gold_accuracy` is the share of marks that are the same, `gold_agreement` Krippendorff's α,
    which knows near from far.
    """
    count = len(pairs)
    share = sum(ours == gold for ours, gold in pairs) / count
    error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
    found = {"gold_accuracy": Metric(share, True, count, "as people", error)}
    alpha = krippendorff(pairs)
    if alpha is not None:
        found["gold_agreement"] = Metric(alpha, True, count, "α")
    return found
