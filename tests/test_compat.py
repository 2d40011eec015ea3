"""`--compat mergekit-0.1.4`: tensors of other shapes, merged by that version's rules."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from checkpoints import edit_json, llama_config, llama_shapes, random_tensors, write_json
from checkpoints import write_weights as save
from command_line import command
from merges import tensors

from mergepipe.errors import InputError, Problems
from mergepipe.pipeline import merge, prepare, read_recipe

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
ROWS = {"base": 40, "a": 44, "b": 42}


@pytest.fixture
def folder(tmp_path):
    for seed, (label, rows) in enumerate(ROWS.items()):
        (tmp_path / label).mkdir()
        write_json(tmp_path / label / "config.json", llama_config(hidden=16, vocab=rows))
        save(tmp_path / label, random_tensors(llama_shapes(hidden=16, vocab=rows), seed))
    return tmp_path


def written(folder, method="linear", models=("a", "b"), **fields):
    each = {"weight": 0.5} if method in ("linear", "task_arithmetic") else {}
    config = {
        "models": [{"model": label, "parameters": each} for label in models],
        "merge_method": method,
        "dtype": "float32",
        **fields,
    }
    (folder / "theirs.yml").write_text(yaml.safe_dump(config))
    return folder / "theirs.yml"


def merged(folder, method="linear", models=("a", "b"), **fields):
    file = written(folder, method, models, **fields)
    ready = prepare(file, out=folder / "out", compat="mergekit-0.1.4")
    merge(ready)
    return tensors(folder / "out"), ready.warnings


def test_without_it_other_rows_are_refused_and_the_option_is_named(folder):
    with pytest.raises(InputError, match=r"another shape .*--compat mergekit-0\.1\.4"):
        prepare(written(folder))


def test_a_recipe_of_ours_is_not_offered_the_option(folder):
    recipe = read_recipe(written(folder), Problems()).data
    (folder / "ours.yaml").write_text(json.dumps(recipe))
    with pytest.raises(InputError) as refusal:
        prepare(folder / "ours.yaml")
    assert "compat" not in str(refusal.value)


def test_the_common_rows_are_merged_and_the_dropped_ones_are_counted(folder):
    found, warnings = merged(folder)
    a, b = (tensors(folder / label) for label in "ab")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(found[name], (a[name][:42].float() + b[name].float()) / 2)
    said = f"a: {EMBEDDING}: the first 42 rows are merged, up to 2 are dropped"
    assert any(one.startswith(said) for one in warnings)


def test_the_configuration_of_the_result_says_its_rows_and_it_loads(folder):
    from transformers import AutoModelForCausalLM

    merged(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 42


def test_methods_on_task_vectors_cut_the_models_to_the_bases_rows(folder):
    found, _ = merged(folder, "task_arithmetic", base_model="base")
    base, a, b = (tensors(folder / label)[HEAD].float() for label in ROWS)
    expected = base + 0.5 * (a[:40] - base) + 0.5 * (b[:40] - base)
    torch.testing.assert_close(found[HEAD], expected, rtol=0, atol=1e-7)


def test_a_base_with_more_rows_than_its_models_is_refused(folder):
    file = written(folder, "task_arithmetic", ("b",), base_model="a")
    with pytest.raises(InputError, match="another shape"):
        prepare(file, compat="mergekit-0.1.4")


def widen(folder, name):
    """Make another tensor of a model twice as tall."""
    found = tensors(folder / "b")
    found[name] = torch.cat([found[name]] * 2)
    save(folder / "b", found)


def test_methods_on_task_vectors_leave_a_model_out_of_tensors_of_another_size(folder):
    widen(folder, Q_PROJ)
    found, warnings = merged(folder, "task_arithmetic", base_model="base")
    base, a = (tensors(folder / label)[Q_PROJ].float() for label in ("base", "a"))
    torch.testing.assert_close(found[Q_PROJ], base + 0.5 * (a - base), rtol=0, atol=1e-7)
    assert any(f"{Q_PROJ}: b is left out" in one for one in warnings)


def test_other_methods_refuse_tensors_of_another_size(folder):
    widen(folder, Q_PROJ)
    with pytest.raises(InputError, match="another shape"):
        prepare(written(folder), compat="mergekit-0.1.4")


def test_what_convert_prints_holds_the_rule(folder, capsys):
    written(folder)
    said = command(capsys, "convert", "--compat", "mergekit-0.1.4", folder / "theirs.yml")
    assert yaml.safe_load(said.out)["compat"] == "mergekit-0.1.4"
    (folder / "ours.yaml").write_text(said.out)
    assert command(capsys, "plan", folder / "ours.yaml").status == 0


@pytest.mark.parametrize("name", ["run", "plan", "lint", "convert"])
def test_another_version_is_refused(folder, capsys, name):
    said = command(capsys, name, "--compat", "mergekit-0.1.3", written(folder))
    assert said.status == 2
    assert "mergekit-0.1.4" in said.err


def test_models_of_one_vocabulary_are_merged_as_without_it(folder):
    for label in ("a", "b"):
        edit_json(folder / label / "config.json", vocab_size=40)
        save(folder / label, random_tensors(llama_shapes(hidden=16, vocab=40), ord(label)))
    found, _ = merged(folder)
    merge(prepare(folder / "theirs.yml", out=folder / "plain"))
    assert all(torch.equal(value, found[k]) for k, value in tensors(folder / "plain").items())
