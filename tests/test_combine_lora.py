"""`combine-lora`: sums of adapters held against the sums of what they add to the base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapters import by_peft, by_us
from checkpoints import edit_json, llama, llama_shapes, write_json, write_safetensors
from command_line import assert_clean, command, listing
from hypothesis import given
from hypothesis import strategies as st
from merges import digests, tensors
from safetensors.torch import load_file
from torch.testing import assert_close

from mergepipe.lora import combine
from mergepipe.lora.factors import decompose, decompose_sum

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj"
UP_PROJ = "model.layers.1.mlp.up_proj"
PREFIX = "base_model.model."
FIELDS = {"peft_type": "LORA", "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def adapter(folder, modules, seed, *, rank=4, dtype=torch.float32, **config):
    """Write an adapter with random factors; `modules` may be a mapping to ranks."""
    folder.mkdir()
    ranks = modules if isinstance(modules, dict) else dict.fromkeys(modules, rank)
    draw, shapes = torch.Generator().manual_seed(seed), llama_shapes()
    factors = {}
    for module, r in ranks.items():
        rows, columns = shapes[f"{module}.weight"]
        for side, shape in (("A", (r, columns)), ("B", (rows, r))):
            values = 0.3 * torch.randn(shape, generator=draw)
            factors[f"{PREFIX}{module}.lora_{side}.weight"] = values.to(dtype)
    write_safetensors(folder / WEIGHTS, factors)
    fields = {"r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(ranks), **config}
    write_json(folder / CONFIG, {**FIELDS, **fields})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base of zeros: with an adapter it is the adapter's update."""
    folder = llama(tmp_path_factory.mktemp("lora") / "base", dtype="F32")
    zeros = {name: torch.zeros_like(one) for name, one in tensors(folder).items()}
    write_safetensors(folder / "model.safetensors", zeros)
    return folder


@pytest.fixture(scope="module")
def three(base):
    """Adapters of other ranks, scalings and modules."""
    at, both = base.parent, (Q_PROJ, UP_PROJ)
    return (
        adapter(at / "plain", both, 1),
        adapter(at / "stable", both, 2, rank=8, use_rslora=True),
        adapter(
            at / "patterns",
            {UP_PROJ: 3, "model.layers.0.self_attn.v_proj": 2},
            3,
            rank_pattern={"up_proj": 3, "v_proj": 2},
            alpha_pattern={"layers.1.mlp.up_proj": 5.5},
        ),
    )


WEIGHTS_OF_THREE = (0.5, -1.25, 0.7)


def combined(adapters, out, weights=WEIGHTS_OF_THREE, **options):
    return combine([str(one) for one in adapters], weights, out, **options)


def updates(base, folder):
    return {name: one.double() for name, one in by_us(base, folder).items()}


def exact_sum(base, adapters, weights=WEIGHTS_OF_THREE):
    """The sum of the materialised updates, in fp64."""
    found = [updates(base, one) for one in adapters]
    return {n: sum(w * one[n] for w, one in zip(weights, found, strict=True)) for n in found[0]}


def assert_near(found, expected, most=3e-7):
    """Alike up to this share of the largest value: a few roundings to fp32."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert_close(found[name], values, rtol=0, atol=most * float(values.abs().max()))


# Sums


def test_cat_is_the_exact_sum(base, three, tmp_path):
    combined(three, tmp_path / "sum")
    assert_near(updates(base, tmp_path / "sum"), exact_sum(base, three))


def test_peft_applies_the_sum_as_we_do(base, three, tmp_path):
    combined(three, tmp_path / "sum")
    peft = {n: one.double() for n, one in by_peft(base, tmp_path / "sum").items()}
    expected = exact_sum(base, three)
    assert_near({name: peft[name] for name in expected}, expected, 2e-6)


def test_ranks_of_a_cat_are_the_sums_of_ranks(three, tmp_path):
    result = combined(three, tmp_path / "sum")
    ranks = {part.name.removesuffix(".weight"): part.rank for part in result.parts}
    assert ranks == {Q_PROJ: 12, UP_PROJ: 15, "model.layers.0.self_attn.v_proj": 2}
    config = json.loads((tmp_path / "sum" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (15, 15)
    assert config["rank_pattern"] == {Q_PROJ: 12, "model.layers.0.self_attn.v_proj": 2}
    assert not config["use_rslora"]


def test_svd_at_full_rank_equals_cat(base, three, tmp_path):
    combined(three, tmp_path / "cat")
    combined(three, tmp_path / "svd", how="svd")
    assert_near(updates(base, tmp_path / "svd"), updates(base, tmp_path / "cat"), 1e-6)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_svd_is_the_best_of_its_rank(base, three, tmp_path, rank):
    result = combined(three, tmp_path / "svd", rank=rank)
    best, found = exact_sum(base, three), updates(base, tmp_path / "svd")
    for part in result.parts:
        u, s, vh = torch.linalg.svd(best[part.name], full_matrices=False)
        dense = u[:, :rank] * s[:rank] @ vh[:rank]
        assert_close(found[part.name], dense, rtol=0, atol=1e-6 * float(s[0]))
        kept = float(s[:rank].square().sum() / s.square().sum())
        assert part.held / part.change == pytest.approx(kept, rel=1e-6)


def test_the_order_of_adapters_does_not_matter(base, three, tmp_path):
    for options in ({}, {"how": "svd"}, {"rank": 5}):
        combined(three, tmp_path / "one", overwrite=True, **options)
        backwards = three[::-1], tmp_path / "two", WEIGHTS_OF_THREE[::-1]
        combined(*backwards, overwrite=True, **options)
        one, two = (updates(base, tmp_path / name) for name in ("one", "two"))
        assert_near({name: two[name] for name in one}, one, 1e-6)


def test_one_adapter_alone_keeps_its_update(base, three, tmp_path):
    combined(three[1:2], tmp_path / "sum", [1.0])
    assert_near(updates(base, tmp_path / "sum"), updates(base, three[1]))


def test_an_adapter_of_weight_0_takes_no_rank(three, tmp_path):
    result = combined(three, tmp_path / "sum", (1.0, 0.0, 0.0))
    assert {part.rank for part in result.parts} == {4}


def test_svd_finds_that_an_adapter_was_given_twice(base, three, tmp_path):
    result = combined([three[0], three[0]], tmp_path / "sum", (0.25, 0.5), how="svd")
    assert {part.rank for part in result.parts} == {4}
    expected = exact_sum(base, three[:1], (0.75,))
    assert_near(updates(base, tmp_path / "sum"), expected, 1e-6)


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_embeddings_are_added_up_too(base, tmp_path, how):
    folders = []
    for seed, rank in ((1, 2), (2, 3)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        draw = torch.Generator().manual_seed(seed)
        name = f"{PREFIX}model.embed_tokens.lora_embedding_"
        shapes = {"A": (rank, 320), "B": (64, rank)}
        factors = {
            name + side: torch.randn(shape, generator=draw) for side, shape in shapes.items()
        }
        write_safetensors(folder / WEIGHTS, factors)
        fields = {"r": rank, "lora_alpha": 3, "target_modules": ["embed_tokens"]}
        write_json(folder / CONFIG, {**FIELDS, **fields})
        folders.append(folder)
    combined(folders, tmp_path / "sum", (0.5, 2.0), how=how)
    expected = exact_sum(base, folders, (0.5, 2.0))
    assert_near(updates(base, tmp_path / "sum"), expected, 1e-6)
    peft = by_peft(base, tmp_path / "sum")["model.embed_tokens.weight"].double()
    assert_near({"e": peft}, {"e": expected["model.embed_tokens.weight"]}, 1e-6)


def test_factors_of_bf16_adapters_are_kept_exactly(tmp_path):
    """Their scales are powers of 2, so that nothing is rounded at all."""
    folders = [
        adapter(tmp_path / str(seed), (Q_PROJ,), seed, dtype=torch.bfloat16) for seed in (1, 2)
    ]
    combined(folders, tmp_path / "sum", (1.0, 0.5), dtype="bfloat16")
    found = load_file(tmp_path / "sum" / WEIGHTS)
    first = load_file(folders[0] / WEIGHTS)
    a, b = (f"{PREFIX}{Q_PROJ}.lora_{side}.weight" for side in "AB")
    assert torch.equal(found[a][:4], first[a])
    assert torch.equal(found[b][:, :4], 2 * first[b])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**31))
def test_the_spectrum_of_a_sum_is_that_of_the_dense_sum(ranks, seed):
    """Also where the ranks add up to more than the matrix has."""
    draw = torch.Generator().manual_seed(seed)
    bs = [torch.randn(7, r, generator=draw, dtype=torch.float64) for r in ranks]
    a_s = [torch.randn(r, 5, generator=draw, dtype=torch.float64) for r in ranks]
    dense = sum(b @ a for b, a in zip(bs, a_s, strict=True))
    found = decompose_sum(bs, a_s)
    assert_close(found.s, decompose(dense).s, rtol=1e-9, atol=1e-11)
    assert_close(found.u * found.s @ found.vh, dense, rtol=0, atol=1e-11)


# Which modules PEFT looks for


def test_targets_that_all_adapters_share_are_kept(tmp_path):
    short = {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": [0, 1]}
    folders = [adapter(tmp_path / str(s), (Q_PROJ, UP_PROJ), s, **short) for s in (1, 2)]
    combined(folders, tmp_path / "sum", (1, 1))
    config = json.loads((tmp_path / "sum" / CONFIG).read_text())
    assert {field: config[field] for field in short} == short


def test_targets_that_differ_are_named_in_full(three, tmp_path):
    combined(three, tmp_path / "sum")
    config = json.loads((tmp_path / "sum" / CONFIG).read_text())
    assert config["target_modules"] == sorted([Q_PROJ, "model.layers.0.self_attn.v_proj", UP_PROJ])


# The command line


@pytest.fixture
def two(tmp_path):
    """Two adapters to be spoilt."""
    return [adapter(tmp_path / name, (Q_PROJ,), seed) for seed, name in enumerate(("a", "b"))]


def run(capsys, *arguments):
    return command(capsys, "combine-lora", *arguments)


def test_the_command_prints_what_the_sum_keeps(two, tmp_path, capsys):
    said = run(capsys, *two, "--weights", "0.5,0.5", "--rank", "3", "--out", tmp_path / "sum")
    assert said.status == 0
    assert "q_proj" in said.out
    assert "sum: 1 update;" in said.err
    assert listing(tmp_path / "sum") == [CONFIG, WEIGHTS]


def test_json_has_ranks_and_energy(two, tmp_path, capsys):
    said = run(capsys, *two, "--rank", "3", "--out", tmp_path / "sum", "--json")
    (kind,) = json.loads(said.out)["kinds"]
    assert kind["ranks"] == [3, 3]
    assert 0 < kind["energy"] < 1


def test_weights_may_be_negative_and_default_to_1(base, two, tmp_path, capsys):
    assert run(capsys, *two, "--out", tmp_path / "sum").status == 0
    assert run(capsys, *two, "--weights=1,-1", "--out", tmp_path / "difference").status == 0
    for name, weights in (("sum", (1, 1)), ("difference", (1, -1))):
        assert_near(updates(base, tmp_path / name), exact_sum(base, two, weights))


def test_another_base_is_warned_of(two, tmp_path, capsys):
    edit_json(two[1] / CONFIG, base_model_name_or_path="elsewhere")
    said = run(capsys, *two, "--out", tmp_path / "sum")
    assert (said.status, "warning: b: its base is elsewhere, that of a is base" in said.err) == (
        0,
        True,
    )


OPTIONS = {
    "too few weights": (["--weights", "1"], "1 weights for 2 adapters"),
    "weights of words": (["--weights", "a,b"], "not numbers"),
    "weights of NaN": (["--weights", "1,nan"], "finite"),
    "weights of 0": (["--weights", "0,0"], "nothing is left"),
    "another way": (["--how", "linear"], "give cat or svd"),
    "cat to a rank": (["--how", "cat", "--rank", "2"], "leave it out"),
    "no dtype": (["--dtype", "int8"], "no dtype for an adapter"),
}


@pytest.mark.parametrize(("arguments", "words"), OPTIONS.values(), ids=OPTIONS)
def test_wrong_options_are_refused(two, tmp_path, capsys, arguments, words):
    said = run(capsys, *two, "--out", tmp_path / "sum", *arguments)
    assert said.status == 2
    assert words in said.err
    assert not (tmp_path / "sum").exists()


def config(**fields):
    return lambda folder: edit_json(folder / CONFIG, **fields)


def stored(**extra):
    """Spoil: more tensors in the adapter's file, or others."""
    return lambda folder: write_safetensors(
        folder / WEIGHTS,
        load_file(folder / WEIGHTS)
        | {PREFIX + name.replace("__", "."): value for name, value in extra.items()},
    )


def nan(folder):
    values = load_file(folder / WEIGHTS)
    values[f"{PREFIX}{Q_PROJ}.lora_A.weight"][0, 0] = float("nan")
    write_safetensors(folder / WEIGHTS, values)


def of_other_size(folder):
    shutil.rmtree(folder)
    adapter(folder, ("model.layers.0.self_attn.k_proj",), 1)
    renamed = {n.replace("k_proj", "q_proj"): v for n, v in load_file(folder / WEIGHTS).items()}
    write_safetensors(folder / WEIGHTS, renamed)


UNFIT = {
    "DoRA": (config(use_dora=True), "use_dora"),
    "another type": (config(peft_type="IA3"), "IA3"),
    "biases of LoRA": (config(lora_bias=True), "lora_bias"),
    "PiSSA": (config(init_lora_weights="pissa"), "pissa"),
    "whole module": (stored(model__norm__weight=torch.ones(64)), "'model.norm.weight' whole"),
    "a bias": (stored(model__layers__0__self_attn__q_proj__bias=torch.ones(64)), "bias"),
    "a variant": (stored(x__lora_magnitude_vector__weight=torch.ones(9)), "variant"),
    "other orientation": (config(fan_in_fan_out=True), "fan_in_fan_out is not that of a"),
    "another rank": (config(r=5), "rank 5 of its config"),
    "another size": (of_other_size, "updates [32, 64], a/adapter_model.safetensors [64, 64]"),
    "half of a pair": (stored(x__lora_A__weight=torch.ones(4, 4)), "only one of"),
    "vectors": (
        stored(x__lora_A__weight=torch.ones(4), x__lora_B__weight=torch.ones(4)),
        "only matrices",
    ),
    "no config": (lambda f: (f / CONFIG).unlink(), "does not exist"),
    "NaN": (nan, f"{Q_PROJ}.lora_A.weight: holds nan"),
    "no adapter": (shutil.rmtree, "is no folder here"),
}


@pytest.mark.parametrize(("spoil", "words"), UNFIT.values(), ids=UNFIT)
def test_an_adapter_that_cannot_be_added_up_is_refused(two, tmp_path, capsys, spoil, words):
    spoil(two[1])
    said = run(capsys, *two, "--out", tmp_path / "sum")
    assert said.status == 2
    assert words in said.err
    assert "b" in said.err.split(":")[1]
    assert_clean(said.err)
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}


def test_adapters_that_cancel_out_are_refused(two, tmp_path, capsys):
    said = run(capsys, two[0], two[0], "--weights=1,-1", "--how", "svd", "--out", tmp_path / "sum")
    assert (said.status, "cancel each other out" in said.err) == (2, True)


def test_a_folder_that_is_there_is_kept_without_overwrite(two, tmp_path, capsys):
    out = tmp_path / "sum"
    assert run(capsys, *two, "--out", out).status == 0
    before = digests(out)
    said = run(capsys, *two, "--out", out, "--rank", "1")
    assert (said.status, "--overwrite" in said.err, digests(out)) == (2, True, before)
    assert run(capsys, *two, "--out", out, "--rank", "1", "--overwrite").status == 0
    assert digests(out) != before
