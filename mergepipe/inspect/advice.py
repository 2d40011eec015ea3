"""What the numbers suggest. Rules of thumb: a merge that is scored knows better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mergepipe.inspect.report import Report
from mergepipe.inspect.sums import ModelNumbers, PairNumbers, model_numbers, pair_numbers

__all__ = ["THRESHOLDS", "Advice", "Case", "Threshold", "advise"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that decides what is said, and why it is that number."""

    value: float
    reason: str


THRESHOLDS: Mapping[str, Threshold] = MappingProxyType(
    {
        "foreign_norm": Threshold(
            0.5,
            "relative norm: fine-tunes stay far below; two unrelated models of one size have √2",
        ),
        "foreign_cosine": Threshold(
            0.9,
            "cosine of weights to the base: a random change of relative norm 0.5 leaves 0.89",
        ),
        "sparse": Threshold(
            0.25,
            "changed share: update-selective merging keeps the largest 25 % (DLER, 2025); "
            "with fewer it keeps all",
        ),
        "dominant": Threshold(
            5.0,
            "ratio of relative norms: at equal weights the smaller gives 1/26, 4 %, of the "
            "squared norm of the sum",
        ),
        "alike": Threshold(
            2.0,
            "ratio of relative norms: at equal weights the smallest of two still gives 1/5 of the "
            "squared norm of the sum",
        ),
        "duplicate": Threshold(
            0.95,
            "cosine: what distinguishes two of one norm is then √0.1, under a third, of that norm",
        ),
        "orthogonal": Threshold(
            0.1,
            "cosine, either sign: the norm of a sum of two is within 5 % of that at a right angle",
        ),
        "opposed": Threshold(
            0.55,
            "sign conflict: unrelated changes differ in sign at half of the elements, by chance",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model or a pair that a piece of advice is about, and the numbers it rests on."""

    models: tuple[str, ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Advice:
    """What may be wrong, or a good start, for some models."""

    code: str
    text: str
    thresholds: tuple[str, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    text: str
    thresholds: tuple[str, ...]


# By code, the most pressing first.
_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "another-base": _Rule(
            "probably no fine-tune of this base, or a long further pre-training; against the "
            "wrong base a task vector means little: find the right one (--base)",
            ("foreign_norm", "foreign_cosine"),
        ),
        "same-as-base": _Rule("equal to the base: there is nothing to merge", ()),
        "same-models": _Rule("equal to each other: leave one out, or it counts twice", ()),
        "sparse": _Rule(
            "few elements changed, as reinforcement learning does in bf16; averages would dilute "
            "them: `ram_plus` keeps what one model alone changed, `update_selective` takes one "
            "such model",
            ("sparse",),
        ),
        "dominant": _Rule(
            "changed far more than the others, as further pre-training does: `widen` is made for "
            "such sizes; in a sum, give it a smaller weight",
            ("dominant",),
        ),
        "near-duplicates": _Rule(
            "changed nearly the same: in a sum it counts twice; leave one out, or halve both "
            "weights",
            ("duplicate",),
        ),
        "opposed": _Rule(
            "pull in opposite directions more often than by chance, so sums cancel: `ties` or "
            "`dare_ties` elect one sign per element",
            ("opposed", "orthogonal"),
        ),
        "related": _Rule(
            "share part of their changes, which a plain sum counts twice: average (weights that "
            "sum to 1), or `ties`, which averages what agrees",
            ("orthogonal", "duplicate"),
        ),
        "unrelated": _Rule(
            "nearly orthogonal changes of like size: sums keep them apart; start with "
            "`task_arithmetic` at equal weights, and tune `lambda`",
            ("orthogonal", "alike"),
        ),
        "unlike-norms": _Rule(
            "nearly orthogonal changes of unlike size: `task_arithmetic`, the smaller with the "
            "larger weight if it is to count as much",
            ("orthogonal", "alike"),
        ),
    }
)


def advise(report: Report) -> tuple[Advice, ...]:
    """Give what the numbers over all tensors suggest, most pressing first."""
    found: dict[str, list[Case]] = {code: [] for code in _RULES}
    for code, case in _cases(report):
        found[code].append(case)
    return tuple(
        Advice(code, _RULES[code].text, _RULES[code].thresholds, tuple(cases))
        for code, cases in found.items()
        if cases
    )


def _cases(report: Report) -> Iterator[tuple[str, Case]]:
    models = {i: model_numbers(report.total, i) for i in range(len(report.models))}
    changed = {i: one for i, one in models.items() if one.relative_norm}
    for i, one in models.items():
        label = (report.labels[i],)
        if one.elements and one.changed == 0:
            yield "same-as-base", Case(label, {"changed": 0.0})
        elif _is_foreign(one):
            yield "another-base", Case(label, _numbers(one))
        elif 0 < (share := _changed_share(report, i)) < _limit("sparse"):
            yield "sparse", Case(label, {"changed": share})
    yield from _dominant(report, changed)
    near = {i for i in changed if not _is_foreign(changed[i])}
    for i, j in report.pairs:
        if {i, j} <= near:
            pair = pair_numbers(report.total, i, j)
            code, numbers = _of_pair(pair, _norm_ratio(changed[i], changed[j]))
            if code:
                yield code, Case((report.labels[i], report.labels[j]), numbers)


def _limit(name: str) -> float:
    return THRESHOLDS[name].value


def _is_foreign(one: ModelNumbers) -> bool:
    norm, cosine = one.relative_norm, one.cosine_to_base
    return (norm is not None and norm > _limit("foreign_norm")) or (
        cosine is not None and cosine < _limit("foreign_cosine")
    )


def _numbers(one: ModelNumbers) -> dict[str, float]:
    numbers = {"relative norm": one.relative_norm, "cosine to the base": one.cosine_to_base}
    return {name: number for name, number in numbers.items() if number is not None}


def _changed_share(report: Report, i: int) -> float:
    """Share of changed elements in the tensors that a model changed: adapters leave many alone.

    Elements that differ only by rounding to a coarser dtype are not counted.
    """
    touched = [one.sums for one in report.tensors if one.sums.rounded[i]]
    elements = sum(int(sums.common[i, i]) for sums in touched)
    return sum(int(sums.rounded[i]) for sums in touched) / elements if elements else 0.0


def _dominant(report: Report, models: Mapping[int, ModelNumbers]) -> Iterator[tuple[str, Case]]:
    order = sorted(models, key=lambda i: -(models[i].relative_norm or 0.0))
    if len(order) > 1:
        ratio = _norm_ratio(models[order[0]], models[order[1]])
        if ratio >= _limit("dominant"):
            names = (report.labels[order[0]],)
            yield "dominant", Case(names, {"times the next relative norm": ratio})


def _norm_ratio(one: ModelNumbers, other: ModelNumbers) -> float:
    small, large = sorted((one.relative_norm or 0.0, other.relative_norm or 0.0))
    return large / small


def _of_pair(pair: PairNumbers, ratio: float) -> tuple[str, dict[str, float]]:
    """Give what fits a pair of fine-tunes best, and the numbers that say so."""
    if pair.identical or pair.cosine is None:
        return ("same-models" if pair.identical else ""), {}
    numbers = {"cosine": pair.cosine}
    if pair.cosine >= _limit("duplicate"):
        return "near-duplicates", numbers
    if pair.conflict is not None and pair.conflict >= _limit("opposed"):
        return "opposed", {"sign conflict": pair.conflict, **numbers}
    if abs(pair.cosine) > _limit("orthogonal"):
        return ("related" if pair.cosine > 0 else "opposed"), numbers
    code = "unrelated" if ratio <= _limit("alike") else "unlike-norms"
    return code, {**numbers, "ratio of norms": ratio}
