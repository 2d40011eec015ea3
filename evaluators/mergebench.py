"""How much of its specialists a merge keeps over several domains, and what it forgets.

    retained   mean over `domains` of score / score of the domain's specialist; in %
    forgotten  1 − mean over `general` of score / score of the base; in %
    average    mean score of the domains, where all are such that higher is better
    NAME kept  score of one evaluation / its reference; in %

as in MergeBench (He et al., 2025, https://arxiv.org/abs/2505.10833), which has five domains
(instruction following, mathematics, languages, coding, safety), with whatever evaluations you have
for them. Each is an evaluator with its parameters, and the score that its specialist, or the base,
has by the same evaluation:

    domains:
      math: {use: exact_match, data: sums.jsonl, specialist: 0.98}
      german: {use: bits_per_byte, data: german.jsonl, specialist: 1.795}
    general:
      english: {use: bits_per_byte, data: english.jsonl, base: 1.429}

A score is the evaluation's main metric, or the `metric` named. Where lower is better the reference
is divided by the score; with `rate: true` (a share of attacks that succeed, say) both are taken
from 1 instead. Standard errors take references as known and evaluations as independent. Since
evaluations may run programs, a recipe needs --allow-commands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    computed_field,
    model_validator,
)

from mergepipe.errors import InputError, Problem, did_you_mean
from mergepipe.evaluate import (
    Context,
    Evaluator,
    Formula,
    Item,
    Metric,
    Result,
    Unscored,
    find_evaluator,
)
from mergepipe.evaluate.retention import share_kept
from mergepipe.evaluate.statistics import average_error
from mergepipe.model import Model, Usage

PERMISSION = "commands"


class Part(BaseModel, extra="allow", strict=True):
    """An evaluation: an evaluator, its parameters, and which of its metrics is the score."""

    use: str
    metric: str | None = None
    rate: bool = False
    _checked: BaseModel = PrivateAttr()

    @model_validator(mode="after")
    def _is_evaluation(self, info: ValidationInfo) -> Part:
        if self.use == "mergebench":
            raise ValueError("a suite in a suite")
        try:
            model = self.evaluator.parameters
            self._checked = model.model_validate(self.model_extra or {}, context=info.context)
        except ValidationError as error:
            faults = [
                f"{'.'.join(map(str, one['loc']))}: {one['msg']}".replace("Value error, ", "")
                for one in error.errors(include_url=False)
            ]
            raise ValueError("; ".join(faults)) from error
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def evaluator(self) -> Evaluator:
        """The evaluator."""
        return find_evaluator(self.use)

    @property
    def checked(self) -> BaseModel:
        """The evaluator's parameters."""
        return self._checked

    @computed_field
    def decisive(self) -> tuple[Any, ...]:
        """What a kept result depends on: the evaluator, and the files that its parameters name."""
        return (self.evaluator.digest, self.evaluator.version, self._checked.model_dump())


class Domain(Part):
    """An evaluation, and what the domain's specialist scores."""

    specialist: PositiveFloat

    @property
    def reference(self) -> float:
        """What scores are held against."""
        return self.specialist


class General(Part):
    """An evaluation, and what the base scores."""

    base: PositiveFloat

    @property
    def reference(self) -> float:
        """What scores are held against."""
        return self.base


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`limit` and `split` hold for each evaluation."""

    domains: Annotated[dict[str, Domain], Field(min_length=1)]
    general: dict[str, General] = {}

    @property
    def parts(self) -> Mapping[str, Domain | General]:
        """All evaluations."""
        return {**self.domains, **self.general}

    @model_validator(mode="after")
    def _is_consistent(self) -> Parameters:
        twice = self.domains.keys() & self.general.keys()
        if twice:
            raise ValueError(f"'{min(twice)}' is a domain and general")
        for name, part in self.parts.items():
            if part.rate and part.reference >= 1:
                raise ValueError(f"{name}: a rate of {part.reference:g} leaves nothing to keep")
        return self


def cached(parameters: Parameters) -> bool:
    """Tell whether a result may be used again: whether those of all evaluations may."""
    return all(
        part.evaluator.cached is None or part.evaluator.cached(part.checked)
        for part in parameters.parts.values()
    )


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Make all evaluations; items are theirs, with the evaluation before the id."""
    parameters = context.parameters
    found = {name: _asked(model, context, name, part) for name, part in parameters.parts.items()}
    scores = {name: _score(found[name], name, part) for name, part in parameters.parts.items()}
    metrics = {"retained": _mean_share(parameters.domains, scores)}
    if parameters.general:
        kept = _mean_share(parameters.general, scores)
        metrics["forgotten"] = replace(kept, value=100 - kept.value, higher_is_better=False)
    metrics |= _average(parameters.domains, scores)
    metrics |= {
        f"{name} kept": _kept(part, scores[name]) for name, part in parameters.parts.items()
    }
    items = tuple(_items(found))
    unscored = [
        Unscored(f"{name}/{one.id}", one.reason)
        for name, result in found.items()
        for one in result.unscored
    ]
    metrics |= {name: replace(one, formula=_within(name, one)) for name, one in scores.items()}
    lossy = tuple(f"{name}/{one}" for name, result in found.items() for one in result.lossy)
    judges = [result.judges for result in found.values() if result.judges is not None]
    spent = sum(judges, Usage()) if judges else None
    return Result(metrics, items, tuple(unscored), lossy, spent)


def _asked(model: Model, context: Context[Parameters], name: str, part: Part) -> Result:
    evaluator, given = part.evaluator, cast("Context[Any]", context)
    missing = sorted(evaluator.needs - model.abilities)
    if missing:
        what = f"{name}: {part.use} needs a model that can do {', '.join(missing)}"
        raise InputError(Problem(model.name, what))
    return evaluator.evaluate(model, replace(given, parameters=part.checked))


def _score(result: Result, name: str, part: Part) -> Metric:
    chosen = part.metric or next(iter(result.metrics))
    if chosen in result.metrics and result.metrics[chosen].higher_is_better is None:
        raise InputError(Problem(name, f"more of {chosen} is no better than less"))
    if chosen not in result.metrics:
        what = f"{part.use} gives no metric '{chosen}'{did_you_mean(chosen, result.metrics)}"
        raise InputError(Problem(name, what))
    return result.metrics[chosen]


def _kept(part: Domain | General, score: Metric) -> Metric:
    """Give the part of one reference's score that is kept, in %."""
    share = share_kept(
        score.value, part.reference, higher_is_better=bool(score.higher_is_better), rate=part.rate
    )
    return Metric(100 * share, True, score.n, f"% of {part.reference:g}")


def _mean_share(parts: Mapping[str, Domain | General], scores: Mapping[str, Metric]) -> Metric:
    """Give the mean part of the references' scores that is kept, in %."""
    shares, errors = [], []
    for name, part in parts.items():
        score, reference = scores[name], part.reference
        up = score.higher_is_better
        shares.append(share_kept(score.value, reference, higher_is_better=bool(up), rate=part.rate))
        slope = 1 / reference if up else 1 / (1 - reference) if part.rate else 0.0
        if not slope and score.value:
            slope = reference / score.value**2
        errors.append(math.nan if score.stderr is None else slope * score.stderr)
    error = 100 * average_error(errors)
    return Metric(
        100 * fmean(shares), True, len(shares), "%", error if math.isfinite(error) else None
    )


def _average(parts: Mapping[str, Part], scores: Mapping[str, Metric]) -> dict[str, Metric]:
    if any(not scores[name].higher_is_better and not part.rate for name, part in parts.items()):
        return {}
    values = [
        one.value if one.higher_is_better else 1 - one.value
        for one in (scores[name] for name in parts)
    ]
    return {"average": Metric(fmean(values), True, len(values), "average")}


def _items(found: Mapping[str, Result]) -> Iterator[Item]:
    """Give all items; each has 0 for the values of others' evaluations, which adds nothing."""
    columns = {
        f"{name}/{key}": 0.0
        for name, result in found.items()
        for item in result.items
        for key in ("of", *item.values)
    }
    for name, result in found.items():
        for item in result.items:
            own = {f"{name}/{key}": value for key, value in {"of": 1.0, **item.values}.items()}
            cluster = None if item.cluster is None else f"{name}/{item.cluster}"
            yield Item(f"{name}/{item.id}", {**columns, **own}, cluster)


def _within(name: str, metric: Metric) -> Formula | None:
    """Give a metric's formula among the items of all evaluations."""
    formula = metric.formula
    if formula is None:
        return None
    below = "of" if formula.denominator is None else formula.denominator
    return replace(formula, numerator=f"{name}/{formula.numerator}", denominator=f"{name}/{below}")
