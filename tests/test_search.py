"""A search from its recipe to the merged checkpoint, on the quickstart's models."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import optuna
import pytest
import yaml
from command_line import command
from safetensors.torch import load_file
from torch import equal
from toy_search import quick_workers, row

from mergepipe.cli import main
from mergepipe.errors import InputError, Problems
from mergepipe.evaluate import Formula, Item, ScoreRow, differences
from mergepipe.pipeline import prepare, search_folder
from mergepipe.pipeline.preparing import read_recipe
from mergepipe.search.objective import Objective, main_rows, with_best
from mergepipe.search.outputs import read_trials
from mergepipe.search.plots import draw
from mergepipe.search.space import read_space
from mergepipe.search.verdict import gain, overfit


@pytest.fixture(scope="module", autouse=True)
def _quick_workers():
    with quick_workers("mergepipe.pipeline.candidates", "mergepipe.model.load"):
        yield


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
        patch.chdir(folder)
        said = _said(written(folder).name, folder / "plot.html")
    return folder, said


def _said(recipe, plot):
    words = ["search", recipe, "--workers", 1, "--threads", 1, "--plot", plot, "--json"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr("sys.argv", ["mergepipe", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return json.loads(out.getvalue())


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
    assert yaml.safe_load(best.read_text())["output"]["path"] == str(folder / "merged")
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


def test_each_plot_is_an_svg_too(done):
    folder = done[0] / "merged.search" / "plots"
    names = ["history.svg", "importance.svg", "parallel.svg"]
    assert sorted(file.name for file in folder.iterdir()) == names
    for name in names:
        root = ET.fromstring((folder / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.find("{http://www.w3.org/2000/svg}polyline") is not None


def test_a_png_is_drawn_where_one_is_asked_for(done, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    trials = (done[0] / "merged.search" / "trials.json").read_text()
    draw(tmp_path / "plot.png", *read_trials(trials))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.get_backend()


FRONT = {
    "models": {label: str(QUICKSTART / label) for label in ("german", "arithmetic")},
    "merge": {
        "method": "slerp",
        "base": "german",
        "models": ["arithmetic"],
        "t": {"search": [0, 1]},
    },
    "evaluate": [
        {
            "use": "bits_per_byte",
            "name": name,
            "data": str(QUICKSTART / "heldout" / f"{file}.jsonl"),
            "limit": 4,
        }
        for name, file in (("german", "german"), ("sums", "arithmetic_text"))
    ],
    "search": {"optimizer": "TwoPointsDE", "budget": 8, "pareto": ["german", "sums"]},
}


def test_skills_that_conflict_give_a_front_of_trade_offs(tmp_path, capsys):
    """More of the one is less of the other; no member of the front is worse in both than any."""
    recipe = written(tmp_path, **FRONT)
    said = command(capsys, "search", recipe, "--workers", 1, "--no-merge", "--no-cache")
    assert said.status == 0, said.err
    folder = tmp_path / "merged.search"
    _, names, trials = read_trials((folder / "trials.json").read_text())
    _, _, front = read_trials((folder / "front" / "front.json").read_text())
    assert names == ("german", "sums")
    assert len(front) > 2
    ordered = sorted(front, key=lambda one: one.losses)
    assert [one.losses[1] for one in ordered] == sorted((o.losses[1] for o in front), reverse=True)
    assert ordered[0].values < ordered[-1].values  # from german, t = 0, to arithmetic, t = 1
    for other in trials:
        assert not any(worse(one, other) for one in front)
    recipes = sorted((folder / "front").glob("*.yaml"))
    assert [int(file.stem) for file in recipes] == sorted(one.number for one in front)
    for file, one in zip(recipes, sorted(front, key=lambda one: one.number), strict=True):
        assert yaml.safe_load(file.read_text())["merge"]["t"] == one.values[0]
    with (folder / "front" / "front.csv").open(newline="") as file:
        assert [int(row["trial"]) for row in csv.DictReader(file)] == [o.number for o in front]
    drawn = (folder / "plots" / "front.svg").read_text()
    assert drawn.count("#c2410c") == len(front)
    assert {"history-1.svg", "history-2.svg"} < {f.name for f in (folder / "plots").iterdir()}


def worse(one, other):
    return all(x > y for x, y in zip(one.losses, other.losses, strict=True))


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


def test_what_would_fail_with_every_candidate_is_said_before_the_first(tmp_path, capsys):
    evaluate = [EVALUATION | {"split": {"search": 150, "holdout": 100}}]
    words = ("--workers", 1, "--no-merge", "--no-cache")
    said = command(capsys, "search", written(tmp_path, evaluate=evaluate), *words)
    assert said.status == 2
    assert said.err.count("needs 251 or more, but there are 200") == 1
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'merged.search/trials.db'}")
    assert study.n_trials == 0
    assert not study.user_attrs  # so that the recipe, once it is mended, is no other search


@pytest.mark.parametrize("name", ["search", "plan"])
def test_a_search_without_its_packages_says_how_to_install_them(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("mergepipe.search.optimizer.find_spec", lambda _: None)
    said = command(capsys, name, written(tmp_path))
    assert said.status == 3
    assert "nevergrad and optuna" in said.err
    assert "pip install 'mergepipe[search]'" in said.err


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
shuffle: true
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
    assert document.data["search"]["preset"] == "mergekit-evolve"
    assert len(space.genes) == 3 * 2 * 2 * 2
    assert {gene.start for gene in space.genes} == {0.5, 1.0}
    prepared = prepare(tmp_path / "evolve.yaml", out=tmp_path / "out")
    assert prepared.recipe.search.weights == {"my_task": 0.5, "other": 1.0}
    assert [one.name for one in prepared.evaluations] == ["my_task", "other"]
    for words in ("first metric", "without a chat template", "shuffle: has no effect"):
        assert any(words in warning for warning in prepared.warnings), words


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "task_arithmetic"])
def test_what_mergekit_evolve_merges_is_what_mergekit_merges(method, tmp_path):
    for label in ("base", "german", "python"):
        (tmp_path / label).symlink_to(QUICKSTART / label)
    models = ["./german", "./python"]
    genome = {"models": models, "merge_method": method, "base_model": "./base"}
    evolve = {"genome": genome, "tasks": ["my_task"]}
    normal = method in {"ties", "dare_ties"}  # so mergekit-evolve has it
    plain = {
        "models": [{"model": one, "parameters": {"weight": 0.5}} for one in models],
        "merge_method": method,
        "base_model": "./base",
        "parameters": {"normalize": normal},
    }
    shared = []
    for name, data in (("evolve", evolve), ("plain", plain)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
        plan = prepare(tmp_path / f"{name}.yaml", out=tmp_path / name).plans[-1]
        shared.append(plan.steps[0].shared)
    assert shared[0] == shared[1]


TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""
THEIRS = """\
genome:
  models: [./german, ./arithmetic]
  merge_method: ties
  base_model: ./base
  tokenizer_source: base
  layer_granularity: 2
tasks: [{name: sums, weight: 1.0, metric: "acc,none"}]
limit: 20
apply_chat_template: false
"""


@pytest.mark.slow
def test_a_configuration_of_mergekit_evolve_runs_as_it_is(tmp_path, capsys):
    """Its tasks by lm-evaluation-harness, to a merged and scored checkpoint."""
    for label in ("base", "german", "arithmetic"):
        (tmp_path / label).symlink_to(QUICKSTART / label)
    lines = (QUICKSTART / "heldout" / "arithmetic.jsonl").read_text().splitlines()[:20]
    sums = [(one["prompt"], int(one["answer"])) for one in map(json.loads, lines)]
    items = [{"q": q, "choices": [str(a), str(a + 1), str(a + 10)]} for q, a in sums]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK)
    (tmp_path / "evolve.yml").write_text(THEIRS)
    words = ("--out", tmp_path / "out", "--set", f"task_search_path={tmp_path / 'tasks'}")
    more = ("--budget", 5, "--workers", 1, "--allow-commands", "--no-cache", "--json")
    said = command(capsys, "search", tmp_path / "evolve.yml", *words, *more)
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert (found["search"]["trials"], found["search"]["failed"]) == (5, 0)
    assert len(found["search"]["values"]) == 3 * 2 * 2  # groups of layers, models, parameters
    merged = [one for one in found["results"] if one["model"] == "merged"]
    assert [one["value"] for one in merged] == [found["search"]["scores"]["sums"]]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_main_rows_keep_the_order_of_the_evaluations():
    assert list(main_rows([UP, row(9, name="up"), DOWN])) == ["up", "down"]
