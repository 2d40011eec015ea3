"""The command line: what it prints and where, and its exit status."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from checkpoints import edit_json
from command_line import HEALTHY, Said, added, assert_clean, command, listing, write_models

from mergepipe.cli.init import TEMPLATE
from mergepipe.method import load_method, method_names

HEAVY = ("torch", "transformers", "numpy", "numba", "pydantic", "yaml", "huggingface_hub")
EVALUATE = (
    "evaluate:",
    "  - {use: bits_per_byte, name: nothing, data: ./absent.jsonl}",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    """A recipe in a folder of its own, beside links to the models."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    file = tmp_path / "recipe.yaml"
    file.write_text(HEALTHY.replace("linear", "ties\n  base: base"), encoding="utf-8")
    return file


def python(*arguments: str | Path) -> Said:
    """Run another Python, for what one process cannot show."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Said(done.returncode, done.stdout, done.stderr)


# Help, version


def test_help_loads_nothing_heavy():
    code = (
        "import sys, mergepipe\nfrom mergepipe.cli import app\n"
        "sys.argv = ['mergepipe', '--help']\n"
        f"try: app()\nfinally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    said = python("-c", code)
    assert (said.status, said.err) == (0, "[]\n")
    assert all(name in said.out for name in ("run", "plan", "verify", "methods", "init", "schema"))


@pytest.mark.parametrize("name", ["run", "plan", "verify", "methods", "init", "schema"])
def test_every_command_has_a_help_page(name, capsys):
    said = command(capsys, name, "--help")
    assert (said.status, said.err) == (0, "")
    assert f"mergepipe {name}" in said.out


def test_version_is_that_of_the_package(capsys):
    said = command(capsys, "--version")
    assert (said.status, said.out, said.err) == (0, f"mergepipe {version('mergepipe')}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["plan"], ["run", "a.yaml", "--threads", "0"], ["plan", "a.yaml", "--frob"]],
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    said = command(capsys, *arguments)
    assert (said.status, said.out) == (2, "")
    assert "Error" in said.err


# Plan


def test_a_plan_says_what_is_merged_how_and_at_what_cost(recipe, capsys):
    said = command(capsys, "plan", recipe, "--threads", "2")
    assert (said.status, said.err) == (0, "")
    for words in (
        "merge: ties, output like base",
        "ties base + expert_a + expert_b: 21 tensors, 115,008 elements, BF16",
        "expert_a.weight=0.5 [merge]",
        "density=0.2",
        "model.layers.*.mlp.gate_proj.weight ×2",
        "in up to 6 pass(es)",
        "2 workers",
        "115,008 parameters, 1 file(s)",
    ):
        assert words in said.out


def test_a_plan_touches_nothing(recipe, capsys):
    before = listing(recipe.parent)
    assert command(capsys, "plan", recipe).status == 0
    assert listing(recipe.parent) == before


def test_a_plan_in_json_accounts_for_every_tensor_of_every_input(recipe, capsys):
    said = command(
        capsys,
        "plan",
        recipe,
        "--json",
        "--set",
        "merge.where=[{tensors: '*norm*', take: expert_b}]",
    )
    (stage,) = json.loads(said.out)["stages"]
    used = [(one["model"], one["tensor"]) for step in stage["steps"] for one in step["inputs"]]
    dropped = [(one["model"], one["tensor"]) for one in stage["dropped"]]
    assert len({*used, *dropped}) == len(used) + len(dropped) == 3 * 21
    assert all(one["reason"] for one in stage["dropped"])
    assert {step["method"] for step in stage["steps"]} == {"ties", "copy"}


def test_totals_of_a_plan_in_json_are_the_sums_of_its_steps(recipe, capsys):
    found = json.loads(command(capsys, "plan", recipe, "--json").out)
    (stage,) = found["stages"]
    assert stage["tensors"] == len(stage["steps"]) == 21
    assert stage["bytes_written"] == sum(shard["bytes"] for shard in stage["shards"])
    assert sum(sum(group["tensors"].values()) for group in stage["groups"]) == 21
    assert sum(group["elements"] for group in stage["groups"]) == stage["parameters"] == 115_008


def test_a_rule_shows_in_the_plan_with_the_origin_of_its_values(recipe, capsys):
    rule = "merge.where=[{tensors: '*norm*', method: linear, expert_a: {weight: [0.1, 0.3]}}]"
    said = command(capsys, "plan", recipe, "--set", rule)
    assert "linear expert_a + expert_b: 5 tensors, 320 elements, BF16 (where[0])" in said.out
    assert "expert_a.weight=0.1 … 0.3 [where[0]], expert_b.weight=0.25 [merge]" in said.out


def test_the_first_rule_that_fits_a_tensor_is_used(recipe, capsys):
    rules = "[{tensors: '*norm*', take: expert_b}, {tensors: '*', expert_a: {weight: 0.9}}]"
    said = command(capsys, "plan", recipe, "--set", f"merge.where={rules}")
    assert "copy expert_b: 5 tensors, 320 elements, BF16 (taken from expert_b)" in said.out
    assert (
        "ties base + expert_a + expert_b: 16 tensors, 114,688 elements, BF16 (where[1])" in said.out
    )
    assert "expert_a.weight=0.9 [where[1]], expert_a.density=0.2" in said.out


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("[{tensors: '*.mpl.*', lambda: 2}]", "'*.mpl.*' fits nothing: no tensor"),
        (
            "[{tensors: '*', lambda: 2}, {tensors: '*norm*', lambda: 3}]",
            "'*norm*' fits nothing: earlier rules fit all of its tensors",
        ),
        ("[{tensors: nothing, take: expert_a}]", "'nothing' fits nothing"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(rules, words, recipe, capsys):
    said = command(capsys, "plan", recipe, "--set", f"merge.where={rules}")
    assert (said.status, said.out) == (2, "")
    assert words in said.err


# Run


def test_run_merges_and_says_so_on_stderr(recipe, capsys):
    said = command(capsys, "run", recipe)
    assert (said.status, said.out) == (0, "")
    assert f"{recipe.parent / 'merged'}: 21 tensors, 115,008 parameters" in said.err
    assert {"config.json", "model.safetensors"} <= set(listing(recipe.parent / "merged"))


def test_run_with_json_prints_json_alone_to_stdout(recipe, capsys):
    said = command(capsys, "run", recipe, "--json")
    found = json.loads(said.out)
    assert found["output"] == str(recipe.parent / "merged")
    assert (found["tensors"], found["parameters"], found["results"]) == (21, 115_008, [])
    assert any("tokenizer" in warning for warning in found["warnings"])


def test_out_and_set_win_over_the_recipe(recipe, capsys):
    other = recipe.parent / "other"
    said = command(capsys, "run", recipe, "-o", other, "--set", "output.dtype=float32")
    assert said.status == 0
    assert not (recipe.parent / "merged").exists()
    assert json.loads((other / "config.json").read_text())["dtype"] == "float32"


def test_run_replaces_a_result_only_if_told_to(recipe, capsys):
    assert command(capsys, "run", recipe).status == 0
    said = command(capsys, "run", recipe)
    assert said.status == 2
    assert "--overwrite" in said.err
    assert command(capsys, "run", recipe, "--overwrite").status == 0


def test_without_an_output_folder_run_says_how_to_give_one(recipe, capsys):
    said = command(capsys, "run", recipe, "--set", "output.path=")
    assert said.status == 2
    assert "--out" in said.err


@pytest.mark.parametrize("out", [".", "..", "/", "base", "base/inside", "recipe.yaml", "absent/x"])
def test_an_output_folder_that_cannot_be_is_refused(out, recipe, capsys, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    before = listing(recipe.parent)
    said = command(capsys, "run", "recipe.yaml", "--out", out)
    assert said.status == 2, said
    assert listing(recipe.parent) == before


def test_a_faulty_evaluation_is_found_before_anything_is_merged(recipe, capsys):
    recipe.write_text(added(*EVALUATE), encoding="utf-8")
    said = command(capsys, "run", recipe)
    assert said.status == 2
    assert "recipe.yaml:13" in said.err
    assert "absent.jsonl" in said.err
    assert not (recipe.parent / "merged").exists()


# Exit status


def test_another_run_in_the_same_folder_exits_with_3(recipe, capsys):
    with (recipe.parent / ".merged.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on another")
        lock.flush()
        said = command(capsys, "run", recipe)
    assert said.status == 3
    assert "process 7 on another" in said.err


def test_a_traceback_is_shown_only_with_debug(recipe, capsys, monkeypatch):
    monkeypatch.setenv("MERGEPIPE_DEBUG", "")  # so that it is as before afterwards
    recipe.write_text("mergepipe: 2\n", encoding="utf-8")
    plain = command(capsys, "plan", recipe)
    debug = command(capsys, "--debug", "plan", recipe)
    assert (plain.status, "Traceback" in plain.err) == (2, False)
    assert (debug.status, "Traceback" in debug.err) == (2, True)
    assert debug.err.endswith(plain.err)


def test_a_reader_that_goes_away_is_no_error_of_ours(recipe):
    arguments = [sys.executable, "-m", "mergepipe", "plan", str(recipe), "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# Methods, schema, init


def test_methods_lists_all_methods_with_their_first_line(capsys):
    said = command(capsys, "methods")
    assert (said.status, said.err) == (0, "")
    for name in method_names():
        assert name in said.out
        assert load_method(name).summary in said.out


@pytest.mark.parametrize("name", method_names())
def test_the_page_of_a_method_has_its_formula_and_parameters(name, capsys):
    said = command(capsys, "methods", name)
    method = load_method(name)
    assert (said.status, said.err) == (0, "")
    assert all(line.rstrip() in said.out for line in method.doc.strip().splitlines())
    for parameters in (method.each, method.shared):
        for field, entry in parameters.model_json_schema()["properties"].items():
            assert field in said.out
            assert entry["description"] in said.out


def test_an_unknown_method_is_told_with_its_nearest(capsys):
    said = command(capsys, "methods", "tie\x1b")
    assert (said.status, said.out) == (2, "")
    assert "did you mean 'ties'?" in said.err
    assert_clean(said.err)


def test_schema_prints_json_alone(capsys):
    said = command(capsys, "schema")
    assert (said.status, said.err) == (0, "")
    assert json.loads(said.out)["title"] == "mergepipe recipe"


def test_init_writes_a_recipe_but_not_over_another(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(capsys, "init").out == "wrote recipe.yaml\n"
    assert Path("recipe.yaml").read_text() == TEMPLATE
    Path("recipe.yaml").write_text("mine")
    said = command(capsys, "init")
    assert (said.status, said.out) == (2, "")
    assert "recipe.yaml: exists" in said.err
    assert Path("recipe.yaml").read_text() == "mine"


def test_init_says_where_it_cannot_write(tmp_path, capsys):
    said = command(capsys, "init", tmp_path / "absent" / "recipe.yaml")
    assert said.status == 3
    assert "cannot be written" in said.err


def test_the_template_plans_once_its_models_are_there(tmp_path, capsys):
    write_models(tmp_path)
    for old, new in (("expert_a", "math"), ("expert_b", "french")):
        (tmp_path / old).rename(tmp_path / new)
    command(capsys, "init", tmp_path / "recipe.yaml")
    said = command(capsys, "plan", tmp_path / "recipe.yaml")
    assert (said.status, said.err) == (0, "")


# What names may hold


def test_hostile_names_are_escaped_in_plans(recipe, capsys):
    hostile = recipe.parent / "out\x1b[31m\n\u202e[bold]"
    for option in ((), ("--json",)):
        said = command(capsys, "plan", recipe, "--out", hostile, *option)
        assert said.status == 0
        assert_clean(said.out + said.err)
    assert "[bold]" in command(capsys, "plan", recipe, "--out", hostile).out


def test_hostile_arguments_are_escaped_in_errors(recipe, capsys):
    for arguments in (
        ("plan", "no\x1b[31m\nrecipe.yaml"),
        ("plan", recipe, "--set", "se\x1b[31med=1"),
        ("plan", recipe, "--set", "seed\x1b[31m"),
        ("run", recipe, "--out", "/absent/\x1b[31m"),
    ):
        said = command(capsys, *arguments)
        assert said.status == 2
        assert r"\x1b[31m" in said.err
        assert_clean(said.err)


def test_a_long_warning_stays_on_one_line(recipe, capsys):
    label = "a-label-of-many-letters-" * 4
    text = recipe.read_text().replace("expert_b:", f"{label}:")
    recipe.write_text(text, encoding="utf-8")
    config = recipe.parent / "expert_b" / "config.json"
    edit_json(config, auto_map={"AutoModel": "evil.Evil"})
    said = command(capsys, "plan", recipe)
    assert said.status == 0
    assert said.err.count("\n") == said.err.count("warning: ") == 1
