"""Post-steps in recipes: what a merge gives is changed before it is rounded and written."""

from __future__ import annotations

import pytest
import torch
import yaml
from checkpoints import llama
from command_line import command
from merges import tensors

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.execute import Resources
from mergepipe.method import apply
from mergepipe.pipeline import merge, prepare
from mergepipe.plan import as_json, role_of

LABELS = ("a", "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("then")
    for seed, label in enumerate(("base", *LABELS)):
        llama(made / label, seed=seed, dtype="F32")
    return made


def prepared(folder, fields, out=None, **resources):
    merge_fields = {"method": "task_arithmetic", "base": "base", "models": list(LABELS), **fields}
    models = {label: f"./{label}" for label in ("base", *LABELS)}
    recipe = {"mergepipe": 1, "models": models, "merge": merge_fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return prepare(folder / "recipe.yaml", out=out, resources=Resources(**resources))


def merged(folder, out, fields, **resources):
    merge(prepared(folder, fields, out, **resources))
    return tensors(out)


def in_memory(folder, name, then, **shared):
    base = tensors(folder / "base")[name]
    models = {label: tensors(folder / label)[name] for label in LABELS}
    place = {"tensor": name, "role": role_of(name, base.shape)}
    return apply("task_arithmetic", base, models, then=then, **place, **shared)


def test_a_post_step_gives_what_it_gives_in_memory(folder, tmp_path):
    found = merged(folder, tmp_path / "out", {"then": [{"svc": {"alpha": 0.3}}], "lambda": 0.5})
    for name, one in found.items():
        assert torch.equal(one, in_memory(folder, name, [("svc", {"alpha": 0.3})], lambda_=0.5))


def test_lines_measures_the_whole_model_and_scales_by_depth(folder, tmp_path):
    found = merged(folder, tmp_path / "out", {"then": [{"lines": {"beta": 0.5}}], "lambda": 0.5})
    base, plain = tensors(folder / "base"), merged(folder, tmp_path / "plain", {"lambda": 0.5})
    # λ Σ τ is half of Σ τ, so α = (1 / 0.5) / 2 models.
    up = "model.layers.{}.mlp.up_proj.weight".format
    last = max(int(name.split(".")[2]) for name in found if ".layers." in name)
    for name, scale in ((up(0), 1.0), (up(last), 1.5), ("lm_head.weight", 1.0)):
        expected = base[name] + scale * (plain[name] - base[name])
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)


def test_post_steps_follow_each_other_in_order(folder, tmp_path):
    one = merged(
        folder, tmp_path / "one", {"then": [{"lines": {"alpha": 2.0, "beta": 0.0}}, "svc"]}
    )
    other = in_memory(
        folder, name := "model.layers.0.mlp.up_proj.weight", [("svc", {})], lambda_=2.0
    )
    torch.testing.assert_close(one[name], other, rtol=1e-5, atol=1e-6)


def test_a_rule_has_post_steps_of_its_own(folder, tmp_path):
    rule = {"tensors": "*.up_proj.*", "then": []}
    found = merged(folder, tmp_path / "out", {"then": ["svc"], "where": [rule]})
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], in_memory(folder, name, []))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(found[name], in_memory(folder, name, [("svc", {})]))


@pytest.mark.parametrize("then", [["svc"], ["lines"], ["lines", "svc"]], ids=str)
def test_threads_and_memory_do_not_change_bytes(folder, tmp_path, then):
    one = merged(folder, tmp_path / "one", {"then": then}, threads=1, max_memory=1 << 26)
    two = merged(folder, tmp_path / "two", {"then": then}, threads=2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ties_after_a_survey_of_its_own_is_surveyed_again(folder, tmp_path):
    fields = {"method": "ties", "then": [{"lines": {"alpha": 1.0, "beta": 0.0}}]}
    found = merged(folder, tmp_path / "out", fields)
    plain = merged(folder, tmp_path / "plain", {"method": "ties"})
    for name, one in found.items():
        torch.testing.assert_close(one, plain[name], rtol=1e-6, atol=1e-8)


def test_the_plan_says_what_follows_and_what_must_be_whole(folder, capsys):
    plan = prepared(folder, {"then": ["svc"]}).plans[0]
    needs = {group["needs"]: group["then"] for group in as_json(plan, 1)["groups"]}
    assert set(needs) == {"", "whole matrices"}
    assert needs["whole matrices"][0].startswith("svc(alpha=")
    said = command(capsys, "plan", folder / "recipe.yaml")
    assert "whole matrices at once" in said.out
    assert "then svc(alpha=" in said.out


def test_a_matrix_that_does_not_fit_is_refused_before_anything_is_read(folder):
    with pytest.raises(EnvironmentFault, match=r"proj\.weight: needs \d+ MiB"):
        prepared(folder, {"method": "iso_c"}, max_memory=1 << 10)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"then": ["lins"]}, "unknown post-step 'lins'; did you mean 'lines'"),
        ({"then": [{"lines": {"bta": 1}}]}, "lines has no parameter 'bta'"),
        ({"then": [{"lines": None, "svc": None}]}, "one post-step an entry"),
        ({"then": ["svc"], "method": "linear"}, "svc works on what a merge adds to its base"),
    ],
)
def test_post_steps_that_make_no_sense_are_refused_with_their_line(folder, fields, words):
    with pytest.raises(InputError, match=rf"recipe\.yaml:\d+:\d+.*{words}"):
        prepared(folder, fields)
