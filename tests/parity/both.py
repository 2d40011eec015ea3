"""A merge by mergekit and the same merge by us, and how alike they are."""

from __future__ import annotations

import json

from checkpoints import llama
from merges import tensors
from torch.testing import assert_close

from mergepipe.pipeline import merge, prepare


def small_llamas(folder, **size):
    """Folders of a base and three fp32 experts, by label."""
    return {
        label: llama(folder / label, seed=seed, dtype="F32", **size)
        for seed, label in enumerate(("base", "a", "b", "c"))
    }


def by_mergekit(models, folder, method, each, **fields):
    """Merge with mergekit, imported here because that takes seconds; `each` is of all models."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    config = {"merge_method": method, "dtype": "float32", **fields}
    config["models"] = [{"model": str(models[k]), "parameters": v} for k, v in each.items()]
    if "base_model" in config:
        config["base_model"] = str(models[config["base_model"]])
    run_merge(MergeConfiguration.model_validate(config), str(folder / "theirs"), options)
    return tensors(folder / "theirs")


def by_us(models, folder, method, each, output=None, **fields):
    """Merge with mergepipe, from a recipe file."""
    recipe = {
        "mergepipe": 1,
        "models": {label: str(path) for label, path in models.items()},
        "merge": {"method": method, "models": each, **fields},
        "output": output or {},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    merge(prepare(folder / "recipe.yaml", out=folder / "ours"))
    return tensors(folder / "ours")


def assert_alike(ours, theirs, names=None, *, rtol=1e-6, atol=1e-8):
    assert sorted(ours) == sorted(theirs)
    for name in names or ours:
        assert_close(
            ours[name], theirs[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_exact(ours, theirs):
    assert_alike(ours, theirs, rtol=0, atol=0)
