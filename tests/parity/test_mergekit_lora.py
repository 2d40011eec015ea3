"""Extracted adapters beside mergekit-extract-lora's: the same products, as near to the fine-tune."""

from __future__ import annotations

import json

import pytest
import torch
from adapters import by_us
from checkpoints import edit_json, llama, write_safetensors
from click.testing import CliRunner
from merges import tensors
from safetensors.torch import load_file
from torch.testing import assert_close

from mergepipe.lora import Options, extract, model_named

RANK = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base in fp32 and a fine-tune of it, every tensor of which changed."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "expert")):
        llama(folder / name, seed=seed, dtype="F32")
        edit_json(folder / name / "config.json", torch_dtype="float32")
    base, other = (tensors(folder / name) for name in ("base", "expert"))
    moved = {name: base[name] + 0.1 * (other[name] - base[name]) for name in base}
    write_safetensors(folder / "expert" / "model.safetensors", moved)
    return folder


def by_mergekit(models, out, *options):
    """Extract with mergekit, imported here because that takes seconds."""
    from mergekit.scripts.extract_lora import main

    paths = ["--model", models / "expert", "--base-model", models / "base", "--out-path", out]
    arguments = [*map(str, paths), f"--max-rank={RANK}", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def theirs(models, tmp_path_factory):
    return by_mergekit(models, tmp_path_factory.mktemp("lora") / "theirs")


def by_mergepipe(models, out, **options):
    sources = (model_named(str(models / name), name) for name in ("expert", "base"))
    extract(*sources, out, Options(rank=RANK, dtype="float32", **options))
    return out


def error(found, expected):
    return float((found - expected).double().norm())


def test_updates_are_mergekits(models, theirs, tmp_path):
    ours = by_us(models / "base", by_mergepipe(models, tmp_path / "ours"))
    mergekits = by_us(models / "base", theirs)
    expected = tensors(models / "expert")
    matrices = [name for name in ours if "_proj." in name]
    assert len(matrices) == 14
    for name in matrices:
        assert_close(ours[name], mergekits[name], rtol=0, atol=1e-7)
        errors = [error(found[name], expected[name]) for found in (ours, mergekits)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-5)
        assert errors[0] > 0.01


def test_factors_are_mergekits_but_for_their_signs(models, theirs, tmp_path):
    ours = load_file(by_mergepipe(models, tmp_path / "ours") / "adapter_model.safetensors")
    mergekits = load_file(theirs / "adapter_model.safetensors")
    assert len(ours) == 28
    for name, factor in ours.items():
        assert_close(factor.abs(), mergekits[name].abs(), rtol=0, atol=1e-5)


def test_modules_stored_whole_are_the_same_when_they_are_named(models, theirs, tmp_path):
    """mergekit stores embeddings, head and norms whole unasked; here they are asked for."""
    named = json.loads((theirs / "adapter_config.json").read_text())["modules_to_save"]
    ours = by_us(models / "base", by_mergepipe(models, tmp_path / "ours", save=tuple(named)))
    mergekits, expected = by_us(models / "base", theirs), tensors(models / "expert")
    whole = [name for name in expected if "_proj." not in name]
    assert len(whole) == 7
    for name in whole:
        assert torch.equal(ours[name], expected[name])
        assert torch.equal(mergekits[name], expected[name])
