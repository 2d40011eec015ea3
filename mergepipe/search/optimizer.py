"""Optimisers: asked for candidates, told their losses. nevergrad has them, by name.

nevergrad: Jérémy Rapin & Olivier Teytaud, https://github.com/facebookresearch/nevergrad.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from mergepipe.errors import EnvironmentFault, InputError, Problem, did_you_mean
from mergepipe.search.space import Choice, Gene, Value

__all__ = ["DEFAULT", "Nevergrad", "Optimizer", "batch_size", "check_packages"]

DEFAULT = "NGOpt"
_LEAST_BATCH = 4
_PACKAGES = ("nevergrad", "optuna")
_SIGMA = 6  # a first step is the range over this, unless the gene says its own


class Optimizer(Protocol):
    """Gives candidates; learns from losses, lower is better, one or several for each.

    Asked and told the same in the same order, it gives the same candidates.
    """

    def ask(self) -> tuple[Value, ...]:
        """Give a candidate: a value for each gene."""
        ...

    def tell(self, losses: Sequence[float]) -> None:
        """Take the losses of the candidate that was asked for first and has none yet."""
        ...


def batch_size(name: str, genes: int) -> int:
    """Give how many candidates are asked for before any is told: CMA-ES's population, or four.

    It is a part of the search, so that the number of workers is none.
    """
    from math import log

    return _LEAST_BATCH + int(3 * log(genes)) if "CMA" in name else _LEAST_BATCH


def check_packages() -> None:
    """Refuse to search without the packages that it takes.

    Raises
    ------
    EnvironmentFault
        naming those that are not installed.

    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        what = f"a search needs {' and '.join(missing)}, not installed"
        raise EnvironmentFault(Problem("search", what, "pip install 'mergepipe[search]'"))


class Nevergrad:
    """One of nevergrad's optimisers over the genes, started at their `start`.

    Raises
    ------
    InputError
        if nevergrad has none of this name.

    """

    def __init__(
        self, name: str, genes: Sequence[Gene], *, budget: int, batch: int, seed: int
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            import nevergrad
        known = nevergrad.optimizers.registry
        if name not in known:
            hint = did_you_mean(name, known) or " (NGOpt, CMA, TwoPointsDE, PSO, OnePlusOne, TBPSA)"
            raise InputError(f"search.optimizer: nevergrad has no '{name}'{hint}")
        p: Any = nevergrad.p
        space = p.Tuple(*(_parameter(p, gene) for gene in genes))
        space.random_state.seed(seed)
        self._optimizer = known[name](parametrization=space, budget=budget, num_workers=batch)
        self._optimizer.enable_pickling = False
        self._asked: list[Any] = []
        self._started = False
        self._genes = tuple(genes)
        self._start = tuple(gene.start for gene in genes)

    def ask(self) -> tuple[Value, ...]:
        """See `Optimizer`. The first candidate is the start."""
        if not self._started:
            self._started = True
            self._asked.append(self._optimizer.parametrization.spawn_child(new_value=self._start))
            return self._start
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            candidate = self._optimizer.ask()
        self._asked.append(candidate)
        return self.plain(candidate.value)

    def plain(self, asked: Sequence[Any]) -> tuple[Value, ...]:
        """Give the values that what nevergrad asks for stands for."""
        return tuple(_plain(gene, value) for gene, value in zip(self._genes, asked, strict=True))

    def tell(self, losses: Sequence[float]) -> None:
        """See `Optimizer`."""
        candidate = self._asked.pop(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = losses[0] if len(losses) == 1 else list(losses)
            self._optimizer.tell(candidate, told)


def _plain(gene: Gene, value: Any) -> Value:
    """Give a value as Python has it, in its range to the last bit."""
    if isinstance(gene, Choice):
        chosen: Value = value
        return chosen
    found = abs(float(value)) if gene.is_clipped and gene.low >= 0 else float(value)
    inside = min(max(found, gene.low), gene.high)
    return round(inside) if gene.is_int else inside


def _parameter(p: Any, gene: Gene) -> Any:
    if isinstance(gene, Choice):
        return p.Choice(gene.values)
    if gene.is_log:
        found = p.Log(init=gene.start, lower=gene.low, upper=gene.high)
    else:
        bounds = {} if gene.is_clipped else {"lower": gene.low, "upper": gene.high}
        found = p.Scalar(init=gene.start, **bounds)
        found = found.set_mutation(sigma=gene.sigma or (gene.high - gene.low) / _SIGMA)
    return found.set_integer_casting() if gene.is_int else found
