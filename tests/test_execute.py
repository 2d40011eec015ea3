"""From plans to bytes: the same whatever the threads, blocks and shards."""

from __future__ import annotations

import pytest
import torch
from checkpoints import llama, random_tensors, write_json, write_safetensors
from merges import (
    DARE,
    LINEAR,
    NORM,
    Q_PROJ,
    SHAPES,
    SLERP,
    TASKS,
    TIES,
    assert_same,
    digests,
    planned,
    run,
    small,
    tensors,
    write_models,
)
from torch.testing import assert_close

from mergepipe.checkpoint import torch_dtype
from mergepipe.method import BLOCK, apply, load_method, method_names
from mergepipe.pipeline import merge
from mergepipe.plan import role_of


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path)


# The same bytes.


@pytest.mark.parametrize(
    "spec", [TIES, LINEAR, TASKS, SLERP, DARE], ids=lambda spec: spec["method"]
)
def test_any_number_of_threads_writes_the_same_bytes(models, spec):
    output = {"max_shard_size": "5KB"}
    folders = [
        merge(planned(models, spec, threads=n, out=f"merged{n}", output=output)).folder
        for n in (1, 2, 8)
    ]
    assert len(list(folders[0].glob("*.safetensors"))) == 3
    assert digests(folders[0]) == digests(folders[1]) == digests(folders[2])


@pytest.mark.parametrize("name", method_names())
def test_what_is_written_is_what_the_method_gives_tensor_by_tensor(models, name):
    method = load_method(name)
    labels = ("a",) if method.models[1] == 1 else ("a", "b")
    shared = {"scope": "tensor"} if "scope" in method.shared.model_fields else {}
    base = {"base": "base"} if method.needs_base else {}
    merged = run(
        models,
        {"method": name, "models": list(labels), **base, **shared},
        seed=5,
        output={"dtype": "float32"},
    )
    inputs = {label: tensors(models / label) for label in ("base", *labels)}
    for tensor, found in merged.items():
        origin = inputs["base"][tensor] if base else None
        experts = {label: inputs[label][tensor] for label in labels}
        place = {"tensor": tensor, "role": role_of(tensor, found.shape)}
        assert torch.equal(found, apply(name, origin, experts, seed=5, **place, **shared))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Three models whose embedding has more elements than a block."""
    folder = tmp_path_factory.mktemp("large")
    for seed, label in enumerate(("base", "a", "b")):
        llama(folder / label, seed=seed, layers=1, hidden=8, vocab=(BLOCK + 1000) // 8, tied=True)
    return folder


@pytest.mark.parametrize(
    "spec", [TIES | {"scope": "tensor"}, SLERP, DARE], ids=lambda spec: spec["method"]
)
def test_a_tensor_larger_than_a_block_is_merged_as_one(large, tmp_path, spec):
    name = "model.embed_tokens.weight"
    options = {
        "models": {k: str(large / k) for k in ("base", "a", "b")},
        "output": {"dtype": "float32"},
    }
    merged, again = (run(tmp_path, spec, threads=n, out=f"merged{n}", **options) for n in (1, 2))
    assert_same(merged, again)
    inputs = {label: tensors(large / label)[name] for label in ("base", *spec["models"])}
    base = inputs.pop("base")
    assert base.numel() > BLOCK
    shared = {k: v for k, v in spec.items() if k not in ("method", "base", "models")}
    each = spec["models"] if isinstance(spec["models"], dict) else None
    assert_close(merged[name], apply(spec["method"], base, inputs, each, tensor=name, **shared))


def whole_numbers(seed):
    """Tensors whose differences tie in magnitude everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return {
        k: torch.randint(-3, 4, shape, generator=draw).bfloat16() for k, shape in SHAPES.items()
    }


def test_shards_and_the_order_of_tensors_do_not_change_a_trim_over_the_model(tmp_path):
    results = []
    for at, (shards, reverse) in enumerate([(1, False), (3, False), (1, True), (4, True)]):
        folder = tmp_path / str(at)
        folder.mkdir()
        for seed, label in enumerate(("base", "a", "b")):
            found = whole_numbers(seed)
            ordered = dict(reversed(found.items())) if reverse else found
            small(folder / label, seed, tensors=ordered, shards=shards)
        results.append(run(folder, TIES, threads=2))
    base = whole_numbers(0)
    assert sum(int((results[0][k] != base[k]).sum()) for k in base) > 0
    for other in results[1:]:
        assert_same(dict(sorted(other.items())), dict(sorted(results[0].items())))


def test_a_trim_over_the_model_keeps_its_share_of_all_elements(tmp_path):
    for seed, label in enumerate(("base", "a")):
        small(tmp_path / label, seed, tensors=whole_numbers(seed))
    spec = {"method": "ties", "base": "base", "models": {"a": {"density": 0.3}}}
    merged, base = run(tmp_path, spec, labels=("base", "a")), whole_numbers(0)
    total = sum(tensor.numel() for tensor in base.values())
    assert sum(int((merged[k] != base[k]).sum()) for k in base) == total * 3 // 10


@pytest.mark.parametrize(
    "spec",
    [
        TIES,
        LINEAR,
        TASKS,
        TIES | {"scope": "tensor", "elect": "reference"},
        SLERP,
        DARE,
    ],
    ids=lambda spec: spec["method"],
)
def test_a_tensor_without_elements_is_merged(tmp_path, spec):
    for seed, label in enumerate(("base", "a", "b")):
        found = random_tensors(SHAPES, seed) | {"model.temperature": torch.empty(0).bfloat16()}
        small(tmp_path / label, seed, tensors=found)
    assert run(tmp_path, spec)["model.temperature"].shape == (0,)


def test_progress_is_the_bytes_read(models):
    prepared, read = planned(models, LINEAR), []
    merge(prepared, report=lambda _plan: read.append)
    assert (
        sum(read)
        == prepared.plans[0].bytes_read
        == 2 * sum(2 * t.numel() for t in tensors(models / "a").values())
    )


# Adapters.


def test_an_adapter_is_added_before_the_merge(models):
    draw = torch.Generator().manual_seed(9)
    a, b = torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)
    folder = models / "adapter"
    folder.mkdir()
    write_json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
    )
    prefix = f"base_model.model.{Q_PROJ.removesuffix('.weight')}"
    write_safetensors(
        folder / "adapter_model.safetensors",
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b},
    )
    labels = {"base": "./base", "a": {"path": "./base", "adapter": "./adapter"}}
    merged = run(models, TASKS | {"models": ["a"]}, models=labels, output={"dtype": "float32"})
    base = tensors(models / "base")
    assert_close(merged[Q_PROJ], base[Q_PROJ].float() + 0.5 * 2 * (b @ a))
    assert torch.equal(merged[NORM], base[NORM].float())


# Stages.


def by_hand(models, dtype):
    """Mean of the experts, then half of its task vector, in fp32; rounded once."""
    base, a, b = (tensors(models / label) for label in ("base", "a", "b"))
    mean = {name: apply("linear", None, {"a": a[name], "b": b[name]}) for name in base}
    return {
        name: apply("task_arithmetic", base[name], {"mean": mean[name]}, lambda_=0.5).to(dtype)
        for name in base
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_two_stages_are_the_two_merges_in_fp32_rounded_once(models, dtype):
    stages = {
        "mean": {"merge": {"method": "linear", "models": ["a", "b"]}},
        "half": {
            "merge": {
                "method": "task_arithmetic",
                "base": "base",
                "models": ["mean"],
                "lambda": 0.5,
            }
        },
    }
    merged = run(models, stages, output={"dtype": dtype} if dtype else {})
    assert_same(merged, by_hand(models, getattr(torch, dtype or "bfloat16")))
    assert sorted(path.name for path in models.iterdir()) == [
        "a",
        "b",
        "base",
        "merged",
        "recipe.yaml",
    ]


def test_a_stage_as_base_does_not_change_the_dtype_of_the_result(models):
    stages = {
        "start": {"merge": {"method": "passthrough", "models": ["base"]}},
        "result": {"merge": {"method": "task_arithmetic", "base": "start", "models": ["a"]}},
    }
    merged = run(models, stages)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert_same(merged, run(models, TASKS | {"models": ["a"], "lambda": 1.0}, out="again"))


def test_an_expert_is_trimmed_over_all_its_tensors_though_others_lack_some(tmp_path):
    body, head = "encoder.layer.0.weight", "cls.weight"
    rising = torch.arange(1.0, 65).reshape(8, 8)
    write_bert(tmp_path / "base", {body: torch.zeros(8, 8), head: torch.zeros(8)})
    write_bert(tmp_path / "a", {body: rising, head: torch.full((8,), 100.0)})
    write_bert(tmp_path / "b", {body: rising}, "BertModel")
    spec = {"method": "ties", "base": "base", "models": {"a": {"density": 0.25}, "b": {}}}
    merged = run(tmp_path, spec)
    assert merged[head].eq(100).all()  # 8 of the 18 that `a` keeps of its 72 elements
    assert int(merged[body].count_nonzero()) == 12  # `b` keeps 12 of its 64


def write_bert(folder, tensors, architecture="BertForMaskedLM"):
    folder.mkdir()
    config = {"model_type": "bert", "architectures": [architecture]}
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "F8_E4M3", "F8_E5M2"])
def test_every_float_dtype_is_read_exactly_and_kept_but_fp8_which_becomes_bf16(tmp_path, dtype):
    wide = random_tensors(SHAPES, 0, "F32")
    stored = torch_dtype(dtype)
    small(tmp_path / "a", 0, tensors={name: value.to(stored) for name, value in wide.items()})
    merged = run(tmp_path, {"method": "passthrough", "models": ["a"]}, labels=("a",))
    kept = torch.bfloat16 if dtype.startswith("F8") else stored
    assert_same(merged, {name: value.to(stored).to(kept) for name, value in wide.items()})
