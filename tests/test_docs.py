"""What the documentation says is there, and what is there is in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mergepipe.cli import app
from mergepipe.evaluate import evaluator_names
from mergepipe.method import method_names
from mergepipe.recipe import fields

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL_TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
MODELS = [
    fields.RecipeFields,
    fields.ModelFields,
    fields.MergeFields,
    fields.RuleFields,
    fields.StageFields,
    fields.EvaluateFields,
    fields.OutputFields,
]


@pytest.mark.parametrize("name", [*method_names(), *evaluator_names()])
def test_every_method_and_evaluator_is_documented(name: str):
    assert f"`{name}`" in ALL_TEXT or f"# {name}" in ALL_TEXT


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_every_command_is_documented(name: str):
    assert f"mergepipe {name}" in ALL_TEXT


@pytest.mark.parametrize(
    "name", sorted({field for model in MODELS for field in model.model_fields})
)
def test_every_field_of_a_recipe_is_in_the_reference(name: str):
    assert f"`{name}`" in (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_example_is_yaml(page: Path):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short_and_starts_with_the_demo():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any("make demo" in line for line in lines[:30])
