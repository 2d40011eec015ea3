"""Recipes with faults: each is refused in words that name the fault, and nothing is touched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import edit_json
from command_line import (
    API_KEY,
    HUB_TOKEN,
    Said,
    added,
    assert_clean,
    command,
    listing,
    replaced,
    write_models,
)
from faulty import edit_header

MOST_SECONDS = 5.0
LAUGHS = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 11)]
TIES = replaced("linear", "ties").replace("method: ties", "method: ties\n  base: base")
STAGES = """\
mergepipe: 1
models: {expert_a: ./expert_a, expert_b: ./expert_b}
stages:
  stage_one: {merge: {method: linear, models: [expert_a, stage_two]}}
  stage_two: {merge: {method: linear, models: [expert_b, stage_one]}}
"""
MANY = (
    "mergepipe: 1\nmodels:\n"
    + "".join(f"  m{i}: ./expert_{'ab'[i % 2]}\n" for i in range(400))
    + "merge: {method: linear, models: {m0: {}, m1: {}}}\n"
)


@dataclass(frozen=True)
class Row:
    """A recipe with a fault, and what must then be said, and where."""

    what: str
    recipe: str | bytes
    names: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    at: str = ""  # LINE:COLUMN


def weight(text: str) -> str:
    return replaced("expert_a: {weight: 0.5}", f"expert_a: {{weight: {text}}}")


def model(text: str) -> str:
    return replaced("expert_a: ./expert_a", f"expert_a: {text}")


REFUSED = (
    Row(
        "a chat_template that runs code when rendered",
        added("chat_template: \"{{ cycler.__init__.__globals__.os.system('touch pwned') }}\""),
        ("chat_template",),
        at="12:1",
    ),
    Row(
        "ANSI escapes in a model path",
        model(r'"./\e[31mexpert_a\e]0;owned\a"'),
        (r"\x1b[31mexpert_a",),
    ),
    Row("two stages that need each other", STAGES, ("stage_one", "stage_two"), ("cycl",), "3:1"),
    Row(
        "dtype float17",
        added("# dtype").replace("{path: ./merged}", "{path: ./merged, dtype: float17}"),
        ("float17", "bfloat16", "float16", "float32"),
        at="11:26",
    ),
    Row(
        "the method is given twice, with two values",
        replaced("  method: linear\n", "  method: linear\n  method: slerp\n"),
        ("recipe.yaml", "merge.method"),
        ("duplicate", "twice"),
        "8:3",
    ),
    Row(
        "the same model by two spellings of its path",
        replaced("./expert_b", "./expert_b/../expert_a"),
        ("expert_a", "expert_b"),
        ("same",),
        "5:3",
    ),
    Row(
        "the same model twice in a list of models",
        STAGES.replace("[expert_a, stage_two]", "[expert_a, expert_a]"),
        ("expert_a", "stages.stage_one.merge.models"),
        ("twice",),
        "4:39",
    ),
    Row("empty recipe", "", ("recipe.yaml",), ("empty",)),
    Row("a recipe of comments only", "# nothing\n---\n", ("recipe.yaml",), ("empty", "mapping")),
    Row("models: []", "mergepipe: 1\nmodels: []\n", ("models",), ("empty", "at least"), "2:1"),
    Row("models: {}", "mergepipe: 1\nmodels: {}\n", ("models",), ("empty", "at least"), "2:1"),
    Row(
        "no models for the merge",
        replaced(
            "models:\n    expert_a: {weight: 0.5}\n    expert_b: {weight: 0.25}", "models: []"
        ),
        ("merge.models",),
        ("empty", "at least"),
        "8:3",
    ),
    Row("no models", "mergepipe: 1\n", ("models",), ("missing", "required")),
    Row(
        "layer_range [2, 0]",
        replaced("{weight: 0.5}", "{layer_range: [2, 0]}"),
        ("layer_range", "linear"),
        at="9:16",
    ),
    Row(
        "a recipe in mergekit's language",
        "merge_method: linear\nslices: []\nmodels:\n- model: ./expert_a\n",
        ("models.0.parameters", "'weight' has no value"),
        at="4:3",
    ),
    Row("400 entries, 200 of each expert", MANY, ("m399",), ("same model twice",), "402:3"),
    Row(
        "Latin-1 bytes",
        added("# café").encode("latin-1"),
        ("recipe.yaml:12",),
        ("UTF-8", "decode"),
    ),
    Row("a model path that is a file", model("./expert_a/config.json"), ("config.json", "file")),
    Row(
        "a local path that does not exist", model("./expert_zzz"), ("expert_zzz", "does not exist")
    ),
    Row(
        "a token-like value in a wrong field",
        replaced("{path: ./merged}", f"{{path: ./merged, dtype: {HUB_TOKEN}}}"),
        ("output.dtype",),
        ("secret",),
        "11:26",
    ),
    Row(
        "an API key and a hub token in the recipe",
        added(f"api_key: {API_KEY}", f"hub: {{token: {HUB_TOKEN}}}"),
        ("api_key", "hub.token"),
        ("secret", "token", "key"),
        "12:1",
    ),
    Row("a secret as the name of a field", added(f"{HUB_TOKEN}: 1"), ("[secret]",)),
    Row(
        "a model path with $(...) and backticks",
        model("'./$(touch pwned)`touch pwned`'"),
        ("$(touch pwned)`touch pwned`", "does not exist"),
    ),
    Row(
        "slerp with three models",
        TIES.replace("ties", "slerp")
        .replace("{weight: 0.5}", "{}")
        .replace("{weight: 0.25}", "{}"),
        ("slerp", "2", "3", "expert_a", "expert_b"),
        at="9:3",
    ),
    Row(
        "a tab in the indentation on line 4",
        replaced("  expert_a: ./", "\texpert_a: ./"),
        ("recipe.yaml", "line 4", "tab"),
        at="4:1",
    ),
    Row("two YAML documents in one recipe", added("---", "a: 1"), ("document",), at="12:1"),
    Row(
        "a misspelt top-level field: dtpye",
        added("outptu: {}"),
        ("unknown field", "did you mean 'output'"),
        at="12:1",
    ),
    Row(
        "a misspelt field inside another: dtpye",
        replaced("path: ./merged", "path: ./merged, dtpye: float32"),
        ("output.dtpye", "unknown field", "did you mean 'dtype'"),
        at="11:26",
    ),
    Row("method tiez", replaced("linear", "tiez"), ("tiez", "ties", "unknown method"), at="7:3"),
    Row(
        "density given to linear, which has no such parameter",
        replaced("weight: 0.5", "density: 0.5"),
        ("density", "linear", "weight"),
        at="9:16",
    ),
    Row(
        "a model that is a cloud metadata URL",
        model("http://169.254.169.254/latest/meta-data"),
        ("169.254.169.254", "not allowed"),
        at="4:3",
    ),
    Row("weight: yes", weight("yes"), ("weight", "number", "yes"), at="9:16"),
    Row("weight: true", weight("true"), ("weight", "bool"), at="9:16"),
    Row("weight: []", weight("[]"), ("weight",), ("empty",), "9:16"),
    Row("weight: {a: 1}", weight("{a: 1}"), ("weight", "number", "mapping"), at="9:16"),
    Row("weight: .nan", weight(".nan"), ("weight", "nan", "finite"), at="9:16"),
    Row("weight: -.inf", weight("-.inf"), ("weight", "inf", "finite"), at="9:16"),
    Row("weight: a number of 400 digits", weight("9" * 400), ("weight", "number"), at="9:16"),
    Row("weight: a number of 5000 digits", weight("9" * 5000), ("weight", "number"), at="9:16"),
    Row("weight: with no value", weight(""), ("weight", "null"), at="9:16"),
    Row("weight: heavy", weight("heavy"), ("weight", "heavy", "number"), at="9:16"),
    Row("a word in a list of weights", weight("[0.5, heavy]"), ("weight", "heavy"), at="9:16"),
    Row("a list in a list of weights", weight("[[0.5]]"), ("weight", "number"), at="9:16"),
    Row(
        "a list for a word",
        TIES.replace("base: base\n  models", "base: base\n  scope: [model, tensor]\n  models"),
        ("scope", "ties", "list"),
        at="9:3",
    ),
    Row(
        "all weights are 0, normalised",
        weight("0").replace("0.25", "0"),
        ("weight", "sum to zero", "normalize"),
    ),
    Row(
        "weights 1 and -1, normalised",
        weight("1").replace("0.25", "-1"),
        ("weight", "sum to zero", "normalize"),
    ),
    Row(
        "della with a density too near 1 for its epsilon",
        TIES.replace("ties", "della").replace("weight", "density").replace("0.5", "0.9"),
        ("della: density 0.9 and epsilon 0.15", "0.75 to 1.05"),
    ),
    Row(
        "a global weight list of 3 for 2 models",
        replaced("method: linear\n", "method: linear\n  weight: [1, 2, 3]\n"),
        ("weight", "per model", "linear"),
        at="8:3",
    ),
    Row("billion-laughs aliases", "\n".join(["l0: &l0 lol", *LAUGHS]), ("recipe.yaml", "alias")),
    Row("20000 nested flow lists", "a: " + "[" * 20000, ("recipe.yaml:1", "nested")),
    Row(
        "!!python/object/apply",
        added("seed: !!python/object/apply:os.system ['touch pwned']"),
        ("recipe.yaml", "tag", "python"),
        at="12:7",
    ),
    Row(
        "an anchor that contains itself", "a: &a [*a]", ("recipe.yaml", "anchor", "alias"), at="1:4"
    ),
    Row("an anchor that merges itself", "a: &a {<<: *a}", ("recipe.yaml", "anchor"), at="1:4"),
    Row("200000 short lines", "k: v\n" * 200_000, ("recipe.yaml", "too large")),
    Row("over a megabyte", "#" * 1_000_001, ("recipe.yaml", "too large", "1000001")),
    Row("a key that is a list", "[a]: 1", ("recipe.yaml:1:1", "key")),
    Row("a list for a recipe", "- 1\n- 2\n", ("recipe.yaml:1:1", "mapping")),
    Row("a word for a recipe", "ties", ("recipe.yaml:1:1", "mapping")),
    Row("an escape that is no character", r'a: "\UFFFFFFFF"', ("recipe.yaml", "not valid YAML")),
    Row("a NUL", "a: \0", ("recipe.yaml", "not valid YAML")),
    Row("a NUL in a path", model(r'"a\0b"'), ("models.expert_a", "not allowed"), at="4:3"),
    Row("half a surrogate pair in a path", model(r'"a\ud800b"'), ("models.expert_a",), at="4:3"),
    Row("the home of nobody", model("~nobody-here/x"), ("models.expert_a", "home"), at="4:3"),
    Row("a path of 5000 letters", model("./" + "x" * 5000), ("expert_a",)),
    Row("mergepipe: true", replaced("mergepipe: 1", "mergepipe: true"), ("mergepipe",), at="1:1"),
    Row("mergepipe: 2", replaced("mergepipe: 1", "mergepipe: 2"), ("mergepipe", "1"), at="1:1"),
    Row("seed: true", added("seed: true"), ("seed", "bool"), at="12:1"),
    Row("seed: 1.0", added("seed: 1.0"), ("seed", "integer"), at="12:1"),
    Row("seed: a number of 3000 digits", added(f"seed: {'9' * 3000}"), ("seed", "less"), at="12:1"),
    Row(
        "a model called as a field of rules",
        replaced("  expert_a: ./", "  tensors: ./"),
        ("models.tensors", "field", "another label"),
        at="4:3",
    ),
    Row(
        "a model called as a parameter of the method",
        TIES.replace("expert_a:", "lambda:"),
        ("lambda", "parameter of ties", "another label"),
        at="10:5",
    ),
    Row(
        "a stage called as a model", STAGES.replace("stage_two", "expert_a"), ("a model has this",)
    ),
    Row(
        "two evaluations of one name",
        added("evaluate: [{use: bits_per_byte}, {use: bits_per_byte}]"),
        ("two evaluations are named 'bits_per_byte'",),
        at="12:34",
    ),
    Row(
        "a model called as the result is in tables of scores",
        added("evaluate: [{use: bits_per_byte}]").replace("expert_b:", "merged:"),
        ("models.merged", "another label"),
        at="5:3",
    ),
    Row("both merge and stages", added("stages: {s: {merge: 1}}"), ("merge", "stages", "one of")),
)
SURVIVED = (
    Row("control: a healthy recipe", replaced("", "")),
    Row("UTF-8 BOM and CRLF", b"\xef\xbb\xbf" + replaced("\n", "\r\n").encode()),
    Row("weight: 5e-1", weight("5e-1")),
    Row("weights as a gradient over depth", weight("[1, 2, 3]")),
    Row(
        "dare_ties with density 0",
        TIES.replace("ties", "dare_ties").replace("weight", "density").replace("0.5", "0"),
    ),
)  # fmt: skip


def table(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.what) for row in rows])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("recipe_faults"))


def plan(row: Row, folder: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Plan the row's recipe; whatever comes of it, it is quick and leaves nothing behind."""
    text, file = row.recipe, folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before, began = listing(folder), time.monotonic()
    said = command(capsys, "plan", file)
    assert time.monotonic() - began < MOST_SECONDS
    assert listing(folder) == before
    assert not Path("pwned").exists()
    assert_clean(said.out + said.err)
    return said


@table(REFUSED)
def test_a_recipe_with_a_fault_is_refused_in_words_that_name_it(row, models, capsys):
    said = plan(row, models, capsys)
    assert said.status == 2, said
    assert not said.out
    assert all(word in said.err for word in row.names), said.err
    assert not row.one_of or any(word in said.err for word in row.one_of), said.err
    assert f"recipe.yaml:{row.at}:" in said.err or not row.at, said.err
    assert all(line.startswith("error: ") for line in said.err.splitlines())


@table(SURVIVED)
def test_a_recipe_that_looks_odd_but_is_right_is_planned(row, models, capsys):
    said = plan(row, models, capsys)
    assert (said.status, said.err) == (0, "")
    assert "115,008 parameters" in said.out


def test_all_faults_are_reported_at_once(tmp_path, capsys):
    folder = write_models(tmp_path)
    edit_json(folder / "expert_a" / "config.json", num_hidden_layers=-2)
    edit_header(
        folder / "expert_b" / "model.safetensors", lambda header: header.pop("model.norm.weight")
    )
    faulty = replaced("linear", "tiez").replace("mergepipe: 1\n", "seed: true\nseed: 1\n")
    faulty = (
        faulty.replace("./merged", "./merged, dtype: float17") + "tokenizer: nobody\noutptu: 1\n"
    )
    said = plan(Row("many faults", faulty), folder, capsys)
    for word in ("required", "seed", "duplicate", "tiez", "float17", "nobody", "outptu"):
        assert word in said.err
    for word in ("expert_a/config.json", "num_hidden_layers", "expert_b/model.safetensors"):
        assert word in said.err
    assert said.err.count("error: ") == 9


def test_faults_of_meaning_are_reported_beside_a_fault_of_shape(models, capsys):
    faulty = weight("heavy").replace("{weight: 0.25}", "{densty: 1}") + "  max_shard_size: -1\n"
    faulty = faulty.replace("output: {path: ./merged}", "  where: [{}]\noutput:")
    said = plan(Row("shape and meaning", faulty), models, capsys)
    for word in ("heavy", "densty", "max_shard_size", "merge.where.0.tensors"):
        assert word in said.err
    assert said.err.count("error: ") == 4


def test_a_recipe_that_is_no_file_is_refused(tmp_path, capsys):
    for name in (tmp_path, tmp_path / "absent.yaml", "a" * 300):
        said = command(capsys, "plan", name)
        assert said.status == 2
        assert_clean(said.err)
