"""Merge methods from files that the user names: ours, and functions written for mergekit."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import llama
from command_line import command
from merges import tensors

from mergepipe.errors import InputError
from mergepipe.pipeline import merge, prepare

OURS = '''
"""Give the first model.

    θ = θ_1

A plugin, 2026.
"""
from mergepipe.method import Method, Parameters

class Each(Parameters):
    """Per model."""

class Shared(Parameters):
    """For the whole merge."""

METHOD = Method(Each, Shared, lambda block, _: block.models[0], needs_base=False, models=(1, None))
'''

# As functions were written for mergekit 0.1.4.
OLD = """
from typing import List, Optional
import torch
from mergekit.merge_methods.easy_define import merge_method

@merge_method(name="old_pull", pretty_name="Pull", reference_url="https://example.com")
def pull(
    tensors: List[torch.Tensor],
    base_tensor: Optional[torch.Tensor],
    weight: List[float],
    scale: float = 0.5,
) -> torch.Tensor:
    assert tensors[0].dim() == base_tensor.dim()
    total = sum(w * (x - base_tensor) for x, w in zip(tensors, weight))
    return base_tensor + scale * total

@merge_method(name="old_mean")
def mean(tensors: List[torch.Tensor], weight: List[float]) -> torch.Tensor:
    return sum(w * x for x, w in zip(tensors, weight)) / sum(weight)
"""

# As functions are written for mergekit 0.1.5.
NEW = """
import torch
from mergekit.merge_methods.base import BasePolicy, BatchParameter, InputContract, ParameterScope
from mergekit.merge_methods.base import TensorBatch
from mergekit.merge_methods.easy_define import merge_method
from mergekit.merge_methods.registry import register
from typing_extensions import Annotated

Weight = Annotated[torch.Tensor, BatchParameter(float, ParameterScope.NON_BASE)]

@merge_method(name="new_pull", contract=InputContract(base=BasePolicy.REQUIRED))
def pull(batch: TensorBatch, weight: Weight, scale: float = 0.5) -> torch.Tensor:
    base = batch.tensors[batch.base_index]
    others = [x for i, x in enumerate(batch.tensors) if i != batch.base_index]
    weights = [w.reshape(-1, *[1] * (base.dim() - 1)) for w in weight.unbind(1)]
    return base + scale * sum(w * (x - base) for x, w in zip(others, weights))

register(pull)
"""


@pytest.fixture
def folder(tmp_path):
    for seed, label in enumerate(("base", "a", "b")):
        llama(tmp_path / label, seed=seed, dtype="F32")
    return tmp_path


def merged(folder, text, method, name="plugin.py", **merge_fields):
    (folder / name).write_text(text)
    fields = {"method": method, "models": {"a": {"weight": 0.3}, "b": {"weight": 0.6}}}
    recipe = {
        "mergepipe": 1,
        "models": {label: str(folder / label) for label in ("base", "a", "b")},
        "merge": {**fields, **merge_fields},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    prepared = prepare(folder / "recipe.yaml", out=folder / "out", plugins=[folder / name])
    merge(prepared, overwrite=True)
    return tensors(folder / "out")


def expected(folder, method="task_arithmetic", **fields):
    return merged(folder, OURS, method, "first.py", **fields)


def test_a_file_like_those_of_our_methods_is_a_method_of_its_name(folder):
    ours = merged(folder, OURS, "first", "first.py", models=["a", "b"])
    assert all(torch.equal(ours[name], one) for name, one in tensors(folder / "a").items())


@pytest.mark.parametrize(("text", "method"), [(OLD, "old_pull"), (NEW, "new_pull")])
def test_functions_written_for_mergekit_run(folder, text, method):
    found = merged(folder, text, method, f"{method}.py", base="base", scale=0.25)
    for name, one in expected(folder, base="base", **{"lambda": 0.25}).items():
        torch.testing.assert_close(found[name], one)


def test_a_function_without_a_base_takes_the_base_as_a_model(folder):
    found = merged(folder, OLD, "old_mean", "old_pull.py")
    for name, one in expected(folder, "linear").items():
        torch.testing.assert_close(found[name], one)


def test_mergekits_configurations_name_methods_of_plugins(folder):
    (folder / "old_pull.py").write_text(OLD)
    (folder / "theirs.yml").write_text(
        f"models: [{{model: {folder}/a, parameters: {{weight: 0.3}}}}, {{model: {folder}/b}}]\n"
        f"base_model: {folder}/base\nmerge_method: old_pull\n"
        "parameters: {weight: 0.6, scale: 0.25}\n"
    )
    prepared = prepare(folder / "theirs.yml", out=folder / "x", plugins=[folder / "old_pull.py"])
    merge(prepared)
    for name, one in expected(folder, base="base", **{"lambda": 0.25}).items():
        torch.testing.assert_close(tensors(folder / "x")[name], one)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no merge method"),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("def (", "SyntaxError"),
        (OLD.replace("old_pull", "ties").replace("old_mean", "old_mean2"), "a method of this name"),
    ],
)
def test_a_plugin_that_gives_no_method_is_refused_in_words(folder, text, words):
    (folder / "bad.py").write_text(text)
    (folder / "recipe.yaml").write_text("mergepipe: 1\n")
    with pytest.raises(InputError, match=words):
        prepare(folder / "recipe.yaml", plugins=[folder / "bad.py"])


def test_a_result_of_another_shape_is_refused_with_the_tensors_name(folder):
    text = OLD.replace("old_", "short_").replace("base_tensor + scale * total", "total[:1]")
    with pytest.raises(InputError, match=r"\.weight: short_pull gave"):
        merged(folder, text, "short_pull", "short_pull.py", base="base")


def test_the_manifest_names_the_plugin_and_its_digest(folder):
    merged(folder, OURS, "first", "first.py", models=["a", "b"])
    manifest = json.loads((folder / "out" / "mergepipe.json").read_text())
    assert manifest["plugins"]["first.py"].startswith("blake3:")


def test_a_recipe_cannot_name_a_plugin(folder, capsys):
    (folder / "recipe.yaml").write_text("mergepipe: 1\nplugin: first.py\n")
    assert command(capsys, "lint", folder / "recipe.yaml").status == 2
