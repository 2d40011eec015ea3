"""Mixtures of experts beside those of mergekit-moe, from the same configuration."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from merges import tensors
from mixtures import PROMPTS, document, expert, family, loaded, logits
from torch.testing import assert_close

from mergepipe.pipeline import merge, prepare

MATRICES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = dict(zip(MATRICES, ("w1", "w3", "w2"), strict=True))
NEGATIVE = [expert("a", 0, negative_prompts=PROMPTS[2]), expert("b", 1)]


def by_both(folder, **fields):
    """Make a mixture with mergekit and with us, of one file."""
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    text = json.dumps(document(dtype="float32", **fields)).replace("./", f"{folder}/")
    (folder / "moe.yml").write_text(text)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    asked = MoEMergeConfig.model_validate(yaml.safe_load(text))
    build(asked, str(folder / "theirs"), options, device="cpu")
    merge(prepare(folder / "moe.yml", out=folder / "ours"), sync=False)
    return tensors(folder / "ours"), tensors(folder / "theirs")


def joined(ours, block, names):
    """Our tensors as mergekit writes them: the experts of a layer in two tensors."""
    found = {
        name.replace(f"{block}.gate", "mlp.gate"): tensor
        for name, tensor in ours.items()
        if ".experts." not in name
    }
    for layer in range(2):
        front = f"model.layers.{layer}"
        gate, up, down = (
            torch.stack([ours[f"{front}.{block}.experts.{at}.{names[m]}.weight"] for at in (0, 1)])
            for m in MATRICES
        )
        found[f"{front}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        found[f"{front}.mlp.experts.down_proj"] = down
    return found


def assert_alike(ours, theirs, atol=1e-6):
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        near = atol if "gate.weight" in name else 0
        assert_close(ours[name], tensor, rtol=0, atol=near, msg=lambda m, name=name: f"{name}: {m}")


def settings(folder, *but):
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(folder).to_dict()
    for name in ("_name_or_path", "transformers_version", *but):
        found.pop(name, None)
    return found


# Fields of the dense configuration that mergekit leaves in, and that mixtures do not read.
UNREAD = ("attention_bias", "mlp_bias", "pretraining_tp", "max_window_layers", "layer_types")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_mixtral_by_embeddings(tmp_path, kind):
    family(tmp_path, kind)
    ours, theirs = by_both(tmp_path, experts=NEGATIVE)
    assert_alike(joined(ours, "block_sparse_moe", MIXTRAL), theirs)
    # The attention is the base's, and so is its window; mergekit takes Mistral's away.
    window = ("sliding_window",) if kind == "mistral" else ()
    assert settings(tmp_path / "ours", *UNREAD, *window) == settings(
        tmp_path / "theirs", *UNREAD, *window
    )
    assert settings(tmp_path / "ours")["sliding_window"] == (4096 if kind == "mistral" else None)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_qwen_moe_by_embeddings(tmp_path, kind):
    family(tmp_path, kind)
    shared = [expert("b", 2)]
    # mergekit prefers DeepSeek for Llamas, which is custom code; told which, it is the same.
    ours, theirs = by_both(tmp_path, experts=NEGATIVE, shared_experts=shared, architecture="qwen")
    if kind == "llama":  # mergekit makes zero biases of another size where head_dim is given
        for name in [name for name in theirs if name.endswith("bias")]:
            assert not ours[name].any()
            theirs[name] = torch.zeros_like(ours[name])
    assert_alike(ours, theirs)
    but = (*UNREAD, "sliding_window")  # None or 0: there is none
    assert settings(tmp_path / "ours", *but) == settings(tmp_path / "theirs", *but)


def test_qwen3_moe_by_embeddings(tmp_path):
    family(tmp_path, "qwen3")
    ours, theirs = by_both(tmp_path, experts=NEGATIVE)
    assert_alike(joined(ours, "mlp", {name: name for name in MATRICES}), theirs)
    assert settings(tmp_path / "ours", *UNREAD) == settings(tmp_path / "theirs", *UNREAD)


@pytest.mark.parametrize("mode", ["hidden", "hidden_last"])
def test_gates_by_hidden_states(tmp_path, mode):
    """mergekit runs the base in bf16, with prompts padded; we in fp64, each prompt alone."""
    family(tmp_path)
    ours, theirs = by_both(tmp_path, experts=NEGATIVE, gate_mode=mode)
    assert_alike(joined(ours, "block_sparse_moe", MIXTRAL), theirs, atol=0.03)


def test_averages_leave_padding_out(tmp_path):
    """mergekit averages the padding of shorter prompts in; with one prompt there is none."""
    family(tmp_path)
    experts = [expert("a", 1), expert("b", 2)]
    ours, theirs = by_both(tmp_path, experts=experts, gate_mode="hidden_avg")
    assert_alike(joined(ours, "block_sparse_moe", MIXTRAL), theirs, atol=0.03)
    (tmp_path / "padded").mkdir()
    family(tmp_path / "padded")
    longer = [expert("a", 1, positive_prompts=["x", "a much longer prompt " * 5]), experts[1]]
    ours, theirs = by_both(tmp_path / "padded", experts=longer, gate_mode="hidden_avg")
    with pytest.raises(AssertionError, match="gate"):
        assert_alike(joined(ours, "block_sparse_moe", MIXTRAL), theirs, atol=0.03)


def test_what_mergekit_writes_and_what_we_write_compute_the_same(tmp_path):
    family(tmp_path)
    by_both(tmp_path, experts=NEGATIVE)
    ours, theirs = (logits(loaded(tmp_path / name)) for name in ("ours", "theirs"))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
