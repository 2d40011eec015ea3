"""Evo-Merging and LoraHub: the composition by hand, and searches that can be repeated."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import edit_json
from command_line import command
from hypothesis import given
from hypothesis import strategies as st
from merge_service import ADAPTERS, QUICKSTART
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mergepipe.checkpoint import ModelSource, open_checkpoint
from mergepipe.errors import InputError, Problems
from mergepipe.lora.composed import ComposedModels
from mergepipe.lora.composing import Factors, kept_count, open_adapters
from mergepipe.search.evo import Genome, Preset, evolve, lorahub, uniform

NAMES = ("sum", "difference", "upper")
KEEP, WEIGHTS = [0.3, 1.0, 0.0], [0.8, -0.5, 0.4]
PAIRS = [("12+4=", "16\n"), ("47-8=", "39\n"), ("upper stone: ", "STONE\n")]
SMALL = Preset(denoising=60, scaling=120, population=8)


@pytest.fixture(scope="module")
def pool():
    return open_adapters({name: ADAPTERS / name for name in NAMES})


@pytest.fixture(scope="module")
def models(pool):
    return ComposedModels(QUICKSTART / "base", pool)


def factors(a, b, scale=1.0):
    a, b = torch.tensor(a), torch.tensor(b)
    return Factors(a, b, scale, a.abs().flatten(1).sort(dim=1, descending=True).values)


# The composition


def test_only_a_is_thinned_and_both_factors_are_weighted():
    """A₁ keeps 2 of its 4; ties at the threshold stay, so A₂ keeps 3 where it may keep 2."""
    one = factors(
        [[[4.0, -3.0], [1.0, 2.0]], [[1.0, 5.0], [-1.0, 0.5]]],
        [[[1.0, 0.0]], [[0.0, 2.0]]],
    )
    b, a = one.composed([0.5, 0.5], [2.0, -1.0])
    assert a.tolist() == [[8.0 - 1.0, -6.0 - 5.0], [0.0 + 1.0, 0.0]]
    assert b.tolist() == [[2.0, -2.0]]


def test_an_adapter_of_which_nothing_is_kept_still_gives_its_b():
    one = factors([[[1.0]], [[3.0]]], [[[1.0]], [[10.0]]])
    b, a = one.composed([1.0, 0.0], [1.0, 1.0])
    assert (a.item(), b.item()) == (1.0, 11.0)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_a_share_keeps_one_entry_at_least_and_all_at_most(share, size):
    count = kept_count(share, size)
    assert count == 0 if share == 0 else 1 <= count <= size
    assert abs(count - share * size) <= 1


@given(st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6), st.floats(0, 1))
def test_what_is_kept_is_never_smaller_than_what_is_not(values, share):
    a = torch.tensor(values).view(1, 2, 3)
    sorted_ = a.abs().flatten(1).sort(dim=1, descending=True).values
    _, kept = Factors(a, torch.ones(1, 1, 2), 1.0, sorted_).composed([share], [1.0])
    dropped = a[0][(kept == 0) & (a[0] != 0)].abs()
    stayed = kept[kept != 0].abs()
    assert not len(dropped) or not len(stayed) or dropped.max() < stayed.min()
    assert (kept != 0).sum() >= min(kept_count(share, 6), int((a != 0).sum()))


def test_it_is_the_plain_loop_over_adapters(pool):
    """As the paper's code goes, adapter by adapter, in fp32."""
    files = [load_file(ADAPTERS / name / "adapter_model.safetensors") for name in NAMES]
    for module, (b, a) in pool.composed(KEEP, WEIGHTS).items():
        prefix = f"base_model.model.{module}.lora_"
        wanted_a, wanted_b = torch.zeros_like(a), torch.zeros_like(b)
        for file, keep, weight in zip(files, KEEP, WEIGHTS, strict=True):
            one = file[f"{prefix}A.weight"].float()
            count = max(1, round(keep * one.numel())) if keep else 0
            if count:
                threshold = one.abs().flatten().topk(count).values.min()
                wanted_a += weight * one * (one.abs() >= threshold)
            wanted_b += weight * file[f"{prefix}B.weight"].float()
        torch.testing.assert_close(a, wanted_a, rtol=0, atol=1e-7)
        torch.testing.assert_close(b, wanted_b, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's
def test_one_whole_adapter_is_that_adapter_as_peft_applies_it(models):
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(model, ADAPTERS / "sum").eval()
    ours = models.composed([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    ids = torch.tensor([[1, *ours.loaded.encode(["12+4=16\n47+8="])[0]]])
    with torch.inference_mode():
        torch.testing.assert_close(ours.module(ids).logits, theirs(ids).logits, rtol=0, atol=2e-4)


def test_no_weights_give_the_base_again(models):
    models.composed(KEEP, WEIGHTS)
    base = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", dtype=torch.float32)
    state = models.composed([1.0] * 3, [0.0] * 3).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's
def test_the_written_adapter_is_of_the_same_rank_and_answers_alike(pool, models, tmp_path):
    pool.write(KEEP, WEIGHTS, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(model, tmp_path / "merged").eval()
    ours = models.composed(KEEP, WEIGHTS)
    ids = torch.tensor([[1, *ours.loaded.encode(["12+4=16\nupper stone: STONE"])[0]]])
    with torch.inference_mode():
        torch.testing.assert_close(ours.module(ids).logits, theirs(ids).logits, rtol=0, atol=2e-4)
    problems = Problems()
    source = ModelSource("merged", QUICKSTART / "base", None, None, tmp_path / "merged")
    assert open_checkpoint(source, problems).low_rank
    assert not problems.found


def test_fingerprints_tell_compositions_apart(models):
    found = [models.composed(KEEP, [w, 0.0, 0.0]).fingerprint for w in (0.1, 0.2, 0.1)]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora_alpha": 16}, "alpha"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 8}, "rank 8"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_adapters_that_do_not_fit_together_are_refused_by_name(tmp_path, change, says):
    shutil.copytree(ADAPTERS / "sum", tmp_path / "other")
    edit_json(tmp_path / "other" / "adapter_config.json", **change)
    with pytest.raises(InputError, match=says) as caught:
        open_adapters({"sum": ADAPTERS / "sum", "other": tmp_path / "other"})
    assert "other" in str(caught.value)


def test_an_adapter_of_other_modules_or_with_nan_is_refused(tmp_path):
    for change, says in (("drop", "some adapters only"), ("nan", "nan or inf")):
        shutil.copytree(ADAPTERS / "sum", tmp_path / change)
        file = tmp_path / change / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(iter(tensors))
        module = name.partition(".lora_")[0]
        kept = {k: v for k, v in tensors.items() if change == "nan" or not k.startswith(module)}
        if change == "nan":
            kept[name][0, 0] = torch.nan
        save_file(kept, file)
        with pytest.raises(InputError, match=says):
            open_adapters({"sum": ADAPTERS / "sum", "other": tmp_path / change})


@pytest.mark.parametrize(("keep", "weights"), [([0.5], [1.0] * 3), ([2.0] * 3, [1.0] * 3)])
def test_shares_and_weights_must_be_those_of_the_adapters(pool, keep, weights):
    with pytest.raises(InputError):
        pool.composed(keep, weights)


# The searches


def bowl(genomes):
    """Best where α = (1, 0, 0.5) and β = (1, -1, 0)."""
    target = np.array([1.0, 0.0, 0.5]), np.array([1.0, -1.0, 0.0])
    return [
        float(np.square(g.keep - target[0]).sum() + np.square(g.weights - target[1]).sum())
        for g in genomes
    ]


def test_two_stages_find_the_bottom_of_a_bowl():
    found = evolve(3, bowl, seed=1)
    assert found.genome.keep == pytest.approx((1.0, 0.0, 0.5), abs=0.05)
    assert found.genome.weights == pytest.approx((1.0, -1.0, 0.0), abs=0.05)


def test_the_stages_go_one_after_the_other_from_their_starts():
    asked = []
    evolve(3, lambda genomes: asked.append(genomes) or bowl(genomes), preset=SMALL)
    firsts = [batch[0] for batch in asked if len(batch) == 1]
    assert firsts[0] == uniform(3)
    assert firsts[1].weights == (1 / 3,) * 3
    second = next(i for i, batch in enumerate(asked) if batch[0] is firsts[1])
    assert {g.weights for batch in asked[:second] for g in batch} == {(1 / 3,) * 3}
    assert {g.keep for batch in asked[second:] for g in batch} == {firsts[1].keep}
    assert {len(batch) for batch in asked} == {1, 8}


def test_values_stay_in_their_ranges():
    asked = []
    evolve(3, lambda genomes: asked.extend(genomes) or bowl(genomes), preset=SMALL)
    assert all(0 <= share <= 1 for g in asked for share in g.keep)
    assert all(-1.5 <= weight <= 1.5 for g in asked for weight in g.weights)


def test_the_best_of_the_first_stage_is_not_carried_into_the_second():
    """Its penalty is another: a loss that is flat must leave small weights, not the start."""
    found = evolve(3, lambda genomes: [1.0] * len(genomes), preset=SMALL)
    assert sum(found.genome.keep) < 2.5
    assert sum(map(abs, found.genome.weights)) < 0.5
    stage = found.curve.index(max(found.curve[60:]), 60)
    assert list(found.curve[stage:]) == sorted(found.curve[stage:], reverse=True)
    assert found.curve[stage] == pytest.approx(1 + 0.05 / 3)


def test_a_seed_repeats_a_search_whatever_numpy_drew_before():
    np.random.seed(5)  # noqa: NPY002 -- what pycma draws from, left alone
    first = evolve(3, bowl, preset=SMALL, seed=7)
    np.random.seed(6)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert evolve(3, bowl, preset=SMALL, seed=7) == first
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert evolve(3, bowl, preset=SMALL, seed=8) != first


def test_the_generations_are_those_of_plain_pycma():
    asked = []
    evolve(3, lambda genomes: asked.append(genomes) or bowl(genomes), preset=SMALL, seed=7)
    import cma  # with warnings, so not before it has been imported

    options = {"bounds": [0, 1], "popsize": 8, "seed": 7, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([1.0] * 3, 0.05, options)
    for batch in asked[1:4]:
        points = strategy.ask()
        assert np.array_equal(np.clip(points, 0, 1), [g.keep for g in batch])
        losses = bowl(batch)
        penalties = [0.05 * sum(g.keep) / 3 for g in batch]
        strategy.tell(points, [x + y for x, y in zip(losses, penalties, strict=True)])


def test_lorahub_starts_at_nothing_and_keeps_to_its_budget():
    asked = []
    found = lorahub(3, lambda genomes: asked.extend(genomes) or bowl(genomes), seed=3)
    assert asked[0].weights == (0.0, 0.0, 0.0)
    assert 40 <= len(asked) <= 41
    assert {g.keep for g in asked} == {(1.0, 1.0, 1.0)}
    assert found == lorahub(3, bowl, seed=3)
    assert found.loss < bowl([asked[0]])[0]


@pytest.mark.parametrize("search", [evolve, lorahub])
def test_a_loss_that_is_no_number_ends_a_search(search):
    with pytest.raises(InputError, match="nan"):
        search(2, lambda genomes: [float("nan")] * len(genomes))
    with pytest.raises(InputError, match="adapters"):
        search(0, bowl)


def test_evo_finds_the_adapter_of_a_skill_among_others(models):
    def loss(genomes):
        found = []
        for one in genomes:
            scores = models.composed(one.keep, one.weights).loglikelihood(PAIRS[:1])
            found.append(-scores[0].logprob / scores[0].tokens)
        return found

    small = Preset(denoising=32, scaling=96, population=8, sigma=0.2)
    found = evolve(3, loss, preset=small)
    assert found.loss < 0.5 * loss([uniform(3)])[0]
    assert abs(found.genome.weights[NAMES.index("sum")]) > 0.3
    assert loss([Genome(found.genome.keep, found.genome.weights)])[0] == found.loss


# The command


def test_the_command_writes_an_adapter_and_says_what_it_is_made_of(tmp_path, capsys):
    lines = [{"prompt": f"{a}+4=", "label": f"{a + 4}\n"} for a in range(20, 30)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folders = [ADAPTERS / name for name in NAMES]
    small = ["--denoising", 20, "--scaling", 40]
    base = ["--base", QUICKSTART / "base", "--out", tmp_path / "out", *small]
    shown = command(capsys, "evolve-lora", tmp_path / "data.jsonl", *folders, *base)
    assert shown.status == 0, shown.err
    assert "held out" in shown.out
    said = json.loads((tmp_path / "out" / "evolved.json").read_text())
    assert said["seen"]["found"] < said["seen"]["uniform"]
    assert set(said["held_out"]) == {"base", "uniform", "found"}
    named = said["merge"]["models"].values()
    keep, weights = ([one[key] for one in named] for key in ("density", "weight"))
    pool = open_adapters({str(folder): folder for folder in folders})
    pool.write(keep, weights, tmp_path / "again")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_command_needs_adapters_or_a_service(tmp_path, capsys):
    said = command(capsys, "evolve-lora", tmp_path / "data.jsonl")
    assert said.status == 2
    assert "give --base and adapters, or --service" in said.err


def test_combine_lora_composes_with_given_coefficients(pool, tmp_path, capsys):
    folders = [ADAPTERS / name for name in NAMES]
    given = ["--weights=0.8,-0.5,0.4", "--densities", "0.3,1,0", "--out", tmp_path / "out"]
    assert command(capsys, "combine-lora", *folders, "--how", "asymmetric", *given).status == 0
    pool.write(KEEP, WEIGHTS, tmp_path / "again")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
