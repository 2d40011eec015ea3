"""The numbers of each merge method: by reference implementations, by hand, and by brute force."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mergepipe.magprune import keep_probabilities
from mergepipe.method import (
    Block,
    Scope,
    Target,
    add_statistics,
    apply,
    load_method,
    method_names,
    run_survey,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())

# Numbers of reference implementations, in fp64 to 12 digits.

BASE = torch.tensor(GOLDEN["base"])
E1, E2, E3 = (torch.tensor(values) for values in GOLDEN["experts"])
THREE = {"e1": E1, "e2": E2, "e3": E3}
SPARSE = {f"e{i}": torch.tensor(values) for i, values in enumerate(GOLDEN["experts_sparse"], 1)}
BASE_1D = torch.tensor(GOLDEN["base_1d"])
THREE_1D = dict(zip(THREE, map(torch.tensor, GOLDEN["experts_1d"]), strict=True))
# Rounded after the subtraction: iso_cts amplifies what rounding before it would change.
THREE_DELTAS = {
    f"e{i}": torch.from_numpy(np.subtract(values, GOLDEN["base"]).astype(np.float32))
    for i, values in enumerate(GOLDEN["experts"], 1)
}


def ties_reference(**shared):
    models = {label: {"density": 0.2} for label in THREE}
    merged = apply("ties", BASE, THREE, models, trim="reference", elect="reference", **shared)
    return merged - BASE


def nuslerp(**shared):
    weights = {"e1": {"weight": 0.3}, "e3": {"weight": 0.7}}
    return apply("nuslerp", None, {"e1": E1, "e3": E3}, weights, **shared)


GOLDEN_CALLS = {
    "linear": lambda: apply("linear", None, THREE, {"e2": {"weight": 2.0}}),
    "slerp": lambda: apply("slerp", BASE, {"e3": E3}, t=0.3),
    "task_arithmetic": lambda: apply("task_arithmetic", BASE, THREE, lambda_=0.3),
    "ties_mergekit": lambda: apply(
        "ties",
        BASE,
        THREE,
        {k: {"weight": w, "density": 0.5} for k, w in zip(THREE, (0.5, 1.0, 0.8), strict=True)},
        lambda_=0.9,
        scope="tensor",
        elect="mergekit",
    ),
    "ties_reference_mean_delta": ties_reference,
    "ties_reference_sum_delta": partial(ties_reference, normalize=False),
    "breadcrumbs_delta_e1": lambda: (
        apply("breadcrumbs", BASE, {"e1": E1}, {"e1": {"density": 0.5, "gamma": 0.1}}) - BASE
    ),
    "sce_masked": lambda: apply("sce", BASE, THREE, select_topk=0.5),
    "sce_fuseai": lambda: apply("sce", BASE, THREE, select_topk=0.5, variant="fuseai"),
    "widen_2d": lambda: apply("widen", BASE, THREE),
    "widen_2d_t0.6_s0.8": lambda: apply("widen", BASE, THREE, t=0.6, s=0.8),
    "widen_embedding": lambda: apply("widen", BASE, THREE, role="embedding"),
    "widen_1d": lambda: apply("widen", BASE_1D, THREE_1D),
    "emr_unified": lambda: apply("emr", BASE, THREE) - BASE,
    "localize_and_stitch_dataless_delta": lambda: (
        apply("localize_and_stitch", BASE, THREE, {k: {"density": 0.3} for k in THREE}) - BASE
    ),
    "ram": lambda: apply("ram", BASE, SPARSE),
    "ram_plus": lambda: apply("ram_plus", BASE, SPARSE),
    "varm_matrix": lambda: apply("varm", BASE, THREE),
    "consensus_ta_delta": lambda: apply("consensus_ta", BASE, THREE) - BASE,
    "nuslerp_flatten": nuslerp,
    "nuslerp_rows": partial(nuslerp, flatten=False),
    "nuslerp_cols": partial(nuslerp, flatten=False, row_wise=True),
    "multislerp_base": lambda: apply(
        "multislerp", BASE, THREE, {"e2": {"weight": 2.0}, "e3": {"weight": 3.0}}
    ),
    "karcher": lambda: apply("karcher", None, THREE),
    "model_stock": lambda: apply("model_stock", BASE, THREE),
    "nearswap": lambda: apply("nearswap", BASE, {"e1": E1}, t=0.03),
    "arcee_fusion": lambda: apply("arcee_fusion", BASE, {"e1": E1}),
    "iso_c_delta": lambda: apply("iso_c", BASE, THREE) - BASE,
    "iso_cts_delta": lambda: apply("iso_cts", 0 * BASE, THREE_DELTAS, common_fraction=0.5),
    "tsv_m_delta": lambda: apply("tsv_m", BASE, THREE) - BASE,
    "wudi_delta": lambda: apply("wudi", BASE, THREE) - BASE,
    "della_keep_prob_e1": lambda: keep_probabilities(E1 - BASE, 0.6, 0.07).float(),
}


@pytest.mark.parametrize("case", GOLDEN_CALLS)
def test_results_are_those_of_the_reference_implementation(case):
    expected = torch.tensor(GOLDEN["cases"][case]["out"])
    assert_close(GOLDEN_CALLS[case](), expected, rtol=1e-5, atol=2e-7)


def test_every_case_of_a_method_we_have_is_checked():
    ours = {case for case in GOLDEN["cases"] if re.match("|".join(method_names()), case)}
    assert ours == set(GOLDEN_CALLS)


# TIES.


def kept(values, density, **shared):
    """The indexes that a TIES trim keeps of one task vector."""
    merged = apply(
        "ties",
        torch.zeros(len(values)),
        {"a": torch.tensor(values)},
        {"a": {"density": density}},
        **shared,
    )
    return merged.nonzero().flatten().tolist()


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties_keeps_exactly_k_equal_magnitudes_the_first_ones(scope):
    assert kept([1.0, -1.0] * 5, 0.3, scope=scope) == [0, 1, 2]
    assert kept([1.0, 2.0, -1.0, 1.0], 0.5, scope=scope) == [0, 1]


def test_the_authors_trim_keeps_one_element_more_and_all_ties():
    hundred = [float(x) for x in range(1, 101)]
    assert len(kept(hundred, 0.2, trim="reference")) == 21
    assert len(kept([1.0] * 100, 0.2, trim="reference")) == 100
    assert len(kept(hundred, 0.2)) == 20


def test_a_density_is_taken_in_decimal():
    hundred = [float(x) for x in range(1, 101)]
    assert int(0.29 * 100) == 28
    assert len(kept(hundred, 0.29)) == 29


@pytest.mark.parametrize(("density", "count"), [(0.0, 0), (1e-9, 1), (0.5, 2), (1.0, 4)])
def test_ties_keeps_at_least_one_element_unless_density_is_zero(density, count):
    assert len(kept([3.0, 1.0, 4.0, 1.5], density)) == count


def test_an_exact_cancellation_elects_nobody_plus_or_the_majority():
    base, a, b = torch.zeros(4), torch.tensor([1.0, 2, 3, 1]), torch.tensor([-1.0, 2, 3, 1])
    each = {"a": {"density": 1.0}, "b": {"density": 1.0}}
    first = {
        rule: apply("ties", base, {"a": a, "b": b}, each, elect=rule)[0].item()
        for rule in ("sum", "mergekit", "reference")
    }
    assert first == {"sum": 0.0, "mergekit": 1.0, "reference": 1.0}
    assert apply("ties", base, {"a": -a, "b": -b}, each, elect="reference")[0] == -1


def test_the_majority_is_that_of_the_weighted_task_vectors():
    base, a, b = torch.zeros(3), torch.tensor([1.0, 2, 2]), torch.tensor([1.0, 2, 2])
    each = {"a": {"density": 1.0, "weight": -1.0}, "b": {"density": 1.0, "weight": -1.0}}
    b[0] = -1
    assert apply("ties", base, {"a": a, "b": b}, each, elect="reference", normalize=False)[0] == -1


# TIES over a whole model is TIES over one long vector.


def blocks_of(base, models, each, shared, size):
    return [
        Block(
            Target(name, (len(base[name]),)),
            at,
            base[name][at : at + size],
            tuple(model[name][at : at + size] for model in models.values()),
            tuple(models),
            tuple(each.values()),
            shared,
        )
        for name in base
        for at in range(0, len(base[name]), size)
    ]


def merge_model(base, models, each, *, block, **shared):
    """Merge {name: tensor}, surveyed together in blocks; all tensors, one after the other."""
    method = load_method("ties")
    chosen, common = {k: method.each(**each[k]) for k in models}, method.shared(**shared)
    blocks = blocks_of(base, models, chosen, common, block)
    scope = Scope(dict.fromkeys(models, sum(map(len, base.values()))), chosen, common)
    found = run_survey(method.survey(scope), lambda m: add_statistics(map(m, blocks)))
    return torch.cat([method.merge(one, found) for one in blocks])


def ties_by_sorting(base, models, each, scale):
    """The paper's algorithm in numpy, with a full stable sort."""
    rows, weights = [], np.array([[each[label]["weight"]] for label in models])
    for label, model in models.items():
        delta = model - base
        count = round(each[label]["density"] * len(base))
        kept = np.argsort(-np.abs(delta), kind="stable")[:count]
        rows.append(np.zeros_like(base))
        rows[-1][kept] = delta[kept] * each[label]["weight"]
    agree = np.sign(rows) * np.sign(sum(rows)) > 0
    divisor = (weights * agree).sum(0)
    return base + scale * (rows * agree).sum(0) / np.where(divisor == 0, 1, divisor)


def drawn(seed, size):
    """A base and three models of whole numbers, so that ties abound; parameters for them."""
    draws = np.random.default_rng(seed)
    base, *rest = draws.integers(-3, 4, (4, size)).astype(np.float32)
    tenths = draws.integers(1, 10, 3).tolist()
    each = {k: {"density": n / 10, "weight": n / 4} for k, n in zip("abc", tenths, strict=True)}
    return base, dict(zip("abc", rest, strict=True)), each


def cut(vector, sizes):
    return {f"t{i:03}": part for i, part in enumerate(torch.from_numpy(vector).split(sizes))}


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    block=st.integers(1, 40),
)
def test_model_scope_is_one_long_vector_also_where_ties_cross_borders(seed, sizes, block):
    sizes = sizes * 10  # so that density·size is whole
    base, models, each = drawn(seed, sum(sizes))
    parts = {label: cut(model, sizes) for label, model in models.items()}
    merged = merge_model(cut(base, sizes), parts, each, block=block, lambda_=0.75)
    expected = ties_by_sorting(base, models, each, 0.75)
    assert_close(merged, torch.from_numpy(expected), check_dtype=False)


# SLERP.


def at_angle(degrees):
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("angle", [5.0, 60.0, 175.0])
def test_slerp_walks_along_the_arc(angle, t):
    merged = apply("slerp", at_angle(0), {"a": at_angle(angle)}, t=t)
    assert_close(merged, at_angle(t * angle))


@pytest.mark.parametrize("angle", [0.0, 1.0, 179.0, 180.0])
def test_slerp_takes_the_line_between_vectors_that_are_nearly_parallel(angle):
    merged = apply("slerp", at_angle(0), {"a": at_angle(angle)}, t=0.25)
    assert_close(merged, 0.75 * at_angle(0) + 0.25 * at_angle(angle))


def test_slerp_takes_a_vector_of_zeros_for_a_right_angle():
    merged = apply("slerp", torch.zeros(2), {"a": torch.ones(2)}, t=0.25)
    assert_close(merged, torch.full((2,), math.sin(math.pi / 8)))


def test_slerp_does_not_normalise_lengths():
    merged = apply("slerp", 2 * at_angle(0), {"a": 3 * at_angle(90)}, t=0.5)
    assert_close(merged, math.sqrt(0.5) * torch.tensor([2.0, 3.0]))
