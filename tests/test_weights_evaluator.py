"""The evaluator of weights, against the same numbers worked out by torch in double precision."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_evaluators import context, faults

from mergepipe.errors import InputError
from mergepipe.evaluate import differences, find_evaluator, league, markdown, score
from mergepipe.evaluate.cache import key_of
from mergepipe.evaluate.evaluation import Evaluation
from mergepipe.model import Usage
from mergepipe.model.load import local_model
from mergepipe.pipeline.late import LateModel
from mergepipe.search.objective import Objective

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
OTHERS = ("python", "german")


def weigh(model, folder=QUICKSTART, limit=None, **parameters):
    asked = context("weights", folder, **{"base": "base", **parameters})
    return find_evaluator("weights").evaluate(model, replace(asked, limit=limit))


def folder_model(name):
    return LateModel(QUICKSTART / name, name)


def tensors(folder):
    return {
        name: tensor.double()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name != "lm_head.weight"
    }


def delta(name):
    ours, base = tensors(QUICKSTART / name), tensors(QUICKSTART / "base")
    return torch.cat([(ours[one] - base[one]).flatten() for one in sorted(base)])


def cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


def conflict(a, b):
    both = (a != 0) & (b != 0)
    return ((a * b < 0) & both).sum().item() / both.sum().item()


def test_every_number_is_what_torch_says_in_double_precision():
    found = weigh(folder_model("arithmetic"), others={name: name for name in OTHERS})
    values = {name: metric.value for name, metric in found.metrics.items()}
    tau, python, german = map(delta, ("arithmetic", *OTHERS))
    whole = torch.cat([one.flatten() for one in tensors(QUICKSTART / "base").values()])
    fit = torch.linalg.lstsq(torch.stack([python, german], 1), tau[:, None]).solution[:, 0]
    left = tau - fit[0] * python - fit[1] * german
    expected = {
        "relative_norm": (tau.norm() / whole.norm()).item(),
        "changed": (tau != 0).double().mean().item(),
        "not_finite": 0,
        "outliers": 0,
        "cosine python": cosine(tau, python),
        "cosine german": cosine(tau, german),
        "sign_conflict python": conflict(tau, python),
        "sign_conflict german": conflict(tau, german),
        "share python": fit[0].item(),
        "share german": fit[1].item(),
        "residual": (left.norm() / tau.norm()).item() ** 2,
        "norm_ratio": (2 * tau.norm() / (python.norm() + german.norm())).item(),
        "others_sign_conflict": conflict(python, german),
    }
    assert values == pytest.approx(expected, rel=1e-6)
    assert next(iter(values)) == "relative_norm"


def test_a_mixture_of_the_others_is_found_out(tmp_path):
    base, python, german = (tensors(QUICKSTART / name) for name in ("base", *OTHERS))
    shutil.copytree(QUICKSTART / "base", tmp_path / "mixed")
    mixed = {
        name: (base[name] + 0.3 * (python[name] - base[name]) + 0.5 * (german[name] - base[name]))
        for name in base
    }
    save_file(
        {name: one.float() for name, one in mixed.items()}, tmp_path / "mixed/model.safetensors"
    )
    found = weigh(LateModel(tmp_path / "mixed", "mixed"), others={name: name for name in OTHERS})
    assert found.metrics["share python"].value == pytest.approx(0.3, abs=1e-5)
    assert found.metrics["share german"].value == pytest.approx(0.5, abs=1e-5)
    assert found.metrics["residual"].value < 1e-8


def test_a_model_in_memory_is_looked_at_as_one_on_the_disk(capfd):
    live = local_model(QUICKSTART / "arithmetic", "live")
    in_memory = weigh(live, others={"python": "python"})
    assert capfd.readouterr() == ("", "")
    on_disk = weigh(folder_model("arithmetic"), others={"python": "python"})
    # In memory the weights are float32: the same values.
    assert {name: one.value for name, one in in_memory.metrics.items()} == pytest.approx(
        {name: one.value for name, one in on_disk.metrics.items()}, rel=1e-12
    )


def test_the_base_itself_has_not_moved():
    found = weigh(folder_model("base"), others={name: name for name in OTHERS})
    assert found.metrics["relative_norm"].value == 0
    assert found.metrics["changed"].value == 0
    assert not [name for name in found.metrics if name.startswith(("cosine", "share"))]


def test_tensors_with_nan_are_counted_and_left_out(tmp_path):
    shutil.copytree(QUICKSTART / "german", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"][3] = math.nan
    save_file(stored, file, {"format": "pt"})
    found = weigh(LateModel(tmp_path / "broken", "broken"))
    assert found.metrics["not_finite"].value == 1
    assert {i.id for i in found.items if i.values["not_finite"]} == {"model.norm.weight"}
    assert math.isfinite(found.metrics["relative_norm"].value)


def test_a_tensor_far_from_the_others_is_an_outlier(tmp_path):
    shutil.copytree(QUICKSTART / "german", tmp_path / "odd")
    file = tmp_path / "odd" / "model.safetensors"
    stored = load_file(file)
    stored["model.layers.2.mlp.up_proj.weight"] *= 20
    save_file(stored, file, {"format": "pt"})
    found = weigh(LateModel(tmp_path / "odd", "odd"))
    assert found.metrics["outliers"].value == 1


def test_items_are_tensors_and_a_limit_takes_the_first():
    found = weigh(folder_model("german"), limit=3)
    names = list(itertools.islice(tensors(QUICKSTART / "base"), 3))
    assert len(found.items) == 3
    assert {item.id for item in found.items} <= set(tensors(QUICKSTART / "base"))
    assert len(names) == 3


def test_a_model_that_is_nowhere_is_refused_in_words():
    class Nowhere:
        name, fingerprint, abilities = "api", "f", frozenset({"generate"})
        usage = Usage()

    with pytest.raises(InputError, match="in no folder and not in memory"):
        weigh(Nowhere())
    evaluator = find_evaluator("weights")
    parameters = context("weights", QUICKSTART, base="base").parameters
    ((failure,)) = score([Nowhere()], [Evaluation("w", evaluator, parameters)]).failures
    assert "needs a model that can do weights" in failure.reason


def test_folders_are_checked_and_their_content_is_in_the_key(tmp_path):
    assert "base: there is no folder" in faults("weights", tmp_path, base="nowhere")
    shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    evaluator = find_evaluator("weights")

    def key():
        parameters = context("weights", tmp_path, base="base").parameters
        return key_of(evaluator, parameters, tmp_path, fingerprint="f")

    before = key()
    assert key() == before
    (tmp_path / "base" / "note.txt").write_text("changed")
    assert key() != before


def test_it_describes_and_ranks_nothing():
    result = weigh(folder_model("german"))
    upward = {name: metric.higher_is_better for name, metric in result.metrics.items()}
    assert upward.pop("not_finite") is False
    assert set(upward.values()) == {None}
    parameters = context("weights", QUICKSTART, base="base").parameters
    evaluation = Evaluation("w", find_evaluator("weights"), parameters)
    rows = score([folder_model("base"), folder_model("german")], [evaluation]).rows
    assert "**" not in markdown(rows)
    assert "Better" not in markdown(rows)
    assert {row.evaluation for row in league(rows, ("base",))} == {"w"}  # there is no `kept`
    assert not differences(rows, "base")
    with pytest.raises(InputError, match="neither more nor less of it is better"):
        Objective({"w": 1.0}).losses({"w": rows[0]}, ())
