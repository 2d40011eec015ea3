"""Optimisers by name: repeatable, in range, and better than where they start."""

from __future__ import annotations

import pytest

from mergepipe.errors import InputError
from mergepipe.search.optimizer import Nevergrad, batch_size
from mergepipe.search.space import Choice, Number

NAMES = ("NGOpt", "CMA", "TwoPointsDE", "PSO", "OnePlusOne", "TBPSA")
GENES = (
    Number("plain", -1, 3, 0.5),
    Number("log", 1e-4, 1, 1e-2, is_log=True),
    Number("whole", 1, 9, 3, is_int=True),
    Choice("word", ("a", "b", "c"), "b"),
)
TWO = (Number("x", -2, 2, 1.5), Number("y", -2, 2, -1.5))


def run(name, genes, loss, *, budget=40, seed=0, batch=4):
    """All candidates of a search, in order."""
    optimizer = Nevergrad(name, genes, budget=budget, batch=batch, seed=seed)
    found = []
    for _ in range(0, budget, batch):
        asked = [optimizer.ask() for _ in range(batch)]
        for values in asked:
            optimizer.tell(loss(values))
        found += asked
    return found


def mixed(values):
    plain, log, whole, word = values
    return ((plain - 1) ** 2 + log + abs(whole - 4) + "abc".index(word),)


def sphere(values):
    return (sum((v - 0.3) ** 2 for v in values),)


@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_is_of_its_kind_and_in_its_range(name):
    for plain, log, whole, word in run(name, GENES, mixed):
        assert type(plain) is float
        assert -1 <= plain <= 3
        assert 1e-4 <= log <= 1
        assert type(whole) is int
        assert 1 <= whole <= 9
        assert word in {"a", "b", "c"}


@pytest.mark.parametrize("name", NAMES)
def test_the_untuned_recipe_is_the_first_candidate(name):
    assert run(name, GENES, mixed, budget=4)[0] == (0.5, 1e-2, 3, "b")


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_a_search_repeatable_and_another_makes_another(name):
    first = run(name, TWO, sphere, budget=24)
    assert run(name, TWO, sphere, budget=24) == first
    assert run(name, TWO, sphere, budget=24, seed=1) != first


@pytest.mark.parametrize("name", NAMES)
def test_a_bowl_is_gone_down(name):
    losses = [sphere(values)[0] for values in run(name, TWO, sphere, budget=120)]
    assert losses[0] == pytest.approx(1.2**2 + 1.8**2)
    assert min(losses) < losses[0] / 5


def test_two_losses_give_candidates_between_both_optima():
    found = run("DE", (Number("x", -2, 2, 2),), lambda v: ((v[0] - 1) ** 2, (v[0] + 1) ** 2))
    assert sum(-1.1 <= x <= 1.1 for (x,) in found) > len(found) / 3


def test_an_optimiser_that_nobody_knows_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'CMA'"):
        Nevergrad("CMAA", TWO, budget=1, batch=1, seed=0)


def test_a_batch_is_cmas_population_or_four():
    assert [batch_size("CMA", n) for n in (1, 4, 10)] == [4, 8, 10]
    assert batch_size("NGOpt", 100) == 4
