"""Evo-Merging: adapters chosen and weighed by evolution, from losses alone; LoraHub beside it.

Of N adapters two vectors are searched, one after the other by CMA-ES: shares α in [0, 1]^N, which
thin A, and signed factors β in [-1.5, 1.5]^N (see `mergepipe.lora.composing`).

    stage 1 ("denoising")   min over α of  loss(α, 1/N) + 0.05 mean(α),     from α = 1
    stage 2 ("scaling")     min over β of  loss(α*, β) + 0.05 mean |β|,     from β = 1/N

The penalties differ, so the best of stage 1 is not carried over: stage 2 begins with (α*, 1/N)
under its own. Losses of a stage must be of the same items throughout.

Chen et al. 2025, "Black-box Model Merging for Language-Model-as-a-Service with Massive Model
Repositories", https://arxiv.org/abs/2509.12951. LoraHub: Huang et al. 2023,
https://arxiv.org/abs/2307.13269. CMA-ES: Hansen, pycma, https://github.com/CMA-ES/pycma.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np

from mergepipe.errors import EnvironmentFault, InputError, Problem

__all__ = [
    "EVO",
    "Evaluate",
    "Found",
    "Genome",
    "Preset",
    "evo_steps",
    "evolve",
    "lorahub",
    "uniform",
]

_BOUND = 1.5
_PENALTY = 0.05
_LORAHUB_BUDGET = 40
_FEWEST = 2  # pycma has no evolution in one dimension


@dataclass(frozen=True, slots=True)
class Genome:
    """Shares α and factors β, one of each for every adapter."""

    keep: tuple[float, ...]
    weights: tuple[float, ...]


Evaluate: TypeAlias = Callable[[Sequence[Genome]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Preset:
    """How long and how widely the stages search; budgets are evaluations."""

    denoising: int = 400
    scaling: int = 800
    population: int = 20
    sigma: float = 0.05
    penalty: float = _PENALTY


EVO = Preset()


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: the genome, its loss without the penalty, and how it got there.

    `curve` has the best objective (loss and penalty) so far after each evaluation; of two stages
    it begins anew with the second.
    """

    genome: Genome
    loss: float
    evaluations: int
    curve: tuple[float, ...]


def uniform(count: int) -> Genome:
    """All of each adapter, with factors 1/N."""
    return Genome((1.0,) * count, (1.0 / count,) * count)


def evolve(count: int, evaluate: Evaluate, *, preset: Preset = EVO, seed: int = 42) -> Found:
    """Search a composition of `count` adapters; `evaluate` gives the losses of a generation.

    Raises
    ------
    InputError
        if there are fewer than two adapters, or a loss is no finite number.
    EnvironmentFault
        if pycma is not installed.

    """
    steps = evo_steps(count, preset=preset, seed=seed)
    asked = next(steps)
    try:
        while True:
            asked = steps.send(evaluate(asked))
    except StopIteration as stop:
        found: Found = stop.value
        return found


def evo_steps(
    count: int, *, preset: Preset = EVO, seed: int = 42
) -> Generator[tuple[Genome, ...], Sequence[float], Found]:
    """Yield generations of genomes, take their losses, return what was found: see `evolve`."""
    if count < _FEWEST:
        raise InputError(f"{count} adapters: CMA-ES needs {_FEWEST} at least")
    start = uniform(count)
    stage = _Stage(preset, seed, start.keep, (0.0, 1.0), preset.denoising)
    keep, first = yield from stage.run(lambda shares: Genome(shares, start.weights))
    stage = _Stage(preset, seed, start.weights, (-_BOUND, _BOUND), preset.scaling)
    weights, second = yield from stage.run(lambda factors: Genome(keep, factors))
    return Found(
        Genome(keep, weights),
        stage.loss,
        len(first) + len(second),
        (*first, *second),
    )


class _Stage:
    """One vector searched by CMA-ES, the start being evaluated before the first generation."""

    def __init__(
        self,
        preset: Preset,
        seed: int,
        start: tuple[float, ...],
        bounds: tuple[float, float],
        budget: int,
    ) -> None:
        self._preset, self._start, self._bounds, self._budget = preset, start, bounds, budget
        self._seed = seed
        self.best, self.objective, self.loss = start, float("inf"), float("inf")
        self._curve: list[float] = []

    def run(
        self, genome: Callable[[tuple[float, ...]], Genome]
    ) -> Generator[tuple[Genome, ...], Sequence[float], tuple[tuple[float, ...], list[float]]]:
        """Give the best vector, and the curve."""
        self._take([self._start], (yield (genome(self._start),)))
        strategy = _strategy(self._start, self._preset, self._bounds, self._seed)
        while len(self._curve) < self._budget and not strategy.stop():
            asked = strategy.ask()
            points = [tuple(np.clip(one, *self._bounds).tolist()) for one in asked]
            losses = yield tuple(genome(point) for point in points)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pycma's, of flat losses
                strategy.tell(asked, self._take(points, losses))
        return self.best, self._curve

    def _take(self, points: Sequence[tuple[float, ...]], losses: Sequence[float]) -> list[float]:
        """Give the objectives of points; keep the best."""
        found = []
        for point, loss in zip(points, losses, strict=True):
            if not np.isfinite(loss):
                raise InputError(f"a loss of {loss} cannot be searched on")
            objective = float(loss) + self._preset.penalty * fmean(map(abs, point))
            if objective < self.objective:
                self.best, self.objective, self.loss = point, objective, float(loss)
            self._curve.append(self.objective)
            found.append(objective)
        return found


def _strategy(
    start: Sequence[float], preset: Preset, bounds: tuple[float, float], seed: int
) -> Any:
    """Give pycma's strategy, with a generator of its own in place of numpy's global one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            import cma  # type: ignore[import-untyped]
    except ImportError as error:
        what, fix = f"Evo-Merging needs a package: {error}", "pip install 'mergepipe[search]'"
        raise EnvironmentFault(Problem("search", what, fix)) from error
    draw = np.random.RandomState(seed)  # what pycma draws from

    def standard_normal(*shape: int) -> Any:
        return draw.randn(*shape)

    options = {
        "bounds": list(bounds),
        "popsize": preset.population,
        "randn": standard_normal,
        "seed": np.nan,  # touch no global generator
        "verbose": -9,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cma.CMAEvolutionStrategy(list(start), preset.sigma, options)


def lorahub(
    count: int, evaluate: Evaluate, *, budget: int = _LORAHUB_BUDGET, seed: int = 42
) -> Found:
    """Search factors alone, as LoraHub does: nevergrad's NGOpt from 0, every share 1.

    Raises
    ------
    InputError
        if there are no adapters, or a loss is no finite number.

    """
    if count < 1:
        raise InputError("there are no adapters to compose")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nevergrad
    p: Any = nevergrad.p
    space = p.Array(init=[0.0] * count, lower=[-_BOUND] * count, upper=[_BOUND] * count)
    space.random_state.seed(seed)
    keep: tuple[float, ...] = (1.0,) * count
    curve: list[float] = []
    losses: dict[tuple[float, ...], float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = nevergrad.optimizers.registry["NGOpt"](parametrization=space, budget=budget)
        for _ in range(budget):
            asked = optimizer.ask()
            weights = tuple(asked.value.tolist())
            (loss,) = evaluate([Genome(keep, weights)])
            if not np.isfinite(loss):
                raise InputError(f"a loss of {loss} cannot be searched on")
            objective = float(loss) + _PENALTY * fmean(map(abs, weights))
            optimizer.tell(asked, objective)
            losses[weights] = float(loss)
            curve.append(min([objective, *curve[-1:]]))
        found = Genome(keep, tuple(optimizer.provide_recommendation().value.tolist()))
    if found.weights not in losses:
        losses[found.weights] = float(evaluate([found])[0])
    return Found(found, losses[found.weights], len(losses), tuple(curve))
