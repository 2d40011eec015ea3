"""What becomes of NaN and infinity: `refuse`, `base`, `allow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import llama, write_safetensors
from merges import (
    FILE,
    LINEAR,
    NORM,
    Q_PROJ,
    TASKS,
    TIES,
    assert_same,
    harm,
    planned,
    run,
    tensors,
    write_models,
)
from sinks import made_tensors, make, plan_of
from test_execute_paths import spec_of

from mergepipe.errors import InputError, NonFiniteError
from mergepipe.manifest import MANIFEST_FILE
from mergepipe.method import BLOCK, load_method, method_names
from mergepipe.recipe.fields import RecipeFields
from mergepipe.verify import verify

CPU = torch.device("cpu")
EMBEDDING = "model.embed_tokens.weight"
with_base = pytest.mark.parametrize(
    "name", [n for n in method_names() if load_method(n).needs_base]
)
bad_values = pytest.mark.parametrize("value", [torch.nan, -torch.inf])


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path)


@pytest.fixture
def large(tmp_path):
    """Models whose embedding has more elements than a block."""
    for seed, label in enumerate(("base", "a", "b")):
        llama(tmp_path / label, seed=seed, layers=1, hidden=8, vocab=(BLOCK + 1000) // 8, tied=True)
    return tmp_path


def give_all_the_base_s(folder, name):
    """Give every model the base's tensor; its bytes."""
    base = tensors(folder / "base")[name]
    for label in ("a", "b"):
        write_safetensors(folder / label / FILE, tensors(folder / label) | {name: base})
    return bytearray(base.view(torch.uint8).numpy().tobytes())


# Refuse.


@pytest.mark.parametrize("policy", [{}, {"nan_policy": "refuse"}], ids=["default", "refuse"])
@pytest.mark.parametrize("label", ["base", "b"])
@bad_values
def test_a_value_that_is_not_finite_is_refused_and_named(models, policy, label, value):
    harm(models / label, Q_PROJ, value)
    said = rf"^{label} \({label}/{FILE}\): {Q_PROJ}: holds {abs(value)}: 1 values are not finite"
    for spec in (TIES, TASKS):
        with pytest.raises(NonFiniteError, match=said):
            make(plan_of(models, spec, **policy), threads=2)


def test_a_value_in_the_last_block_is_refused(large):
    harm(large / "b", EMBEDDING, torch.nan)
    for spec in (TIES, TASKS, LINEAR):
        with pytest.raises(NonFiniteError, match=rf"^b .*{EMBEDDING}: holds nan: 1 values"):
            make(plan_of(large, spec))


# The base's tensor instead.


@pytest.mark.parametrize("options", [{}, {"threads": 8}, {"device": CPU}], ids=str)
@with_base
def test_the_base_keeps_its_tensor_and_others_are_as_if_all_models_had_it(models, name, options):
    harm(models / "a", Q_PROJ, torch.nan)
    found = make(plan_of(models, spec_of(name), nan_policy="base", seed=3), **options)
    base = give_all_the_base_s(models, Q_PROJ)
    expected = make(plan_of(models, spec_of(name), seed=3), **options).data
    assert found.data == expected | {Q_PROJ: base}


def test_a_note_says_which_model_was_left_out_of_which_tensor(models):
    harm(models / "a", Q_PROJ, torch.nan)
    harm(models / "b", NORM, torch.inf)
    said = make(plan_of(models, TIES, nan_policy="base")).said()
    assert said == {
        name: f"kept from the base: {label} ({label}/{FILE}): {name} "
        f"holds {what}: 1 values are not finite"
        for name, label, what in [(Q_PROJ, "a", "nan"), (NORM, "b", "inf")]
    }


@pytest.mark.parametrize("spec", [TIES, TIES | {"scope": "tensor"}, TASKS], ids=str)
def test_a_value_in_the_last_block_lets_the_base_keep_the_whole_tensor(large, spec):
    harm(large / "a", EMBEDDING, torch.nan)
    found = make(plan_of(large, spec, nan_policy="base"))
    base = give_all_the_base_s(large, EMBEDDING)
    expected = make(plan_of(large, spec)).data
    assert found.data == expected | {EMBEDDING: base}
    assert found.restarts == [EMBEDDING] * (spec is TASKS)
    assert list(found.said()) == [EMBEDDING]


@pytest.mark.parametrize("done", [[Q_PROJ], [NORM, EMBEDDING]], ids=str)
def test_tensors_that_are_done_change_nothing_in_what_is_left(models, done):
    harm(models / "a", Q_PROJ, torch.nan)
    plan = plan_of(models, TIES, nan_policy="base")
    whole, rest = make(plan), make(plan, done=done)
    assert rest.data == {name: data for name, data in whole.data.items() if name not in done}
    assert rest.said() == {name: note for name, note in whole.said().items() if name not in done}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_base_keeps_has_the_dtype_of_the_output(models, dtype):
    harm(models / "a", Q_PROJ, torch.nan)
    plan = plan_of(models, TIES, nan_policy="base", output={"dtype": dtype})
    base = tensors(models / "base")[Q_PROJ]
    assert torch.equal(made_tensors(plan)[Q_PROJ], base.to(getattr(torch, dtype)))


@with_base
def test_a_base_that_is_not_finite_is_refused_all_the_same(models, name):
    harm(models / "a", Q_PROJ, torch.nan)
    harm(models / "base", Q_PROJ, torch.nan)
    with pytest.raises(NonFiniteError, match=rf"^base .*{Q_PROJ}: holds nan"):
        make(plan_of(models, spec_of(name), nan_policy="base"))


def test_a_tensor_that_is_taken_from_a_model_is_refused_for_it_has_no_base(models):
    harm(models / "a", NORM, torch.nan)
    spec = TASKS | {"where": [{"tensors": NORM, "take": "a"}]}
    with pytest.raises(NonFiniteError, match=rf"^a .*{NORM}: holds nan"):
        make(plan_of(models, spec, nan_policy="base"))


def test_without_anything_broken_the_policy_changes_nothing(models):
    plans = [plan_of(models, TIES, nan_policy=policy) for policy in ("refuse", "base", "allow")]
    refused, kept, allowed = map(make, plans)
    assert refused.data == kept.data == allowed.data
    assert not kept.said()


# Allow.


def places(tensor):
    return (~tensor.isfinite()).flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("options", [{}, {"device": CPU}], ids=str)
@pytest.mark.parametrize("name", ["linear", "passthrough", "task_arithmetic"])
@bad_values
def test_what_is_allowed_comes_out_where_it_went_in(models, name, options, value):
    harm(models / "a", Q_PROJ, value)
    merged = made_tensors(plan_of(models, spec_of(name), nan_policy="allow"), **options)
    assert {k: places(v) for k, v in merged.items() if places(v)} == {Q_PROJ: [255]}


@pytest.mark.parametrize("name", method_names())
@bad_values
def test_every_method_runs_on_what_is_allowed_by_kernel_as_by_definition(models, name, value):
    harm(models / "a", Q_PROJ, value)
    plan = plan_of(models, spec_of(name), nan_policy="allow", seed=3)
    fused, plain = made_tensors(plan), made_tensors(plan, device=CPU)
    for key, tensor in fused.items():
        assert torch.equal(tensor.isnan(), plain[key].isnan())
        assert torch.equal(tensor.nan_to_num(), plain[key].nan_to_num())


def test_a_copy_of_what_is_allowed_keeps_its_bytes(models):
    harm(models / "a", NORM, torch.nan)
    spec = TASKS | {"where": [{"tensors": NORM, "take": "a"}]}
    found = make(plan_of(models, spec, nan_policy="allow"))
    expected = tensors(models / "a")[NORM].view(torch.uint8).numpy().tobytes()
    assert found.data[NORM] == expected


# Results that do not fit.


@pytest.mark.parametrize("policy", ["refuse", "base"])
def test_a_result_that_overflows_is_refused(models, policy):
    spec = TASKS | {"lambda": 1e8}
    plan = plan_of(models, spec, nan_policy=policy, output={"dtype": "float16"})
    for device in (None, CPU):
        with pytest.raises(NonFiniteError, match=r"a merged value of .* does not fit F16"):
            make(plan, device=device)


def test_a_result_that_overflows_can_be_allowed(models):
    spec, output = TASKS | {"lambda": 1e8}, {"dtype": "float16"}
    merged = made_tensors(plan_of(models, spec, nan_policy="allow", output=output))
    wide = made_tensors(plan_of(models, spec, output={"dtype": "float32"}))
    assert_same(merged, {name: value.half() for name, value in wide.items()})
    assert merged[Q_PROJ].isinf().any()


# Recipes, and what is written.


def test_the_base_must_be_named(models):
    with pytest.raises(InputError, match=r"nan_policy.*needs a merge that names a base.*`base`"):
        planned(models, LINEAR, nan_policy="base")


def test_every_stage_must_name_a_base(models):
    stages = {
        "mean": {"merge": {"method": "linear", "models": ["a", "b"]}},
        "half": {"merge": TASKS | {"models": ["mean"]}},
    }
    with pytest.raises(InputError, match="needs a merge that names a base"):
        planned(models, stages, nan_policy="base")


@pytest.mark.parametrize("value", ["keep", True, None])
def test_another_policy_is_refused_and_the_known_ones_are_named(models, value):
    with pytest.raises(InputError, match=r"nan_policy.*refuse.*base.*allow"):
        planned(models, TIES, nan_policy=value)


def test_every_policy_is_in_the_reference():
    page = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `nan_policy` |"))
    words = RecipeFields.model_fields["nan_policy"].annotation.__args__
    assert [word for word in words if f"`{word}`" not in row] == []


def test_the_manifest_says_what_the_base_kept(models):
    harm(models / "a", Q_PROJ, torch.nan)
    merged = run(models, TIES, nan_policy="base")
    assert torch.equal(merged[Q_PROJ], tensors(models / "base")[Q_PROJ])
    text = (models / "merged" / MANIFEST_FILE).read_text(encoding="utf-8")
    assert f'"{Q_PROJ}": "kept from the base: a ' in text


def test_the_manifest_has_the_digest_of_what_was_kept_after_blocks_were_merged(large):
    harm(large / "a", EMBEDDING, torch.nan)
    merged = run(large, TASKS, nan_policy="base")
    assert torch.equal(merged[EMBEDDING], tensors(large / "base")[EMBEDDING])
    assert verify(large / "merged").differences == ()
