"""Looking before merging: numbers against numpy, what is said of them, and where it goes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import (
    edit_json,
    header_of,
    llama,
    llama_config,
    llama_shapes,
    random_tensors,
    write_json,
    write_safetensors,
)
from command_line import assert_clean, command
from packing import DTYPES, VALUES, pack_tensors
from peak import peak_bytes

from mergepipe.errors import InputError
from mergepipe.inspect import (
    THRESHOLDS,
    advise,
    as_json,
    inspect,
    model_numbers,
    open_inputs,
    pair_numbers,
)
from mergepipe.inspect.advice import _RULES
from mergepipe.inspect.matching import kind_of
from mergepipe.inspect.page import page
from mergepipe.kernels.compare import tally
from mergepipe.method import method_names, post_step_names

MIB = 1 << 20
SHAPES = llama_shapes()
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
WORDS = [f"word{n}" for n in range(320)]


def write(folder: Path, tensors, **config) -> Path:
    """Write a tiny Llama with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", llama_config(**config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def tensors_of(seed=0, dtype="F32"):
    return random_tensors(SHAPES, seed, dtype)


def moved(base, deltas):
    """The base with deltas added, in the base's dtype."""
    return {name: (x.float() + deltas[name]).to(x.dtype) for name, x in base.items()}


def noise(seed, size=0.001):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * size for name, shape in SHAPES.items()}


def combined(*weighted):
    """Sum of (factor, deltas)."""
    return {name: sum(factor * one[name] for factor, one in weighted) for name in SHAPES}


@pytest.fixture
def report_of(tmp_path):
    """Write a base and models, and compare them."""

    def report(base, *models, threads=2, **config):
        write(tmp_path / "base", base, **config)
        folders = [write(tmp_path / f"m{at}", one, **config) for at, one in enumerate(models)]
        inputs = open_inputs([str(tmp_path / "base"), *map(str, folders)])
        return inspect(inputs, threads=threads)

    return report


def codes(report):
    return [one.code for one in advise(report)]


def differences(report):
    return {one.code: one.text for one in report.differences}


# The kernel against its definition.


def as_defined(base, models):
    """Gram matrix of the base and task vectors, and counts, in torch."""
    values = [x.float() for x in (base, *models)]
    rows = [values[0], *(x - values[0] for x in values[1:])]
    gram = [[float((a.double() * b.double()).sum()) for a in rows] for b in rows]
    both = [[int(((a != 0) & (b != 0)).sum()) for a in rows[1:]] for b in rows[1:]]
    conflict = [[int((a.sign() * b.sign() < 0).sum()) for a in rows[1:]] for b in rows[1:]]
    unequal = [[int((a != b).sum()) for a in values[1:]] for b in values[1:]]
    order = [torch.bfloat16, torch.float16, torch.float32]
    coarser = [order[min(order.index(base.dtype), order.index(x.dtype))] for x in models]
    rounded = [int((x.to(c) != base.to(c)).sum()) for x, c in zip(models, coarser, strict=True)]
    return gram, both, conflict, unequal, rounded


@pytest.mark.parametrize("values", ["normal", "whole", "equal", "signed_zeros", "subnormal"])
@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, DTYPES), ids="-".join)
def test_the_kernel_counts_and_adds_what_the_definition_says(values, dtypes):
    draw = torch.Generator().manual_seed(1)
    kinds = [DTYPES[name] for name in (*dtypes, dtypes[0])]
    rows = [VALUES[values](dtype, 5000, draw) for dtype in kinds]
    found = tally(pack_tensors(rows, based=True, first=3))
    gram, both, conflict, unequal, rounded = as_defined(rows[0], rows[1:])
    np.testing.assert_allclose(found.gram, gram, rtol=1e-9, atol=1e-9 * np.max(np.abs(gram)))
    assert found.both.tolist() == both
    assert found.conflict.tolist() == conflict
    assert found.unequal.tolist() == unequal
    assert found.rounded.tolist() == rounded


def test_tallies_of_parts_add_up_to_that_of_the_whole():
    draw = torch.Generator().manual_seed(2)
    rows = [VALUES["normal"](torch.bfloat16, 6000, draw) for _ in range(3)]
    parts = [pack_tensors([x[a:b] for x in rows], based=True) for a, b in ((0, 2048), (2048, 6000))]
    whole, added = tally(pack_tensors(rows, based=True)), tally(parts[0]) + tally(parts[1])
    np.testing.assert_allclose(added.gram, whole.gram, rtol=1e-12)
    assert added.conflict.tolist() == whole.conflict.tolist()


# Numbers of whole models.


def flat(tensors, names):
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("all", list(SHAPES)),
        ("q_proj", [name for name in SHAPES if "q_proj" in name]),
        ("norms", [name for name in SHAPES if "norm" in name]),
        ("embedding", ["model.embed_tokens.weight"]),
        ("head", ["lm_head.weight"]),
    ],
)
def test_numbers_are_those_that_numpy_gives(report_of, kind, names):
    base = tensors_of(dtype="BF16")
    one, other = noise(1, 0.02), noise(2, 0.02)
    a, b = moved(base, one), moved(base, combined((0.5, one), (1, other)))
    report = report_of(base, a, b)
    sums = report.total if kind == "all" else report.kinds[kind]
    w, x, y = (flat(one, names) for one in (base, a, b))
    one, pair = model_numbers(sums, 0), pair_numbers(sums, 0, 1)
    assert one.relative_norm == pytest.approx(np.linalg.norm(x - w) / np.linalg.norm(w), rel=1e-6)
    assert one.cosine_to_base == pytest.approx(cosine(x, w), rel=1e-9)
    assert one.changed == one.changed_rounded == np.mean(x != w)
    assert pair.cosine == pytest.approx(cosine(x - w, y - w), rel=1e-6)
    both = (x != w) & (y != w)
    assert pair.overlap == np.mean(both)
    assert pair.conflict == np.mean((x - w)[both] * (y - w)[both] < 0)


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def test_a_tensor_that_a_model_lacks_counts_only_for_the_others(report_of):
    base = tensors_of()
    a, b = moved(base, noise(1)), moved(base, noise(2))
    del b[Q]
    report = report_of(base, a, b)
    rest = [name for name in SHAPES if name != Q]
    w, x, y = (flat(one, rest) for one in (base, a, b))
    assert model_numbers(report.total, 0).elements == len(x) + base[Q].numel()
    assert model_numbers(report.total, 1).relative_norm == pytest.approx(
        np.linalg.norm(y - w) / np.linalg.norm(w), rel=1e-6
    )
    assert pair_numbers(report.total, 0, 1).cosine == pytest.approx(
        cosine(x - w, y - w), rel=1e-4, abs=1e-9
    )
    assert f"1 tensors of base are missing: {Q}" in differences(report)["missing"]


def test_an_adapter_is_compared_by_what_it_adds(tmp_path):
    base = llama(tmp_path / "base")
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw)
    prefix = f"base_model.model.{Q.removesuffix('.weight')}"
    (tmp_path / "lora").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    write_json(tmp_path / "lora" / "adapter_config.json", config)
    factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", factors)
    models = {"base": "./base", "tuned": {"path": "./base", "adapter": "./lora"}}
    merge = {"method": "task_arithmetic", "base": "base", "models": ["tuned"]}
    recipe = {"mergepipe": 1, "models": models, "merge": merge}
    report = inspect(open_inputs([str(write_json(tmp_path / "recipe.yaml", recipe))]))
    assert base.name == report.base.label
    found = model_numbers(report.total, 0)
    assert found.norm == pytest.approx(float((2 * b @ a).norm()), rel=1e-5)
    assert found.changed == pytest.approx(64 * 64 / found.elements, rel=1e-3)


def test_rounding_to_another_dtype_is_told_from_a_change(report_of):
    base = tensors_of()
    report = report_of(base, {name: x.bfloat16() for name, x in base.items()})
    found = model_numbers(report.total, 0)
    assert found.changed > 0.9
    assert found.changed_rounded == 0
    assert "stored as BF16, those of base as F32" in differences(report)["dtype"]


def test_a_tensor_that_is_not_finite_is_left_out_and_named(report_of):
    base = tensors_of()
    a, b = moved(base, noise(1)), moved(base, noise(2))
    a[Q][3, 5] = math.nan
    report = report_of(base, a, b)
    assert Q in differences(report)["not-finite"]
    names = [name for name in SHAPES if name != Q]
    expected = np.linalg.norm(flat(a, names) - flat(base, names))
    assert model_numbers(report.total, 0).norm == pytest.approx(expected, rel=1e-6)
    assert model_numbers(report.total, 1).elements == sum(x.numel() for x in base.values())


# Other differences.


def test_moved_words_are_a_difference(report_of, tmp_path):
    base = tensors_of()
    for name, words in (("base", WORDS), ("m0", [*WORDS[1:], WORDS[0]])):
        vocabulary = {word: at for at, word in enumerate(words)}
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "tokenizer.json", {"model": {"vocab": vocabulary}})
    report = report_of(base, moved(base, noise(1)))
    said = [one.text for one in report.differences if one.code == "words"]
    assert "320 of 320 tokens have another id" in said[0]


def test_more_rows_of_words_are_a_difference_and_the_rest_is_compared(tmp_path):
    base, model = llama(tmp_path / "base"), llama(tmp_path / "model", vocab=328)
    report = inspect(open_inputs([str(base), str(model)]))
    said = differences(report)
    assert said["vocabulary"].startswith("328 rows of words")
    assert "model.embed_tokens.weight [328, 64] (not [320, 64])" in said["shape"]
    assert "embedding" not in report.kinds
    assert "q_proj" in report.kinds


def test_a_tied_head_counts_once_and_an_own_one_is_a_difference(tmp_path):
    base, model = llama(tmp_path / "base", tied=True), llama(tmp_path / "model")
    report = inspect(open_inputs([str(base), str(model)]))
    assert "head" not in report.kinds
    assert "lm_head.weight" in differences(report)["unexpected"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "q_proj"),
        ("model.layers.7.self_attn.q_proj.bias", "q_proj.bias"),
        ("model.layers.7.self_attn.q_norm.weight", "norms"),
        ("model.layers.7.mlp.experts.12.up_proj.weight", "mlp.experts.*.up_proj"),
        ("h.0.attn.c_attn.bias", "c_attn.bias"),
        ("h.0.ln_1.weight", "norms"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention.output.dense"),
        ("bert.encoder.layer.0.output.LayerNorm.weight", "norms"),
        ("visual.blocks.3.mlp.linear_fc1.weight", "mlp.linear_fc1"),
        ("score.weight", "score"),
    ],
)
def test_tensors_are_grouped_by_what_layers_have_in_common(name, kind):
    assert kind_of(name, "other") == kind


def test_a_tied_head_that_is_stored_too_counts_once(report_of):
    base = tensors_of()
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    report = report_of(base, moved(base, noise(1, 0)), tied=True)
    assert "head" not in report.kinds
    assert report.total.tensors == len(SHAPES) - 1


# Advice.

A, B = noise(1), noise(2)
CASES = {
    "same-as-base": [combined((0, A)), B],
    "same-models": [A, A],
    "near-duplicates": [A, combined((1.1, A))],
    "related": [A, combined((0.5, A), (1, B))],
    "unrelated": [A, B],
    "unlike-norms": [A, combined((3, B))],
    "opposed": [A, combined((-0.5, A), (1, B))],
    "another-base": [combined((1000, A)), B],
    "dominant": [A, combined((20, B))],
}


@pytest.mark.parametrize("code", CASES)
def test_advice_follows_from_the_numbers(report_of, code):
    base = tensors_of()
    found = advise(report_of(base, *(moved(base, deltas) for deltas in CASES[code])))
    assert code in [one.code for one in found]
    others = {"same-as-base", "same-models", "near-duplicates", "related", "opposed", "unrelated"}
    assert not (others - {code}) & {one.code for one in found}


@pytest.mark.parametrize(("share", "is_sparse"), [(0.05, True), (0.4, False)])
def test_few_changed_elements_are_called_sparse(report_of, share, is_sparse):
    base = tensors_of(dtype="BF16")
    draw = torch.Generator().manual_seed(3)
    chosen = {name: torch.rand(shape, generator=draw) < share for name, shape in SHAPES.items()}
    report = report_of(base, moved(base, {name: 0.01 * x for name, x in chosen.items()}))
    assert ("sparse" in codes(report)) == is_sparse
    assert model_numbers(report.total, 0).changed == pytest.approx(share, abs=0.02)


def test_few_changed_tensors_are_not_called_sparse(report_of):
    base = tensors_of()
    report = report_of(base, {**base, Q: base[Q] + A[Q]})
    assert model_numbers(report.total, 0).changed < 0.1
    assert "sparse" not in codes(report)


def test_advice_rests_on_numbers_and_thresholds_and_names_methods_that_there_are(report_of):
    base = tensors_of()
    (found,) = as_json(report_of(base, moved(base, A), moved(base, B)))["advice"]
    assert found["cases"][0]["models"] == ["m0", "m1"]
    assert abs(found["cases"][0]["numbers"]["cosine"]) < found["thresholds"]["orthogonal"] == 0.1
    named = {word for rule in _RULES.values() for word in re.findall(r"`(\w+)`", rule.text)}
    assert len(named) > 4
    assert named <= {*method_names(), *post_step_names(), "lambda"}


def test_the_thresholds_are_documented_with_their_reasons():
    text = (Path(__file__).parent.parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    assert THRESHOLDS
    for name, one in THRESHOLDS.items():
        assert f"| `{name}` | {one.value:g} | {one.reason} |" in text


# The command.


@pytest.fixture
def models(tmp_path):
    base = tensors_of(dtype="BF16")
    write(tmp_path / "base", base)
    write(tmp_path / "a", moved(base, A))
    write(tmp_path / "b", moved(base, B))
    return tmp_path


def test_tables_and_advice_go_to_stdout_as_plain_text(models, capsys):
    said = command(capsys, "inspect", models / "base", models / "a", models / "b")
    assert said.status == 0
    assert_clean(said.out)
    for words in (
        "models beside base",
        "relative norm (changed) by kind",
        "cosine (sign conflict) by kind",
        "mlp.up_proj",
        "start with `task_arithmetic`",
        "rules of thumb",
    ):
        assert words in said.out


def test_rows_may_be_layers(models, capsys):
    said = command(capsys, "inspect", models / "base", models / "a", "--by", "layer")
    rows = [line.split()[0] for line in said.out.splitlines() if line.startswith("  ")]
    assert {"outside", "0", "1", "all"} <= set(rows)
    assert "cosine (sign conflict)" not in said.out


def test_any_number_of_threads_prints_the_same_json(models, capsys):
    arguments = ("inspect", models / "base", models / "a", models / "b", "--json", "--threads")
    one, more = (command(capsys, *arguments, count).out for count in (1, 5))
    assert one == more
    found = json.loads(one)
    assert [x["tensor"] for x in found["tensors"]] == list(SHAPES)
    assert set(found["tensors"][0]["models"]) == {"a", "b"}
    assert {x["kind"] for x in found["kinds"]} >= {"q_proj", "mlp.up_proj", "norms", "head"}


def write_recipe(folder, **merge):
    named = {x: f"./{x}" for x in ("base", "a", "b")}
    return write_json(folder / "recipe.yaml", {"mergepipe": 1, "models": named, "merge": {**merge}})


def test_a_recipe_names_base_and_models_by_its_first_merge(models):
    recipe = write_recipe(models, method="ties", base="b", models=["a"])
    found = open_inputs([str(recipe)])
    assert (found.base.label, [x.label for x in found.models]) == ("b", ["a"])


@pytest.mark.parametrize("base", ["b", "./b", "{folder}/b"])
def test_another_base_is_named_by_label_or_path(models, base, monkeypatch):
    monkeypatch.chdir(models)
    base = base.format(folder=models)
    recipe = write_recipe(models, method="linear", models=["a", "b"])
    for named in (["base", "a", "b"], [str(recipe)], ["base", "a"]):
        found = open_inputs(named, base)
        assert found.base.folder.name == "b"
        assert "a" in [x.label for x in found.models]
        assert "b" not in [x.label for x in found.models]


def test_models_of_one_name_are_told_apart_by_their_paths(models):
    other = write(models / "other" / "a", tensors_of())
    found = open_inputs([str(models / "base"), str(models / "a"), str(other)])
    assert [x.label for x in found.models] == [f"{models.name}/a", "other/a"]
    same = open_inputs([str(other), str(other)])
    assert [same.base.label, same.models[0].label] == ["a (1)", "a (2)"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base"], "there is no model beside the base"),
        (["absent.yaml"], "no such recipe file"),
        (["base", "absent"], "does not exist"),
        (["base", "a", "--base", "c"], "unknown model 'c'"),
        (["base", "bad://x"], "cannot be a model"),
        (["linear.yaml"], "names no base"),
        (["base", "a", "--plot", "x.svg"], "cannot draw '.svg'"),
        (["base", "mistral"], "another architecture: MistralForCausalLM"),
    ],
)
def test_what_cannot_be_compared_is_refused(models, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(models)
    write_recipe(models, method="linear", models=["a", "b"]).rename("linear.yaml")
    other = write(models / "mistral", tensors_of())
    edit_json(other / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")
    said = command(capsys, "inspect", *arguments)
    assert (said.status, said.out) == (2, "")
    assert words in said.err


def test_a_cut_off_file_is_refused_by_name(models):
    found = open_inputs([str(models / "base"), str(models / "a")])
    weights = models / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is cut off at byte"):
        inspect(found)


# Heat maps.


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_escapes_labels_and_asks_for_nothing_outside(models):
    name = 'x<img src=y onerror="alert(1)">'
    (models / "a").rename(models / name)
    report = inspect(open_inputs([str(models / "base"), str(models / name), str(models / "b")]))
    parser = Tags()
    text = page(report)
    parser.feed(text)
    allowed = "html meta title style h1 p main figure figcaption svg text rect"
    assert parser.tags == set(allowed.split())
    assert not parser.attributes & {"src", "href", "onerror", "onload"}
    assert f"{name}: relative norm" in parser.texts
    assert "http:" not in text
    assert "url(" not in text


def test_a_page_has_a_cell_for_every_layer_and_kind_with_its_number(models, capsys):
    named = (models / "base", models / "a", models / "b")
    said = command(capsys, "inspect", *named, "--plot", models / "maps")
    assert "inspect.html" in said.err
    text = (models / "maps" / "inspect.html").read_text(encoding="utf-8")
    report = inspect(open_inputs(list(map(str, named))))
    norm = model_numbers(report.cells["1", "q_proj"], 0).relative_norm
    assert f"<title>1, q_proj: {norm:.4g}</title>" in text
    assert text.count("<title>1, q_proj:") == text.count("<svg") == 2 + 2


def test_a_png_is_drawn_by_matplotlib_or_refused_with_what_to_install(models, capsys):
    target = models / "maps.png"
    said = command(capsys, "inspect", models / "base", models / "a", "--plot", target)
    if importlib.util.find_spec("matplotlib") is None:
        assert (said.status, said.out) == (2, "")
        assert 'pip install "mergepipe[plot]"' in said.err
    else:
        assert target.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_read(models, capsys):
    target = models / "base" / "config.json" / "maps.html"
    said = command(capsys, "inspect", models / "base", models / "a", "--plot", target)
    assert (said.status, said.out) == (3, "")
    assert "cannot be read or written" in said.err


# Memory.


def write_hole(folder, rows):
    """Write a tied Llama of one layer whose embedding has so many rows, all zero."""
    config = {"layers": 1, "hidden": 64, "vocab": rows, "tied": True}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", llama_config(**config))
    shapes = llama_shapes(**config)
    header = header_of(
        {x: torch.empty(s, dtype=torch.bfloat16, device="meta") for x, s in shapes.items()}
    )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + 2 * sum(map(math.prod, shapes.values())))
    return str(folder)


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    peaks = []
    for rows in (1 << 16, 1 << 21):  # embeddings of 8 and 256 MiB
        named = [write_hole(tmp_path / str(rows) / x, rows) for x in ("base", "a", "b")]
        peaks.append(peak_bytes(["-m", "mergepipe", "inspect", *named, "--threads", "2"]))
    assert peaks[1] - peaks[0] < 64 * MIB
