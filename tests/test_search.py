"""A search from its recipe to the merged checkpoint, on the quickstart's models."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from command_line import command
from safetensors.torch import load_file
from torch import equal
from toy_search import row

from mergepipe.errors import InputError, Problems
from mergepipe.evaluate import Formula, Item, ScoreRow, differences
from mergepipe.pipeline import prepare, search_folder
from mergepipe.pipeline.preparing import read_recipe
from mergepipe.search.objective import Objective, main_rows, with_best
from mergepipe.search.space import read_space
from mergepipe.search.verdict import gain, overfit

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
SEARCHED = {"search": [0, 1], "init": 0.1}
EVALUATION = {
    "use": "bits_per_byte",
    "name": "sums",
    "data": str(QUICKSTART / "heldout" / "arithmetic_text.jsonl"),
    "split": {"search": 12, "holdout": 8, "seed": 1},
}


def written(folder, **changes):
    data = {
        "mergepipe": 1,
        "models": {label: str(QUICKSTART / label) for label in ("base", "arithmetic")},
        "merge": {
            "method": "task_arithmetic",
            "base": "base",
            "models": {"arithmetic": {"weight": SEARCHED}},
        },
        "evaluate": [EVALUATION],
        "search": {"optimizer": "CMA", "budget": 5, "finalists": 2},
        "output": {"path": "./merged"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data | changes, sort_keys=False))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished search: its folder, and what the command said."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEPIPE_CACHE", str(folder / "cache.db"))
        said = _said(written(folder), folder / "plot.html")
    return folder, said


def _said(recipe, plot):
    words = ["search", str(recipe), "--workers", "1", "--threads", "1", "--plot", str(plot)]
    code = "from mergepipe.cli import main; main()"
    run = [sys.executable, "-c", code, *words, "--json"]
    found = subprocess.run(run, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_search_finds_that_more_of_an_expert_is_better_at_its_skill(done):
    _, said = done
    found = said["search"]
    assert (found["trials"], found["failed"]) == (5, 0)
    assert found["values"]["merge.models.arithmetic.weight"] > 0.1
    gains = {one["over"]: one for one in found["gains"]}
    assert gains["the untuned merge"]["real"]
    assert gains["the untuned merge"]["part"] == "final"
    assert gains["the untuned merge"]["n"] == 200 - 12 - 8
    assert found["best_input"] == "arithmetic"
    assert found["spread"] is None


def test_the_best_recipe_runs_by_itself_to_the_same_bytes(done, tmp_path, capsys):
    folder, _ = done
    best = folder / "merged.search" / "best.yaml"
    said = command(capsys, "run", best, "--out", tmp_path / "again")
    assert said.status == 0, said.err
    first, second = (
        load_file(path / "model.safetensors") for path in (folder / "merged", tmp_path / "again")
    )
    assert list(first) == list(second)
    assert all(equal(first[name], second[name]) for name in first)


def test_trials_are_there_as_csv_json_and_in_the_study(done):
    folder = done[0] / "merged.search"
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    plain = json.loads((folder / "trials.json").read_text())["trials"]
    assert [int(one["trial"]) for one in rows] == [one["number"] for one in plain] == [*range(5)]
    assert rows[0]["merge.models.arithmetic.weight"] == "0.1"
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder / 'trials.db'}")
    assert study.n_trials == 5
    assert study.best_trial.value == min(float(one["loss"]) for one in rows)


def test_the_plots_are_a_page_that_asks_for_nothing(done):
    page = (done[0] / "plot.html").read_text()
    assert page.count("<figure>") == 3
    assert "default-src 'none'" in page
    assert "src=" not in page.replace("default-src", "")


def test_the_same_search_again_evaluates_nothing_and_another_is_refused(done, capsys):
    folder, _ = done
    log = (folder / "merged.search" / "trials.json").read_text()
    words = ("--workers", 1, "--no-merge", "--overwrite", "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEPIPE_CACHE", str(folder / "cache.db"))
        other = command(capsys, "search", folder / "recipe.yaml", *words, "--set", "search.seed=1")
        assert other.status == 2
        assert "search.seed was 0, is 1" in other.err
        same = command(capsys, "search", folder / "recipe.yaml", *words)
    assert same.status == 0, same.err
    assert (folder / "merged.search" / "trials.json").read_text() == log


def test_an_output_that_exists_is_refused_before_the_search(done, capsys):
    said = command(capsys, "run", done[0] / "recipe.yaml")
    assert said.status == 2
    assert "exists" in said.err


FAULTS = [
    ({"search": {"budget": 0}}, "greater than or equal to 1"),
    ({"search": {"objective": ["sum"]}}, "did you mean 'sums'"),
    ({"search": {"objective": ["sums"], "minimize": ["sums"]}}, "say the same thing"),
    ({"search": {"pareto": ["sums"]}}, "two evaluations or more"),
    ({"search": {"scale": "log"}}, "search.scale"),
    ({"search": {"optimiser": "CMA"}}, "did you mean 'optimizer'"),
    ({"evaluate": []}, "something to score on"),
    ({"search": None}, "has no `search:` section"),
]


@pytest.mark.parametrize(("changes", "words"), FAULTS)
def test_a_search_that_makes_no_sense_is_refused_before_it_begins(changes, words, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(written(tmp_path, **changes))
    assert words in str(caught.value)


def test_a_range_that_the_method_does_not_take_is_refused_where_it_stands(tmp_path, capsys):
    merge = {
        "method": "ties",
        "base": "base",
        "models": {"arithmetic": {"density": {"search": [0.1, 2], "init": 0.5}}},
    }
    said = command(capsys, "search", written(tmp_path, merge=merge))
    assert said.status == 2
    assert "recipe.yaml:10:7: merge.models.arithmetic.density: not all of the range" in said.err
    assert not search_folder(tmp_path / "merged").exists()


def test_recipes_without_a_search_section_cannot_be_searched(capsys):
    said = command(capsys, "search", QUICKSTART / "recipe.yaml", "--out", "/tmp/nowhere")
    assert said.status == 2
    assert "has no `search:` section" in said.err


def test_a_plan_of_a_searched_recipe_is_that_of_the_untuned_merge(tmp_path):
    prepared = prepare(written(tmp_path))
    step = prepared.plans[-1].steps[0]
    assert step.each[0].model_dump()["weight"] == 0.1


def losses(objective, values, numbers=()):
    return objective.losses(values, numbers)


UP, DOWN = row(0.5, name="up", higher=True), row(2.0, name="down")


def test_which_way_is_up_the_evaluations_say():
    rows = {"up": UP, "down": DOWN}
    assert losses(Objective({"up": 1.0}), rows) == (-0.5,)
    assert losses(Objective({"down": 1.0, "up": 3.0}), rows) == ((2.0 - 3 * 0.5) / 4,)
    assert losses(Objective({"up": 1, "down": 1}, is_front=True), rows) == (-0.5, 2.0)
    assert losses(Objective({"down": 1.0}, penalty=0.05), rows, (-1.0, 3, "word")) == (2.1,)


def test_relative_losses_are_shares_of_the_best_input():
    inputs = [
        {"up": row(0.8, name="up", higher=True), "down": row(1.6, name="down")},
        {"up": row(0.4, name="up", higher=True), "down": row(1.0, name="down")},
    ]
    objective = with_best(Objective({"up": 1.0, "down": 1.0}, is_relative=True), inputs)
    rows = {"up": UP, "down": DOWN}
    assert losses(objective, rows) == pytest.approx(((1 - 0.5 / 0.8 + 2.0 / 1.0 - 1) / 2,))


def test_different_units_are_not_added_up():
    other = ScoreRow("m", "up", "toy", "acc", 0.5, "correct", True, 4, ())
    with pytest.raises(InputError, match="say `scale: relative`"):
        losses(Objective({"up": 1.0, "down": 1.0}), {"up": other, "down": DOWN})


def test_a_gain_has_the_interval_that_eval_gives_the_same_difference():
    draw = np.random.default_rng(0)

    def noisy(model, shift):
        items = tuple(
            Item(str(i), {"x": float(v) + shift}) for i, v in enumerate(draw.normal(size=40))
        )
        value = sum(one.values["x"] for one in items) / 40
        return ScoreRow(model, "e", "toy", "x", value, "u", False, 40, items, None, Formula("x"))

    ours, theirs = noisy("ours", 0.0), noisy("theirs", 0.5)
    found = gain(Objective({"e": 1.0}), {"e": ours}, {"e": theirs}, over="theirs", part="final")
    (difference,) = differences([theirs, ours], "theirs")
    assert (found.value, found.low, found.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low)
    )


def test_a_gain_that_is_only_there_on_searched_items_is_over_fitting():
    objective = Objective({"bowl": 1.0})
    start, tuned = row(2.0, items=50), row(1.0, items=50)

    noise = [Item(one.id, {"loss": 2 + (int(one.id) % 7) / 50}) for one in start.items]
    noisy = replace(start, items=tuple(noise))
    searched = ({"bowl": tuned}, {"bowl": start})
    held = ({"bowl": noisy}, {"bowl": start})
    gap, is_overfit = overfit(objective, searched, held)
    assert gap[0] == pytest.approx(1.0, abs=0.1)
    assert is_overfit
    same = overfit(objective, searched, searched)
    assert same is not None
    assert not same[1]


EVOLVE = """\
genome:
  models: [./german, ./python]
  merge_method: dare_ties
  base_model: ./base
  tokenizer_source: base
  layer_granularity: 2
  normalize: false
  filters: [self_attn]
tasks:
  - {name: my_task, weight: 0.5}
  - {name: other, metric: "acc_norm,none"}
limit: 20
"""


def test_a_configuration_of_mergekit_evolve_is_the_search_that_it_means(tmp_path):
    for label in ("base", "german", "python"):
        (tmp_path / label).symlink_to(QUICKSTART / label)
    (tmp_path / "evolve.yaml").write_text(EVOLVE)
    problems = Problems()
    document = read_recipe(tmp_path / "evolve.yaml", problems)
    space = read_space(document, 5, problems)
    problems.raise_any()
    # 3 groups of layers x 2 models x (1 filter and the rest) x (weight, density)
    assert len(space.genes) == 3 * 2 * 2 * 2
    assert {gene.start for gene in space.genes} == {0.5, 1.0}
    prepared = prepare(tmp_path / "evolve.yaml", out=tmp_path / "out")
    assert prepared.recipe.search.weights == {"my_task": 0.5, "other": 1.0}
    assert [one.name for one in prepared.evaluations] == ["my_task", "other"]
    assert any("first metric" in warning for warning in prepared.warnings)


def test_main_rows_keep_the_order_of_the_evaluations():
    assert list(main_rows([UP, row(9, name="up"), DOWN])) == ["up", "down"]
