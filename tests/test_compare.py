"""Merges side by side: made, scored, ranked, and not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import command

from mergepipe.errors import InputError
from mergepipe.evaluate import ScoreRow, league
from mergepipe.method import load_method, method_names, post_step_names
from mergepipe.pipeline import compare, prepare

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"


def row(model, evaluation, value, *, higher=True):
    return ScoreRow(model, evaluation, "e", "m", value, "u", higher, 1, ())


ROWS = [
    row("a", "one", 1.0),
    row("a", "two", 4.0, higher=False),
    row("b", "one", 0.5),
    row("b", "two", 2.0, higher=False),
    row("bad", "one", 0.25),
    row("bad", "two", 4.0, higher=False),
    row("good", "one", 0.8),
    row("good", "two", 2.5, higher=False),
]


def test_merges_are_ranked_by_what_they_keep_of_the_inputs_best():
    found = league(ROWS, ("a", "b"))
    assert list(dict.fromkeys(one.model for one in found)) == ["a", "b", "good", "bad"]
    kept = {one.model: one.value for one in found if one.evaluation == "kept"}
    assert kept == pytest.approx({"a": 75, "b": 75, "good": 80, "bad": 37.5})


def test_what_is_better_neither_way_does_not_count():
    described = [row(name, "norm", value, higher=None) for name, value in (("a", 1), ("good", 9))]
    found = league([*ROWS, *described], ("a", "b"))
    kept = {one.model: one.value for one in found if one.evaluation == "kept"}
    assert kept == pytest.approx({"a": 75, "b": 75, "good": 80, "bad": 37.5})
    assert {one.model for one in found if one.evaluation == "norm"} == {"a", "good"}


def test_models_beside_come_last_and_are_held_against_the_inputs_on_what_they_were_asked():
    found = league([*ROWS, row("far", "one", 2.0)], ("a", "b"), ("far",))
    assert list(dict.fromkeys(one.model for one in found)) == ["a", "b", "good", "bad", "far"]
    assert found[-1].value == 200


def test_a_score_that_is_no_number_ranks_last():
    rows = [*ROWS, row("nan", "one", float("nan")), row("nan", "two", 1.0, higher=False)]
    assert league(rows, ("a", "b"))[-1].model == "nan"


@pytest.fixture
def recipe(tmp_path):
    data = yaml.safe_load((QUICKSTART / "compare.yaml").read_text())
    data["models"] = {label: str(QUICKSTART / path) for label, path in data["models"].items()}
    data["compare"] = {name: data["compare"][name] for name in ("linear", "task_arithmetic_lines")}
    data["evaluate"] = data["evaluate"][3:4]
    data["evaluate"][0]["data"] = str(QUICKSTART / "heldout" / "arithmetic_text.jsonl")

    def write(**changes):
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump({**data, **changes}))
        return tmp_path / "compare.yaml"

    return write


def test_a_comparison_prints_every_input_and_merge_and_keeps_nothing(recipe, capsys):
    file = recipe()
    said = command(capsys, "run", file, "--json")
    found = json.loads(said.out)
    models = dict.fromkeys(one["model"] for one in found["results"])
    differing = {one["model"] for one in found["differences"]}
    assert differing == {"german", "python", "arithmetic", "linear", "task_arithmetic_lines"}
    assert set(models) == {
        "base",
        "german",
        "python",
        "arithmetic",
        "linear",
        "task_arithmetic_lines",
    }
    assert [path.name for path in file.parent.iterdir()] == ["compare.yaml"]


@pytest.mark.parametrize(
    ("changes", "out", "words"),
    [({"evaluate": []}, None, "something to score"), ({}, "merged", "keeps no model")],
)
def test_a_comparison_that_makes_no_sense_is_refused(recipe, tmp_path, changes, out, words):
    prepared = prepare(recipe(**changes), out=tmp_path / out if out else None)
    with pytest.raises(InputError, match=words):
        compare(prepared, notice=print)


def test_the_quickstart_compares_every_method_and_post_step():
    data = yaml.safe_load((QUICKSTART / "compare.yaml").read_text())
    used = {merge["method"] for merge in data["compare"].values()}
    assert {"passthrough"} | used == set(method_names())
    posts = {step for merge in data["compare"].values() for step in merge.get("then", [])}
    assert posts == set(post_step_names())
    assert all(load_method(name).summary for name in used)
