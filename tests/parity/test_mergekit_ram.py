"""RAM beside mergekit's, on sparse task vectors as reinforcement learning makes them."""

from __future__ import annotations

import pytest
import torch
from both import assert_alike, by_mergekit, by_us, small_llamas
from checkpoints import write_safetensors
from merges import tensors

EACH = {label: {} for label in ("a", "b", "c")}
NORM = "model.norm.weight"
SMALL = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each expert changes two parameters in five, half of these by less than ε; one norm none."""
    made = small_llamas(tmp_path_factory.mktemp("models"))
    base, folder = tensors(made["base"]), tmp_path_factory.mktemp("sparse")
    draw = torch.Generator().manual_seed(0)
    for label in EACH:
        moved = {}
        for name, values in base.items():
            chance = torch.rand(values.shape, generator=draw)
            step = (torch.randn(values.shape, generator=draw) * 0.01).where(chance < 0.2, 9e-6)
            moved[name] = values + step.where(chance < 0.4, 0.0) * (name != NORM)
        (folder / label).mkdir()
        config = (made["base"] / "config.json").read_text()
        (folder / label / "config.json").write_text(config)
        write_safetensors(folder / label / "model.safetensors", moved)
    return {"base": made["base"]} | {label: folder / label for label in EACH}


def both(models, folder, theirs, ours, fields, **more):
    expected = by_mergekit(models, folder, theirs, EACH, base_model="base", parameters=fields)
    return by_us(models, folder, ours, EACH, base="base", **fields, **more), expected


@pytest.mark.parametrize("epsilon", [1e-5, 1e-7, 0.01])
def test_ram_is_mergekits(models, tmp_path, epsilon):
    assert_alike(*both(models, tmp_path, "ram", "ram", {"epsilon": epsilon}))


@pytest.mark.parametrize("fields", [{"r": 0.1, "alpha": 0.2}, {"r": 0.5, "alpha": 5.0}], ids=str)
def test_ram_plus_within_tensors_is_mergekits_ramplus_tl(models, tmp_path, fields):
    assert_alike(*both(models, tmp_path, "ramplus_tl", "ram_plus", fields, scope="tensor"))


def in_one_long_vector(models, r, alpha):
    """The formula over all tensors laid end to end, in fp64."""
    rows = [torch.cat([t.flatten() for t in tensors(models[k]).values()]) for k in models]
    base, deltas = rows[0], torch.stack([row - rows[0] for row in rows[1:]])
    deltas = deltas.where(deltas.abs() > 1e-5, 0.0).double()
    count = (deltas != 0).sum(0)
    several, alone = (((deltas != 0) & part).sum(1) for part in (count > 1, count == 1))
    factors = 1 + r * (several / alone).clamp(max=alpha)
    update = (deltas.sum(0) / count).where(count > 1, (deltas * factors[:, None]).sum(0))
    return (base + update).float()


def test_ram_plus_over_the_model_counts_in_one_long_vector_which_mergekit_does_not(
    models, tmp_path
):
    fields = {"r": 0.5, "alpha": 5.0}
    ours, theirs = both(models, tmp_path, "ramplus_tl", "ram_plus", fields)
    names, found = list(tensors(models["base"])), in_one_long_vector(models, **fields)
    expected = dict(zip(names, found.split([ours[name].numel() for name in names]), strict=True))
    assert_alike(ours, {name: expected[name].reshape(ours[name].shape) for name in names})
    # mergekit's factors are those of each tensor by itself, and vary most where it is small.
    assert not torch.allclose(ours[SMALL], theirs[SMALL], rtol=1e-3)
