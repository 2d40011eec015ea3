"""mergekit-moe's files by the commands that read mergekit's other files."""

from __future__ import annotations

import json

import pytest
import yaml
from command_line import command
from mixtures import document, expert, family


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("moe")
    family(made)
    return made


def write(folder, **fields):
    (folder / "moe.yml").write_text(yaml.safe_dump(document(**fields), sort_keys=False))
    return folder / "moe.yml"


def test_lint_has_nothing_to_say_of_a_healthy_one(folder, capsys):
    said = command(capsys, "lint", write(folder))
    assert (said.status, said.out, said.err) == (0, "", "")


def test_lint_says_what_mergekit_passes_over_with_its_line(folder, capsys):
    said = command(capsys, "lint", "--json", write(folder, gate_mod="hidden"))
    assert said.status == 0
    (warning,) = json.loads(said.out)["warnings"]
    assert warning.startswith("moe.yml:")
    assert "gate_mod: unknown field, which mergekit passes over" in warning


def test_lint_refuses_what_cannot_work(folder, capsys):
    said = command(capsys, "lint", write(folder, experts=[expert("a"), expert("b")]))
    assert said.status == 2
    assert "identical" in said.err


def test_convert_says_that_there_is_nothing_to_convert(folder, capsys):
    said = command(capsys, "convert", write(folder))
    assert (said.status, said.out) == (2, "")
    assert "a mixture of experts has no form as a recipe: `mergepipe run` runs it" in said.err


def test_fields_are_set_from_the_command_line(folder, capsys, tmp_path):
    file = write(folder)
    setting = ("--set", "dtype=bfloat16", "--set", "experts_per_token=1")
    assert command(capsys, "run", file, "--out", tmp_path / "out", *setting).status == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["num_experts_per_tok"]) == ("bfloat16", 1)


@pytest.mark.parametrize("option", [("--plugin", "p.py"), ("--compat", "mergekit-0.1.4")])
@pytest.mark.parametrize("name", ["plan", "lint"])
def test_options_of_merges_are_said_to_have_no_effect(folder, capsys, name, option):
    said = command(capsys, name, write(folder), *option)
    assert said.status == 0
    assert f"{option[0]} has no effect on a mixture of experts" in said.out + said.err
