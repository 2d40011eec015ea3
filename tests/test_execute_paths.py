"""The same bytes by every path: kernels or torch, few threads or many, little memory or much."""

from __future__ import annotations

import pytest
import torch
from checkpoints import llama, random_tensors, write_json, write_safetensors
from merges import Q_PROJ, SHAPES, TASKS, TIES, assert_same, small, write_models
from sinks import made_tensors, make, plan_of

from mergepipe.checkpoint import read_values, torch_dtype
from mergepipe.errors import EnvironmentFault
from mergepipe.execute import default_memory, share_out
from mergepipe.method import BLOCK, apply, load_method, method_names

CPU = torch.device("cpu")
every_method = pytest.mark.parametrize("name", method_names())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Three models whose embedding has more elements than a block."""
    folder = tmp_path_factory.mktemp("large")
    for seed, label in enumerate(("base", "a", "b")):
        llama(folder / label, seed=seed, layers=1, hidden=8, vocab=(BLOCK + 1000) // 8, tied=True)
    return folder


def spec_of(name, **shared):
    method = load_method(name)
    labels = ["a"] if method.models[1] == 1 else ["a", "b"]
    base = {"base": "base"} if method.needs_base else {}
    return {"method": name, "models": labels, **base, **shared}


def needed(plan):
    """The least memory that is allowed."""
    return max(step.working_bytes for step in plan.steps)


# One plan, many ways.


@every_method
def test_torch_on_the_cpu_writes_the_bytes_of_the_kernels(large, name):
    plan = plan_of(large, spec_of(name), seed=3)
    assert make(plan, device=CPU).data == make(plan).data


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "slerp", "sce", "dare_ties"])
def test_on_a_device_surveys_run_there_too(models, monkeypatch, name):
    def refuse(*_, **__):
        raise AssertionError("a CPU kernel was asked")

    for owner in ("trim.collect", "trim.magnitudes", "methods.slerp.products"):
        monkeypatch.setattr(f"mergepipe.{owner}", refuse)
    monkeypatch.setattr("mergepipe.dropout.absolute_sums", refuse)
    monkeypatch.setattr("mergepipe.methods.sce.square_sums", refuse)
    shared = {"rescale": "l1"} if name == "dare_ties" else {}
    assert make(plan_of(models, spec_of(name, **shared)), device=CPU).data


@every_method
def test_threads_and_memory_do_not_change_bytes(large, name):
    plan = plan_of(large, spec_of(name), seed=3)
    expected = make(plan, threads=1, max_memory=4 << 30)
    for threads, memory in [(2, 256 << 20), (8, 4 << 30), (8, needed(plan))]:
        made = make(plan, threads=threads, max_memory=memory)
        assert made.data == expected.data
        assert made.inputs == expected.inputs


@pytest.mark.parametrize("threads", [1, 3])
@every_method
def test_tensors_that_are_done_are_left_out_and_change_nothing(models, name, threads):
    plan = plan_of(models, spec_of(name), seed=3)
    whole, done = make(plan), [step.name for step in plan.steps[::2]]
    rest = make(plan, done=done, threads=threads)
    assert not rest.data.keys() & set(done)
    assert rest.data.items() <= whole.data.items()


def test_the_digest_of_an_input_tells_its_bytes_and_nothing_else(models):
    trimmed, added, swapped = (
        make(plan_of(models, spec)).inputs for spec in (TIES, TASKS, TASKS | {"models": ["b", "a"]})
    )
    assert trimmed == added
    assert {name: (base, b, a) for name, (base, a, b) in added.items()} == swapped
    assert all(len(set(digests)) == 3 for digests in added.values())


# Inputs that kernels cannot read as stored, and outputs that they cannot write.


def as_definition(plan, name, **shared):
    """What the method gives of what its inputs hold, in fp32, tensor by tensor."""
    found = {}
    for step in plan.steps:
        rows = {
            one.label: read_values(one.checkpoint, one.name, 0, step.numel).reshape(step.shape)
            for one in step.all_inputs
        }
        base = rows.pop("base") if step.base is not None else None
        merged = apply(name, base, rows, tensor=step.name, role=step.role, seed=plan.seed, **shared)
        found[step.name] = merged.to(torch_dtype(step.dtype))
    return found


def tensor_scope(name):
    fields = load_method(name).shared.model_fields
    return {"scope": "tensor"} if "scope" in fields else {}


DTYPES_OF_INPUTS = [
    ("F64", "F8_E4M3", "BF16"),
    ("F8_E5M2", "F64", "F16"),
    ("F32", "F8_E4M3", "F64"),
    ("BF16", "F16", "F32"),
]


@pytest.mark.parametrize("dtypes", DTYPES_OF_INPUTS, ids=str)
@every_method
def test_every_float_dtype_goes_in_and_comes_out(tmp_path, name, dtypes):
    for seed, (label, dtype) in enumerate(zip(("base", "a", "b"), dtypes, strict=True)):
        wide = random_tensors(SHAPES, seed, "F32")
        stored = {key: value.to(torch_dtype(dtype)) for key, value in wide.items()}
        small(tmp_path / label, seed, tensors=stored)
    shared = tensor_scope(name)
    plan = plan_of(tmp_path, spec_of(name, **shared), seed=3)
    donor = dtypes[0] if load_method(name).needs_base else dtypes[1]
    assert {step.dtype for step in plan.steps} == {"BF16" if donor.startswith("F8") else donor}
    assert_same(made_tensors(plan, threads=2), as_definition(plan, name, **shared))


@every_method
def test_a_model_with_an_adapter_is_merged_like_any_other(models, tmp_path, name):
    draw = torch.Generator().manual_seed(9)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    prefix = f"base_model.model.{Q_PROJ.removesuffix('.weight')}"
    a, b = torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)
    write_json(tmp_path / "adapter_config.json", config)
    parts = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    write_safetensors(tmp_path / "adapter_model.safetensors", parts)
    sources = {label: str(models / label) for label in ("base", "b")}
    sources["a"] = {"path": str(models / "a"), "adapter": str(tmp_path)}
    shared = tensor_scope(name)
    plan = plan_of(tmp_path, spec_of(name, **shared), seed=3, models=sources)
    merged, plain = made_tensors(plan), made_tensors(plan_of(models, spec_of(name), seed=3))
    assert_same(merged, as_definition(plan, name, **shared))
    assert not torch.equal(merged[Q_PROJ], plain[Q_PROJ])


# Memory.


def test_too_little_memory_is_refused_naming_the_tensor_and_what_it_needs(large):
    plan = plan_of(large, TIES)
    enough = -(-needed(plan) >> 20)
    said = rf"model\.embed_tokens\.weight: needs {enough} MiB of memory, {enough - 1} MiB are allow"
    with pytest.raises(EnvironmentFault, match=rf"{said}.*--max-memory {enough}MiB"):
        make(plan, max_memory=(enough - 1) << 20)
    assert share_out([plan], 8, enough << 20).workers == 1


def test_workers_are_as_many_as_have_room(large):
    plan = plan_of(large, TIES)
    least = needed(plan)
    assert share_out([plan], 8, 3 * least + least // 2).workers == 3
    assert share_out([plan], 2, 3 * least).workers == 2
    assert share_out([plan], 2, 3 * least).share == 3 * least // 2
    assert share_out([plan, plan_of(large, TASKS)], 1, least).workers == 1


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_shares_are_large_enough_and_add_up_to_no_more_than_is_allowed(large, threads):
    plan = plan_of(large, TIES)
    for memory in (needed(plan), 256 << 20, default_memory()):
        budget = share_out([plan], threads, memory)
        assert 1 <= budget.workers <= threads
        assert needed(plan) <= budget.share <= memory // budget.workers


def test_the_default_memory_is_at_most_four_gibibytes(large):
    assert 0 < default_memory() <= 4 << 30
    assert share_out([plan_of(large, TIES)], 1, None).share <= 4 << 30


def test_memory_that_runs_out_is_named_with_what_to_lower(models, monkeypatch):
    """A system that has less than was allowed."""

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("mergepipe.execute.worker.Worker._fresh", refuse)
    with pytest.raises(EnvironmentFault, match=r"embed_tokens.*memory.*--max-memory or --threads"):
        make(plan_of(models, spec_of("linear")), threads=1)
