"""What merges keep of their specialists: hand-worked values, and the suite on a real model."""

from __future__ import annotations

import doctest
import math
from dataclasses import dataclass, field, replace
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from test_evaluators import context, faults, write

from mergepipe.errors import InputError
from mergepipe.evaluate import (
    Failure,
    ScoreRow,
    Split,
    Unscored,
    find_evaluator,
    markdown,
    page,
    table,
)
from mergepipe.evaluate.cache import key_of
from mergepipe.evaluate.retention import Suite, retention
from mergepipe.model import Generation, Usage

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"


def row(model, evaluation, value, *, up=True, metric="main"):
    return ScoreRow(model, evaluation, "e", metric, value, "u", up, 1, ())


# base 0.2, math 0.8, merged 0.6; attacks succeed 50 %, 20 %, 40 %; bits 1.5, 2.0, 1.875.
ROWS = [
    row(model, name, value, up=name == "maths")
    for model, values in {
        "base": {"maths": 0.2, "attacks": 0.5, "bits": 1.5},
        "expert": {"maths": 0.8, "attacks": 0.2, "bits": 2.0},
        "merged": {"maths": 0.6, "attacks": 0.4, "bits": 1.875},
    }.items()
    for name, value in values.items()
]
DOMAINS = {"maths": "expert", "attacks": 0.2}


def derived(rows, suite, model="merged"):
    found = retention(rows, suite)
    return {one.metric: one.value for one in found if one.model == model and one.evaluator != "e"}


def mains(rows, suite, model="merged"):
    """What stands for a model as a whole; the parts of it have other names."""
    whole = ("retained", "forgotten", "average")
    return {name: one for name, one in derived(rows, suite, model).items() if name in whole}


def test_retention_is_the_mean_part_of_the_specialists_scores():
    suite = Suite(DOMAINS, {"bits": "base"}, rates={"attacks"})
    expected = {"retained": 75.0, "forgotten": 20.0, "average": 0.6}  # (0.6 + 0.6) / 2
    assert mains(ROWS, suite) == pytest.approx(expected)  # 0.6/0.8, 0.6/0.8; 1 − 1.5/1.875
    assert derived(ROWS, suite, "base")["forgotten"] == 0
    assert derived(ROWS, suite, "expert")["retained"] == pytest.approx(100)


def test_what_is_no_rate_has_no_average_and_is_the_references_over_the_score():
    found = mains(ROWS, Suite({"maths": 0.8, "bits": 1.5}))
    assert found == pytest.approx({"retained": 100 * (0.75 + 0.8) / 2})


def test_every_part_is_told_by_itself_and_against_whom():
    rows = retention(ROWS, Suite(DOMAINS, {"bits": "base"}, rates={"attacks"}))
    found = {
        (one.evaluation, one.metric): (one.value, one.unit)
        for one in rows
        if one.model == "merged" and one.evaluator != "e"
    }
    assert list(found)[:3] == [
        ("retained", "retained"),
        ("retained", "maths"),
        ("retained", "attacks"),
    ]
    assert found["retained", "maths"] == (pytest.approx(75), "% of expert")
    assert found["retained", "attacks"] == (pytest.approx(75), "% of 0.2")
    assert found["forgotten", "bits"] == (pytest.approx(20), "% below base")


def test_what_describes_keeps_nothing():
    rows = [replace(one, higher_is_better=None) for one in ROWS]
    assert math.isnan(derived(rows, Suite({"maths": 0.8}))["retained"])


def test_tables_show_it_below_the_scores():
    rows = retention(ROWS, Suite(DOMAINS, {"bits": "base"}, rates={"attacks"}))
    text = markdown(rows)
    assert "retained" not in text.splitlines()[0]
    assert "| merged | 75.0 | 75.0 | 75.0 | 20.0 | 20.0 | 0.600 |" in text
    assert "<h2>Kept and forgotten</h2>" in page(rows)
    console = Console(width=120, file=StringIO())
    console.print(table(rows))
    assert "% of expert" in console.file.getvalue()


def test_an_evaluation_that_failed_for_all_is_no_fault_of_the_suite():
    failed = [Failure(model, "maths", "e", "down") for model in ("base", "expert", "merged")]
    rows = [one for one in ROWS if one.evaluation != "maths"]
    found = retention(rows, Suite({"maths": "expert"}), failed)
    assert math.isnan(next(one.value for one in found if one.metric == "retained"))


def test_only_main_metrics_count_and_all_rows_stay():
    more = [*ROWS, row("merged", "maths", 0.1, metric="other")]
    suite = Suite({"maths": 0.8})
    assert derived(more, suite) == derived(ROWS, suite)
    assert [one for one in retention(more, suite) if one.model == "merged"][:4] == [
        one for one in more if one.model == "merged"
    ]


@pytest.mark.parametrize("failed", ["merged", "expert"])
def test_an_evaluation_that_failed_makes_its_models_number_nan(failed):
    rows = [one for one in ROWS if (one.model, one.evaluation) != (failed, "maths")]
    assert math.isnan(derived(rows, Suite({"maths": "expert"}))["retained"])


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (Suite({"math": 0.5}), "no evaluation is named 'math'; did you mean 'maths'"),
        (Suite({"maths": "exprt"}), "maths: no model is named 'exprt'; did you mean 'expert'"),
    ],
)
def test_a_suite_of_what_was_not_scored_is_refused(suite, said):
    with pytest.raises(InputError, match=said):
        retention(ROWS, suite)


def test_the_examples_in_docstrings_hold():
    found = doctest.testmod(import_module("mergepipe.evaluate.retention"))
    assert found.attempted == 3
    assert not found.failed


# The suite


@dataclass
class Says:
    """A model that writes what it is told."""

    texts: dict
    name: str = "says"
    fingerprint: str = "f"
    abilities: frozenset = frozenset({"generate"})
    usage: Usage = field(default_factory=Usage)

    def generate(self, prompts, **_):
        return [Generation(self.texts[prompt], 1) for prompt in prompts]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": f"a{n}", "answer": "x"} for n in range(4)])
    write(tmp_path / "b.jsonl", [{"prompt": f"b{n}", "answer": "x"} for n in range(2)])
    return tmp_path


def exact(file, **more):
    return {"use": "exact_match", "data": file, **more}


def test_the_suite_by_hand(folder):
    model = Says({"a0": "x", "a1": "x", "a2": "x", "a3": "y", "b0": "x", "b1": "y"})
    given = {
        "domains": {"a": exact("a.jsonl", specialist=1.0), "b": exact("b.jsonl", specialist=0.8)},
        "general": {"g": exact("b.jsonl", base=0.625)},
    }
    result = find_evaluator("mergebench").evaluate(model, context("mergebench", folder, **given))
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values == pytest.approx(
        {
            "retained": 100 * (0.75 / 1 + 0.5 / 0.8) / 2,
            "forgotten": 100 * (1 - 0.5 / 0.625),
            "average": 0.625,
            "a": 0.75,
            "b": 0.5,
            "g": 0.5,
            "a kept": 75.0,
            "b kept": 62.5,
            "g kept": 80.0,
        }
    )
    errors = 0.25, math.sqrt(0.5**2 * 2 / 1 / 2) / 0.8  # s / √n, over the reference
    expected = 100 * math.hypot(*errors) / 2
    assert result.metrics["retained"].stderr == pytest.approx(expected)
    assert [item.id for item in result.items] == [
        "a/1",
        "a/2",
        "a/3",
        "a/4",
        "b/1",
        "b/2",
        "g/1",
        "g/2",
    ]
    assert result.metrics["b"].formula.of(
        result.metrics["b"].formula.sums(result.items).sum(axis=0)
    ) == pytest.approx(0.5)


def test_the_suite_on_real_models_is_what_the_derivation_gives():
    from mergepipe.pipeline.late import LateModel

    sums, german = "heldout/arithmetic.jsonl", "heldout/german.jsonl"
    parts = {
        "sums": exact(sums, specialist=0.98),
        "german": {"use": "bits_per_byte", "data": german, "specialist": 1.7954982568984817},
    }
    asked = replace(context("mergebench", QUICKSTART, domains=parts), limit=12)
    model = LateModel(QUICKSTART / "base", "base")
    found = find_evaluator("mergebench").evaluate(model, asked)
    rows = [
        row("base", name, found.metrics[name].value, up=found.metrics[name].higher_is_better)
        for name in parts
    ]
    suite = Suite({name: part["specialist"] for name, part in parts.items()})
    assert derived(rows, suite, "base")["retained"] == found.metrics["retained"].value
    assert "average" not in found.metrics  # bits per byte are no score of which higher is better


def test_a_split_divides_every_evaluation(folder):
    write(folder / "long.jsonl", [{"prompt": f"a{n}", "answer": "x"} for n in range(8)])
    model = Says({f"a{n}": "x" for n in range(8)})
    parts = {name: exact("long.jsonl", specialist=1.0) for name in "ab"}
    asked = context("mergebench", folder, domains=parts)
    asked = replace(asked, split=Split(3, 2), part="search")
    found = find_evaluator("mergebench").evaluate(model, asked)
    assert len(found.items) == 6


def test_what_a_judge_could_not_score_stays_unscored(folder, monkeypatch):
    evaluator = find_evaluator("exact_match")
    part = find_evaluator("mergebench").parameters.model_validate(
        {"domains": {"a": exact("a.jsonl", specialist=1.0)}}, context={"base_dir": folder}
    )

    def partly(model, given):
        result = evaluator.evaluate(model, given)
        return replace(result, unscored=(Unscored("9", "down"),))

    monkeypatch.setattr(
        type(part.domains["a"]),
        "evaluator",
        property(lambda _: replace(evaluator, evaluate=partly)),
    )
    asked = replace(context("mergebench", folder, domains={"a": exact("a.jsonl", specialist=1.0)}))
    model = Says({f"a{n}": "x" for n in range(4)})
    assert find_evaluator("mergebench").evaluate(model, asked).unscored == (
        Unscored("a/9", "down"),
    )


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (exact("a.jsonl"), "parameter 'domains.a.specialist' is missing"),
        (exact("none.jsonl", specialist=1.0), "data: there is no file"),
        (exact("a.jsonl", specialist=1.0, max_token=3), "max_token: Extra inputs"),
        (exact("a.jsonl", specialist=1.0, rate=True), "a rate of 1 leaves nothing to keep"),
        ({"use": "exact_mach", "specialist": 1.0}, "did you mean 'exact_match'"),
        ({"use": "mergebench", "specialist": 1.0}, "a suite in a suite"),
    ],
)
def test_parts_are_checked_as_evaluations_are(folder, part, said):
    assert said in faults("mergebench", folder, domains={"a": part})


def test_a_metric_that_is_not_there_is_named(folder):
    part = exact("a.jsonl", specialist=1.0, metric="acc")
    asked = context("mergebench", folder, domains={"a": part})
    with pytest.raises(InputError, match="exact_match gives no metric 'acc'"):
        find_evaluator("mergebench").evaluate(Says({f"a{n}": "x" for n in range(4)}), asked)


def test_the_key_of_a_result_knows_files_of_parts_and_some_are_not_kept(folder):
    evaluator = find_evaluator("mergebench")

    def key(**part):
        given = {"a": {**exact("a.jsonl", specialist=1.0), **part}}
        parameters = context("mergebench", folder, domains=given).parameters
        return key_of(evaluator, parameters, folder, fingerprint="f")

    before = key()
    assert key() == before
    assert key(max_tokens=3) != before
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"prompt": "more", "answer": "y"}\n')
    assert key() != before
    speed = context("mergebench", folder, domains={"s": {"use": "speed", "specialist": 1.0}})
    assert key_of(evaluator, speed.parameters, folder, fingerprint="f") == ""
