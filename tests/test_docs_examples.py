"""What stands in the documentation is what the program takes, and nothing there escapes a test."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from pages import PAGES, ROOT, RUN, SET_UP, blocks, mentioned
from typer.core import TyperCommand, TyperGroup

from mergepipe.cli import app
from mergepipe.errors import Problems
from mergepipe.moe.config import is_moe, read_mixture
from mergepipe.pipeline import check_file
from mergepipe.recipe import fields, read_document
from mergepipe.service.pool import read_pool

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
READMES = sorted((ROOT / "recipes").rglob("README.md"))
LABELS = (
    *("base", "german", "python", "arithmetic", "math", "french", "code", "chat", "expert"),
    *("a", "b", "sum", "series"),
)
# What the examples leave out: they are parts of recipes.
MODELS = {label: f"./{label}" for label in LABELS}
MERGE = {"method": "task_arithmetic", "base": "base", "models": ["math"]}
EVALUATE = [
    {
        "use": "bits_per_byte",
        "name": name,
        "data": "texts.jsonl",
        "split": {"search": 1, "holdout": 1},
    }
    for name in ("english", "code", "sums")
]
_IN_PLACE_OF_A_MERGE = {"stages", "compare", "ensemble"}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*|(?<![\w-])-[a-z](?=[\s=]|$)")


def command_of(line: str) -> tuple[TyperCommand, list[str]]:
    """The command that a line names, and the words after it."""
    found, words = typer.main.get_command(app), _words(line)[1:]
    while isinstance(found, TyperGroup):
        assert words[0] in found.commands, f"no such command: {line}"
        found, words = found.commands[words[0]], words[1:]
    return found, words


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return line.split()


def in_comments(recipe: Path) -> list[str]:
    """The commands at the top of a recipe."""
    text = recipe.read_text(encoding="utf-8").replace("\\\n#", " ")
    return re.findall(r"(?m)^# .*?(?<!`)\b(mergepipe [a-z].*)$", text)


MENTIONED = sorted(
    {
        (page.name, line)
        for page in [*PAGES, *READMES, *RECIPES]
        for line in (in_comments(page) if page in RECIPES else mentioned(page))
        if re.match(r"mergepipe [a-z]", line)
    }
)


@pytest.mark.parametrize(("page", "line"), MENTIONED)
def test_every_command_that_is_mentioned_is_there_with_its_options(page: str, line: str):
    found, words = command_of(line)
    known = {opt for one in found.params for opt in (*one.opts, *one.secondary_opts)} | {"--help"}
    asked = {word.partition("=")[0] for word in words if _OPTION.match(word.strip("[]"))}
    assert {one.strip("[]") for one in asked} <= known, page


def examples() -> Iterator[tuple[str, str]]:
    """Recipes and parts of them; those that are files are run by the pages that write them."""
    for page in PAGES:
        found = [block for block in blocks(page) if block.kind == "yaml" and block.what != "file"]
        for number, block in enumerate(found):
            if set(yaml.safe_load(block.text)) == {"weight"}:  # ways to write one value
                yield from ((f"{page.stem}-{line}", line) for line in block.lines)
            else:
                yield f"{page.stem}-{number}", block.text


def completed(text: str) -> dict[str, object]:
    """Give an example as a whole: what pages leave out is put around it."""
    data = yaml.safe_load(textwrap.dedent(text))
    if is_moe(data) or "pool" in data or data.get("mergepipe"):
        return data
    if "weight" in data:
        return completed(yaml.safe_dump({"merge": {**MERGE, "models": {"math": data}}}))
    if not data.keys() <= fields.RecipeFields.model_fields.keys() | {"service"}:
        return completed(yaml.safe_dump({"merge": {**MERGE, **data}}))
    made = {"mergepipe": 1, **data}
    if "service" not in data:
        made["models"] = {**MODELS, **data.get("models", {})}
    if not data.keys() & _IN_PLACE_OF_A_MERGE:
        made.setdefault("merge", MERGE)
    if data.keys() & {"search", "beside", "retention", "service"}:
        made.setdefault("evaluate", EVALUATE)
    return made


@pytest.mark.parametrize(("name", "text"), examples())
def test_every_recipe_and_every_part_of_one_means_something(name: str, text: str, tmp_path: Path):
    data, problems = completed(text), Problems()
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    if "pool" in data:
        assert read_pool(file).models, name
    elif is_moe(data):
        assert read_mixture(read_document(file), problems), name
    else:
        check_file(file, problems)
    assert problems.found == [], name


@pytest.mark.parametrize(
    "recipe",
    [one for one in RECIPES if "\nmergepipe: 1\n" in one.read_text()],
    ids=lambda one: one.name,
)
def test_every_recipe_that_is_shipped_means_something(recipe: Path):
    problems = Problems()
    check_file(recipe, problems)
    assert problems.found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_escapes_a_test(page: Path):
    """Lines that are no command of ours are set up, or the block says why it is not run."""
    for block in blocks(page):
        if block.what == "not run":
            continue
        if block.kind in ("sh", "console"):
            assert [x for x in block.lines if not x.startswith((*RUN, *SET_UP))] == []
        elif block.kind != "text":
            assert block.kind != "bash", "write `sh`"
            lines = [line for line in block.text.splitlines() if line.startswith("mergepipe ")]
            assert block.kind in ("", "yaml", "python"), block.kind
            assert all(re.search(r" [A-Z]", line) for line in lines), "a form has a PLACE to fill"


def test_little_is_left_out():
    left = [block.about for page in PAGES for block in blocks(page) if block.what == "not run"]
    assert len(left) <= 12
    assert all(len(why) > 10 for why in left)
