"""The recipe language: what its forms mean, and where its fields stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import HEALTHY
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import (
    FORMS,
    LONG,
    MERGE,
    RULES,
    STAGED,
    parsed,
    paths,
    read,
    refusal,
)

from mergepipe.recipe import Gradient, at_depth


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("base", {"path": "base"}),
        ("plain", {"hub": "models/plain"}),
        ("hub", {"hub": "org/name"}),
        ("pinned", {"hub": "org/name", "revision": "refs/pr/7"}),
        ("absolute", {"path": "/data/model"}),
        ("home", {"path": Path.home() / "model"}),
        ("tuned", {"path": "base", "adapter": "lora"}),
        (
            "hub_tuned",
            {"hub": "org/name", "adapter_hub": "org/lora", "adapter_revision": "v2"},
        ),
    ],
)
def test_a_model_is_a_folder_or_a_name_on_the_hub(label, expected, tmp_path):
    source = parsed(tmp_path, FORMS + MERGE).sources[label]
    for field in ("path", "adapter"):
        if field in expected:
            expected[field] = tmp_path / expected[field]
    fields = ("path", "hub", "revision", "adapter", "adapter_hub", "adapter_revision")
    assert {field: getattr(source, field) for field in fields} == dict.fromkeys(fields) | expected


def test_a_folder_that_exists_wins_over_a_name_on_the_hub(tmp_path):
    (tmp_path / "models" / "plain").mkdir(parents=True)
    source = parsed(tmp_path, FORMS + MERGE).sources["plain"]
    assert (source.path, source.hub) == (tmp_path / "models" / "plain", None)


def test_the_output_is_relative_to_the_recipe(tmp_path):
    assert parsed(tmp_path, HEALTHY).output.path == tmp_path / "merged"


def test_models_of_a_merge_may_be_a_list(tmp_path):
    merge = parsed(tmp_path, FORMS + MERGE).merges["merge"]
    assert (merge.base, merge.models, merge.each) == ("base", ("plain",), {"plain": {}})


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    text = "[5e-1, .5, 1_000, yes, off, 0o7, 12:30, 2020-01-01, ~, 'true', true, -.inf]"
    expected = [0.5, 0.5, "1_000", "yes", "off", "0o7", "12:30", "2020-01-01", None, "true", True]
    assert read(tmp_path, text).data == [*expected, float("-inf")]


def test_own_fields_win_over_merged_ones_and_keep_their_lines(tmp_path):
    document = read(tmp_path, "a: &a {x: 1, y: 2}\nb:\n  x: 3\n  <<: *a\n")
    assert document.data["b"] == {"x": 3, "y": 2}
    assert document.where(("b", "x")) == "recipe.yaml:3:3: b.x"
    assert document.where(("b", "y")) == "recipe.yaml:1:14: b.y"


# Gradients over depth

unhurried = settings(deadline=None)  # machines that run tests are busy
numbers = st.floats(-1e6, 1e6, allow_nan=False)
gradients = st.lists(numbers, min_size=1, max_size=12).map(tuple)
depths = st.floats(0, 1)


@unhurried
@given(gradients, depths)
def test_a_gradient_never_leaves_the_range_of_its_anchors(gradient, depth):
    assert min(gradient) <= at_depth(gradient, depth) <= max(gradient)


@unhurried
@given(gradients)
def test_a_gradient_has_its_anchors_at_equal_distances(gradient):
    last = max(len(gradient) - 1, 1)
    values = [at_depth(gradient, i / last) for i in range(len(gradient))]
    assert values == pytest.approx(gradient, abs=1e-6)


@unhurried
@given(gradients, depths, depths)
def test_a_gradient_between_rising_anchors_rises(gradient, one, other):
    rising = tuple(sorted(gradient))
    low, high = sorted((one, other))
    assert at_depth(rising, low) <= at_depth(rising, high) + 1e-9


@unhurried
@given(numbers, depths, st.integers(1, 9))
def test_a_gradient_of_equal_anchors_is_constant(value, depth, count):
    assert at_depth((value,) * count, depth) == value


# Rules


def test_rules_tell_models_from_parameters_of_the_merge(tmp_path):
    norm, mlp, query = parsed(tmp_path, RULES).merges["merge"].rules
    assert (norm.globs, norm.method, norm.each) == (("*norm*",), "linear", {"a": {"weight": 0.9}})
    assert (mlp.globs, mlp.each) == (("*.mlp.*", "x"), {"a": {"weight": Gradient((0.2, 0.8))}})
    assert (mlp.method, mlp.shared) == (None, {"lambda": 0.5})
    assert (query.take, query.each, query.shared) == ("b", {}, {})


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{tensors: x, density: 0.5}", "'density' is given per model in ties"),
        ("{tensors: x, c: {weight: 1}}", "no model 'c'"),
        ("{tensors: x, aa: {weight: 1}}", "did you mean 'a'?"),
        ("{tensors: x, a: 0.5}", "give parameters by name"),
        ("{tensors: x, a: {wieght: 1}}", "did you mean 'weight'?"),
        ("{tensors: x, method: linear, a: {density: 1}}", "linear has no parameter 'density'"),
        ("{tensors: x, method: slerp}", "slerp takes exactly 2 models"),
        ("{tensors: x, method: tie}", "did you mean 'ties'?"),
        ("{tensors: x, take: c}", "unknown model 'c'"),
        ("{tensors: x, take: b, lambda: 1}", "no method or parameters with it"),
        ("{tensors: []}", "empty"),
        ("{method: linear}", "tensors: required"),
    ],
)
def test_a_rule_with_a_fault_is_refused_at_its_line(rule, words, tmp_path):
    message = refusal(tmp_path, f"{RULES}    - {rule}\n")
    assert words in message
    assert "recipe.yaml:12:" in message


def test_a_rule_without_method_does_not_repeat_what_is_wrong_with_the_merge(tmp_path):
    wrong = RULES.replace("method: ties", "method: slerp").replace("normalize: false", "t: 0.5")
    wrong = wrong[: wrong.index("  where:")] + "  where: [{tensors: x, t: 0.1}]\n"
    message = refusal(tmp_path, wrong.replace("{weight: 0.6, density: 0.4}", "{}"))
    assert message.count("slerp takes exactly 2") == 1


# Stages


def test_stages_run_after_those_they_use_and_the_last_written_is_the_result(tmp_path):
    recipe = parsed(tmp_path, STAGED)
    assert tuple(recipe.merges) == ("first", "middle", "last", "result")
    assert recipe.result == "result"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[middle, c]", "[a, c]", "recipe.yaml:6:3: stages.middle: no later stage uses this one"),
        (
            "[a, b]",
            "[a, last]",
            "recipe.yaml:3:1: stages: a cycle: last uses middle uses first uses last",
        ),
        ("[a, b]", "[a, first]", "stages: a cycle: first uses first"),
        ("[middle, c]", "[midle, c]", "did you mean 'middle'?"),
        ("base: first", "base: frist", "did you mean 'first'?"),
        ("result:", "a:", "a model has this name"),
        ("result:", "where:", "'where' is a field of merges"),
        (
            "models: {a: ./a, b",
            "merge: {method: linear, models: [a]}\nmodels: {a: ./a, b",
            "one of",
        ),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(old, new, words, tmp_path):
    assert old in STAGED
    assert words in refusal(tmp_path, STAGED.replace(old, new, 1))


# Options


@pytest.mark.parametrize(
    ("option", "path", "expected"),
    [
        ("seed=7", ("seed",), 7),
        (" seed = 7 ", ("seed",), 7),
        ("merge.models.math.weight=5e-1", ("merge", "models", "math", "weight"), 0.5),
        ("merge.models.math={weight: 1}", ("merge", "models", "math"), {"weight": 1}),
        ("merge.where.0.method=ties", ("merge", "where", 0, "method"), "ties"),
        ("merge.where.1.tensors.1=x", ("merge", "where", 1, "tensors", 1), "x"),
        ("merge.where=[]", ("merge", "where"), []),
        ("output.dtype=", ("output", "dtype"), None),
        ("output.path=a=b", ("output", "path"), "a=b"),
        ("models.llama-3.1=./l", ("models", "llama-3.1"), "./l"),
        ("models.7.path=./l", ("models", "7", "path"), "./l"),
        ("new.deep.field=[1, two]", ("new", "deep", "field"), [1, "two"]),
    ],
)
def test_an_option_sets_any_field_and_is_named_in_errors(option, path, expected, tmp_path):
    labels = "  llama-3.1: ./x\n  '7': {path: ./y}\n"
    document = read(tmp_path, LONG.replace("merge:\n", f"{labels}merge:\n"), option)
    value: Any = document.data
    for part in path:
        value = value[part]
    assert value == expected
    assert document.where(path) == f"--set {'.'.join(map(str, path))}"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("seed", "no value"),
        ("=1", "no value"),
        ("merge.where.5.method=ties", "the list has 2 items, no 5"),
        ("merge.where.first=1", "the list has 2 items, no first"),
        ("merge.where.²=1", "the list has 2 items"),
        (f"merge.where.{'9' * 5000}=1", "the list has 2 items"),
        ("seed.deep=1", "'deep' would go inside a plain value"),
        ("seed=[1", "not valid YAML"),
        ("seed={a: 1, a: 2}", "duplicate"),
        ("seed=!!python/name:os.system", "tag"),
        (f"seed={'[' * 1000}", "nested"),
        (f"{'a.' * 1000}a=1", "nested"),
        ("seed=true", "--set seed: must be a valid integer"),
        ("output.dtype=float17", "--set output.dtype: must be 'bfloat16'"),
        ("merge.models.math.densty=1", "--set merge.models.math.densty: ties has no parameter"),
        ("merge.lambda=x", "--set merge.lambda: must be a valid number"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(option, words, tmp_path):
    message = refusal(tmp_path, LONG, option)
    assert words in message
    assert "--set" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5000", 5000),
        ("5GB", 5 * 10**9),
        ("5GiB", 5 * 2**30),
        ("5g", 5 * 10**9),
        ("'5 MB'", 5 * 10**6),
        ("5.1GB", 51 * 10**8),
        ("0.5KiB", 512),
        ("'17'", 17),
        ("1TB", 10**12),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text, expected, tmp_path):
    recipe = parsed(tmp_path, LONG.replace("5GB", text))
    assert recipe.output.max_shard_bytes == expected


@pytest.mark.parametrize(
    "text", ["0", "-5", "true", "1.5", "5iB", "5 apples", "''", "[5GB]", ".inf", "1e400GB", "9" * 19 + "TB"]
)  # fmt: skip
def test_what_is_no_size_is_refused(text, tmp_path):
    message = refusal(tmp_path, LONG.replace("5GB", text))
    assert "recipe.yaml:30:3: output.max_shard_size: " in message


# Locations


@pytest.mark.parametrize(
    "path", paths(yaml.safe_load(LONG)), ids=lambda path: ".".join(map(str, path))
)
def test_every_field_of_a_long_recipe_is_found_at_its_line(path, tmp_path):
    where = read(tmp_path, LONG).where(path)
    line, column = map(int, where.split(":")[1:3])
    text = LONG.splitlines()[line - 1][column - 1 :]
    value: Any = yaml.safe_load(LONG)
    for part in path:
        value = value[part]
    named = path[-1] if isinstance(path[-1], str) else value
    assert text.lstrip('"').startswith(str(named)) or isinstance(value, dict)
    assert where.endswith(": " + ".".join(map(str, path)))


@pytest.mark.parametrize(
    ("old", "new", "at"),
    [
        ("mergepipe: 1", "mergepipe: one", "1:1: mergepipe"),
        ("adapter: ./lora", "adaptor: ./lora", "4:24: models.math.adaptor"),
        ("method: ties", "method: tie", "6:3: merge.method"),
        ("base: base\n", "base: bas\n", "7:3: merge.base"),
        ("[0.1, 0.9]", "[0.1, x]", "10:7: merge.models.math.weight"),
        ("density: 0.5", "density: 1.5", "11:7: merge.models.math.density"),
        ("lambda: 0.7", "lambda: seven", "12:3: merge.lambda"),
        ("normalize: true", "normalize: yes", "13:3: merge.normalize"),
        ("method: linear", "method: lin", "16:7: merge.where.0.method"),
        ("weight: 0.3", "weight: [[1]]", "17:14: merge.where.0.math.weight"),
        ("take: base", "take: bse", "19:7: merge.where.1.take"),
        ("tokenizer: base", "tokenizer: bse", "20:1: tokenizer"),
        ("chat_template: math", "chat_template: m", "21:1: chat_template"),
        ("seed: 3", "seed: -3", "22:1: seed"),
        ("use: bits", "usee: bits", "24:5: evaluate.0.use"),
        ("path: ./merged", "path: ['./merged']", "28:3: output.path"),
        ("bfloat16", "bf16", "29:3: output.dtype"),
        ("config: math", "config: mth", "31:3: output.config"),
    ],
)
def test_a_fault_in_a_long_recipe_is_reported_at_its_line(old, new, at, tmp_path):
    assert LONG.count(old) == 1
    assert f"recipe.yaml:{at}: " in refusal(tmp_path, LONG.replace(old, new))
