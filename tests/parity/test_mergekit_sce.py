"""SCE beside mergekit's: the same selection, weights and election."""

from __future__ import annotations

import pytest
from both import assert_alike, by_mergekit, by_us, small_llamas
from checkpoints import write_safetensors
from merges import tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_llamas(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_sce_is_mergekits(models, tmp_path, share):
    """Deltas of these models are large, so that mergekit's guard against small ones rests."""
    each = {label: {} for label in ("a", "b", "c")}
    theirs = by_mergekit(
        models, tmp_path, "sce", each, base_model="base", parameters={"select_topk": share}
    )
    ours = by_us(models, tmp_path, "sce", each, base="base", select_topk=share)
    assert_alike(ours, theirs)


def near(models, tmp_path):
    """Experts so near the base that mean squares are below mergekit's guard."""
    base = tensors(models["base"])
    folders = {"base": models["base"]}
    for label, factor in (("a", 3e-4), ("b", 1e-4)):
        folder = tmp_path / label
        folder.mkdir()
        expert = tensors(models[label])
        config = (models["base"] / "config.json").read_text()
        (folder / "config.json").write_text(config)
        moved = {name: base[name] + factor * expert[name] for name in base}
        write_safetensors(folder / "model.safetensors", moved)
        folders[label] = folder
    return folders


def test_small_task_vectors_weigh_the_same_in_mergekit_and_by_their_energy_with_us(
    models, tmp_path
):
    folders, each = near(models, tmp_path), {"a": {}, "b": {}}
    theirs = by_mergekit(folders, tmp_path, "sce", each, base_model="base", parameters={})
    name = "model.layers.0.mlp.up_proj.weight"
    compat = by_us(folders, tmp_path, "sce", each, base="base", compat="mergekit")
    assert_alike(compat, theirs, [name], rtol=1e-4, atol=1e-9)
    elsewhere = tmp_path / "again"
    elsewhere.mkdir()
    ours = by_us(folders, elsewhere, "sce", each, base="base")
    assert not ours[name].equal(compat[name])
