"""WIDEN: its algorithm on whole matrices, its laws, its rounding, and its kernels."""

from __future__ import annotations

import itertools
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merges import NORM, Q_PROJ, run, tensors, write_models
from packing import DTYPES, VALUES, bits_of, pack_tensors
from torch.testing import assert_close

from mergepipe.kernels.packed import Out
from mergepipe.kernels.tiles import KINDS
from mergepipe.method import (
    Block,
    Scope,
    Target,
    add_statistics,
    apply,
    block_ranges,
    load_method,
    measure_blocks,
    run_survey,
)

METHOD = load_method("widen")


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def three(*shape):
    return draw(*shape), {label: draw(*shape, seed=seed) for seed, label in enumerate("abc", 1)}


def same_bits(actual, expected):
    return torch.equal(actual.view(torch.int32), expected.view(torch.int32))


# The algorithm, on whole matrices, column by column.


def places(differences):
    """Where each comes in ascending order, equal ones in theirs; what is below 1e-10 is noise."""
    shown = [round(float(x), 10) for x in differences]
    order = sorted(range(len(shown)), key=lambda column: shown[column])
    return [order.index(column) for column in range(len(shown))]


def turned(column, origin):
    """One less the cosine of the angle between two columns."""
    lengths = np.linalg.norm(column), np.linalg.norm(origin)
    if min(lengths) == 0:
        return float(max(lengths) > 0)
    return 1 - float(column / lengths[0] @ (origin / lengths[1]))


def column_scores(ranks, t, s):
    """For the ranks of each model: its softmax over models, or `s` above `t` times its mean."""
    size = len(ranks[0])
    shares = np.exp(np.array(ranks) / size)
    shares /= shares.sum(axis=0)
    for row, model in zip(shares, ranks, strict=True):
        for column, place in enumerate(model):
            if 2 * place > Decimal(str(t)) * (size - 1):
                row[column] = s
    return shares


def widened(base, models, t, s, *, drop=False):
    """A matrix merged in fp64."""
    base, *models = (x.double().numpy() for x in (base, *models))
    models = [x for x in models if not drop or (x != base).any()]
    if not models:
        return torch.from_numpy(base)
    lengths = [np.abs(np.linalg.norm(x, axis=0) - np.linalg.norm(base, axis=0)) for x in models]
    turns = [[turned(*pair) for pair in zip(x.T, base.T, strict=True)] for x in models]
    scores = sum(column_scores([places(x) for x in found], t, s) for found in (lengths, turns)) / 2
    return torch.from_numpy(base + sum(w * (x - base) for w, x in zip(scores, models, strict=True)))


@st.composite
def cases(draw_):
    """A base and models, some columns 0, unchanged or twice there; t and s; a size of blocks."""
    rows, columns = draw_(st.integers(1, 9)), draw_(st.integers(1, 12))
    count, seed = draw_(st.integers(1, 4)), draw_(st.integers(0, 2**32 - 1))
    base, *models = (draw(rows, columns, seed=seed + i) for i in range(count + 1))
    some = st.lists(st.integers(0, columns - 1), max_size=3)
    for model in models:
        unchanged = draw_(some)
        model[:, unchanged] = base[:, unchanged]
    for tensor in draw_(st.lists(st.sampled_from([base, *models]), max_size=2)):
        tensor[:, draw_(some)] = 0.0
    for one, other in draw_(st.lists(st.tuples(*[st.integers(0, columns - 1)] * 2), max_size=2)):
        for tensor in (base, *models):
            tensor[:, one] = tensor[:, other]
    if draw_(st.booleans()):
        models[0].copy_(base)
    t = draw_(st.sampled_from([-1.0, 0.0, 0.3, 0.6, 1.0, 1.5, 2.0]))
    s = draw_(st.sampled_from([0.0, 0.8, 1.0, 2.5]))
    return base, models, {"t": t, "s": s}, draw_(st.integers(1, 120))


def labelled(models):
    return dict(zip("abcd", models, strict=False))


@settings(deadline=None, max_examples=120)
@given(case=cases())
def test_matrices_are_merged_by_column_as_the_paper_says(case):
    base, models, shared, block = case
    merged = apply("widen", base, labelled(models), block=block, **shared)
    assert_close(merged.double(), widened(base, models, **shared), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_embeddings_are_merged_by_row(case):
    base, models, shared, block = case
    rows = labelled(model.T.contiguous() for model in models)
    merged = apply("widen", base.T, rows, role="embedding", block=block, **shared)
    assert_close(merged.T.double(), widened(base, models, **shared), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_models_that_changed_nothing_can_be_left_out(case):
    base, models, shared, block = case
    merged = apply(
        "widen", base, labelled(models), block=block, drop_unchanged=True, **shared
    ).double()
    assert_close(merged, widened(base, models, **shared, drop=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 5, 12, 29, 1000])
@pytest.mark.parametrize("shape", [(4, 3, 5), (5, 1, 4), (2, 3, 2, 3), (3, 4, 1)], ids=str)
def test_stacked_matrices_are_merged_each_by_itself(shape, block):
    base, models = three(*shape)
    merged = apply("widen", base, models, role="embedding", block=block)
    slices = [x.reshape(-1, *shape[-2:]) for x in (base, *models.values())]
    alone = [apply("widen", one, labelled(rest)) for one, *rest in zip(*slices, strict=True)]
    assert same_bits(merged, torch.stack(alone).reshape(shape))


def test_a_head_is_merged_by_column():
    base, models = three(9, 4)
    assert same_bits(apply("widen", base, models, role="head"), apply("widen", base, models))


# Scores.


def scores(base, models, **shared):
    """The scores of a matrix: [models, columns]."""
    origin, *flat = (x.flatten() for x in (base, *models))
    labels, values = tuple("abcd"[: len(flat)]), METHOD.shared(**shared)
    each = (METHOD.each(),) * len(flat)
    block = Block(Target("t", tuple(base.shape)), 0, origin, tuple(flat), labels, each, values)
    sizes = dict.fromkeys(labels, base.numel())
    survey = METHOD.survey(Scope(sizes, dict(zip(labels, each, strict=True)), values))
    return run_survey(survey, lambda measure: measure(block))[0]


@pytest.mark.parametrize("columns", range(1, 10))
def test_half_of_the_columns_are_calibrated_less_the_middle_one(columns):
    base, models = three(5, columns)
    found = scores(base, [models["a"]], s=-1.0)  # 1, or −1 where calibrated, by each factor
    assert (1 - found).sum() == 2 * (columns // 2)


@pytest.mark.parametrize(("t", "calibrated"), [(0.57, 72), (0.58, 71), (0.59, 71), (0.6, 70)])
def test_ranks_are_compared_with_the_mean_in_decimal(t, calibrated):
    assert 0.58 * 100 < 58  # of 101 columns those count whose 2p is above 100·t
    model = torch.arange(1.0, 102.0)[None]
    found = scores(torch.zeros(1, 101), [model], t=t, s=-1.0)
    assert (1 - found).sum() == 2 * calibrated


def test_without_calibration_two_models_share_each_column():
    base, models = three(6, 7)
    found = scores(base, [models["a"], models["b"]], t=2.0)
    assert_close(torch.from_numpy(found.sum(axis=0)), torch.ones(7))
    assert 0.2689 < found.min() < found.max() < 0.7311


def test_with_all_calibrated_task_vectors_are_added_up():
    base, models = three(6, 7)
    assert_close(apply("widen", base, models, t=-0.1), apply("task_arithmetic", base, models))


def test_a_single_column_is_never_calibrated():
    base, models = three(6, 1)
    assert_close(apply("widen", base, models, t=-0.1), sum(models.values()) / 3)


def test_a_model_that_changed_nothing_takes_its_share_unless_it_is_dropped():
    base, models = three(6, 8)
    idle = {**models, "d": base.clone()}
    alone = apply("widen", base, models)
    assert not torch.allclose(apply("widen", base, idle), alone)
    assert same_bits(apply("widen", base, idle, drop_unchanged=True), alone)


def test_a_dropped_model_is_dropped_from_its_matrix_of_a_stack_only():
    base, models = three(2, 6, 8)
    models["a"][1] = base[1]
    merged = apply("widen", base, models, drop_unchanged=True)
    rest = {label: models[label][1] for label in "bc"}
    assert same_bits(merged[1], apply("widen", base[1], rest))
    assert same_bits(merged[0], apply("widen", base[0], {k: v[0] for k, v in models.items()}))


# A column from nothing, one turned round, one of nothing: directions differ by 1, 2 and 0.
FROM_ZERO = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[3.0, -1.0, 0.0]])


def test_a_column_of_zeros_differs_by_one_from_any_other():
    assert scores(FROM_ZERO[0], [FROM_ZERO[1]], s=0.0).tolist() == [[0.5, 0.5, 1.0]]


def test_the_authors_code_ranks_columns_of_zeros_last():
    found = scores(FROM_ZERO[0], [FROM_ZERO[1]], s=0.0, compat="reference")
    assert found.tolist() == [[0.5, 1.0, 0.5]]


# Rounding.


def exact_direction(base, model):
    """Half the squared distance of unit columns, in extended precision."""
    one, other = (x.numpy().astype(np.longdouble) for x in (base, model))
    unit = [x / np.sqrt((x * x).sum(axis=0)) for x in (one, other)]
    return ((unit[0] - unit[1]) ** 2).sum(axis=0) / 2


def exactly_calibrated(base, model):
    """How many of both factors calibrate each column, t = 1, in extended precision."""
    one, other = (np.sqrt((x.numpy().astype(np.longdouble) ** 2).sum(0)) for x in (base, model))
    found = [np.abs(one - other), exact_direction(base, model)]
    middle = (base.shape[1] - 1) / 2
    return sum((x.argsort(kind="stable").argsort() > middle).astype(int) for x in found)


@pytest.mark.parametrize("scale", [2e-4, 2e-5, 2e-6])
def test_small_changes_are_ranked_exactly(scale):
    base = draw(2048, 64, scale=0.02)
    model = base + draw(2048, 64, seed=1, scale=scale)
    assert (1 - scores(base, [model], s=0.0)[0] == exactly_calibrated(base, model) / 2).all()


def test_differences_in_fp32_are_noise_where_changes_are_small():
    base = draw(2048, 64, scale=0.02)
    model = base + draw(2048, 64, seed=1, scale=2e-6)
    found = 1 - scores(base, [model], s=0.0, compat="reference")[0]
    assert (found != exactly_calibrated(base, model) / 2).mean() > 0.3


def authors_scores(base, models):
    """The scores as in the authors' code, fp32 and torch: t = s = 1."""
    lengths = [x.norm(dim=0) for x in (base, *models)]
    units = [x / length for x, length in zip((base, *models), lengths, strict=True)]
    by_length = torch.stack([(x - lengths[0]).abs() for x in lengths[1:]])
    cosines = [torch.cosine_similarity(x, units[0], dim=0) for x in units[1:]]
    total = 0
    for found in (by_length, 1 - torch.stack(cosines)):
        order = found.argsort(dim=1, stable=True)
        ranks = torch.arange(found.shape[1]).expand(found.shape) / found.shape[1]
        ranks = torch.zeros(found.shape).scatter(1, order, ranks)
        shares = ranks.softmax(dim=0)
        total = total + shares.masked_fill(ranks > ranks.mean(dim=1, keepdim=True), 1.0)
    return total / 2


@pytest.mark.parametrize("zeros", [False, True])
def test_compat_reference_gives_the_scores_of_the_authors_code(zeros):
    base, models = three(64, 30)
    if zeros:
        base[:, 3] = models["a"][:, 3] = models["b"][:, 7] = 0.0
    found = scores(base, list(models.values()), compat="reference")
    assert_close(torch.from_numpy(found), authors_scores(base, list(models.values())))


# Vectors.


def test_elements_of_a_vector_are_scored_by_how_much_they_changed():
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])  # means 2 and 2; only 3 is above
    low, high = torch.tensor([-1.0, 1.0]).sigmoid()
    merged = apply("widen", torch.zeros(2), {"a": a, "b": b})
    assert_close(merged, torch.stack([low * 1 + high * 2, 3 + low * 2]))


@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.6, 0.8), (-1.0, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_vectors_are_merged_as_the_paper_says(t, s, block):
    base, models = three(23)
    deltas = torch.stack([model - base for model in models.values()]).double()
    sizes = deltas.abs()
    shares = sizes.softmax(dim=0).masked_fill(sizes > t * sizes.mean(dim=1, keepdim=True), s)
    merged = apply("widen", base, models, t=t, s=s, block=block)
    assert_close(merged.double(), base + (shares * deltas).sum(dim=0), rtol=1e-5, atol=1e-6)


def test_a_vector_that_did_not_change_can_be_left_out():
    base, models = three(23)
    idle = {**models, "d": base.clone()}
    alone = apply("widen", base, models)
    assert not torch.allclose(apply("widen", base, idle), alone)
    assert same_bits(apply("widen", base, idle, drop_unchanged=True), alone)
    assert same_bits(apply("widen", base, {"d": idle["d"]}, drop_unchanged=True), base)


def test_a_merge_of_models_knows_their_embeddings(tmp_path):
    merged = run(write_models(tmp_path), {"method": "widen", "base": "base", "models": ["a", "b"]})
    models = {label: tensors(tmp_path / label) for label in ("base", "a", "b")}
    for name in ("model.embed_tokens.weight", "lm_head.weight", Q_PROJ, NORM):
        base, *rest = (model[name] for model in models.values())
        role = "embedding" if "embed" in name else "other"
        expected = apply("widen", base, labelled(rest), role=role)
        assert torch.equal(merged[name], expected.bfloat16()), name


# Kernels, of what `test_fused` has no shapes for.

SHAPES = [
    ((), "other"),
    ((0,), "other"),
    ((2050,), "other"),
    ((0, 3), "embedding"),
    ((3, 0), "embedding"),
    ((50, 37), "embedding"),
    ((5, 1030), "embedding"),
    ((40, 1030), "other"),
    ((300, 5), "other"),
    ((3, 0), "other"),
    ((6, 5, 7), "other"),
    ((9, 1, 4), "embedding"),
    ((2, 3, 20, 3), "other"),
]


def blocks_of(target, rows, shared, cut, *, packed):
    """The blocks of a tensor, packed or in fp32; the first row is the base."""
    labels = tuple("abc"[: len(rows) - 1])
    each = (METHOD.each(),) * len(labels)
    found = []
    for start, stop in block_ranges(target, METHOD.cut(shared, target), cut):
        runs = [row[start:stop] for row in rows]
        held = pack_tensors(runs, based=True, first=1) if packed else None
        base, *models = [None] if packed else [run.float() for run in runs]
        block = Block(target, start, base, tuple(models), labels, each, shared, packed=held)
        found.append(block)
    return found


def surveyed(target, blocks):
    sizes = dict.fromkeys(blocks[0].labels, target.numel)
    each = dict(zip(blocks[0].labels, blocks[0].each, strict=True))
    survey = METHOD.survey(Scope(sizes, each, blocks[0].shared))
    return run_survey(survey, lambda measure: add_statistics(measure_blocks(measure, blocks)))


def by_kernel(block, found, out):
    data = np.full(block.packed.count * DTYPES[out].itemsize, 0xAB, np.uint8)
    METHOD.kernel(block, found, Out(data, KINDS[out]))
    return torch.from_numpy(data.view(np.int32 if out == "F32" else np.int16)).view(DTYPES[out])


@pytest.mark.parametrize("drop_unchanged", [False, True])
@pytest.mark.parametrize(("shape", "role"), SHAPES, ids=str)
def test_a_kernel_gives_the_bits_of_the_definition_in_every_shape(shape, role, drop_unchanged):
    target, shared = Target("t", shape, role), METHOD.shared(drop_unchanged=drop_unchanged)
    names = list(DTYPES)
    for (at, values), cut in itertools.product(enumerate(VALUES), (50, 1 << 20)):
        generator = torch.Generator().manual_seed(at)
        dtypes = [DTYPES[names[(at + i) % 3]] for i in range(4)]
        rows = [VALUES[values](dtype, target.numel, generator) for dtype in dtypes]
        packed, plain = (blocks_of(target, rows, shared, cut, packed=x) for x in (True, False))
        found = surveyed(target, packed)
        np.testing.assert_array_equal(found, surveyed(target, plain))
        for fused, block in zip(packed, plain, strict=True):
            expected = METHOD.merge(block, found).to(DTYPES[names[at % 3]])
            assert torch.equal(bits_of(by_kernel(fused, found, names[at % 3])), bits_of(expected))
