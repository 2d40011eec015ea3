"""A run as one page: what it says is what the run left, and nothing in it is anything but data."""

from __future__ import annotations

import doctest
import json
import math
import shutil
import subprocess
import sys

import merges
import mixtures
import pytest
import reported
from command_line import command
from reported import GRADIENTS, Elements, edited, page_file, page_of, scored
from test_plugins import OURS

from mergepipe.checkpoint import layer_of
from mergepipe.errors import InputError
from mergepipe.evaluate import Item, ScoreRow, differences, read_results, results_jsonl
from mergepipe.inspect import inspect, model_numbers, open_inputs, pair_numbers
from mergepipe.manifest import MANIFEST_FILE, MEASURED_FILE, RUN_FILE
from mergepipe.pipeline import merge, prepare
from mergepipe.pipeline.reporting import report
from mergepipe.report import paths, stages
from mergepipe.report.charts import scales
from mergepipe.verify import verify

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>]]>"
PARTS = "<script", "<img", "onerror=alert(1)>", "</title>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with scores, which no test changes."""
    folder = merges.write_models(tmp_path_factory.mktemp("made"))
    result = reported.run(folder, GRADIENTS)
    scored(result, failures=[reported.failure()])
    return result


@pytest.fixture
def copied(made, tmp_path):
    """A copy of that run and of its models."""
    shutil.copytree(made.parent, tmp_path / "here")
    return tmp_path / "here" / made.name


@pytest.fixture(scope="module")
def page(made):
    return page_of(made)


# What it says.


def test_scores_come_back_from_their_file_as_they_were():
    found = [*reported.rows(), reported.row("c", "x", 1.0, value=math.inf)]
    found.append(ScoreRow("d", "y", "u", "m", 1.5, "", True, 1, (Item("1", {"v": 1.5}, "c"),)))
    back = read_results(results_jsonl(found, [reported.failure()]))
    assert back.rows[:-2] == tuple(found[:-2])
    assert math.isnan(back.rows[-2].value)
    assert back.rows[-1] == found[-1]
    assert back.failures[0].reason == reported.failure().reason
    assert differences(back.rows, "base") == differences(found, "base")


def test_every_score_and_difference_is_on_the_page(page):
    found, words = reported.rows(), Elements(page).words
    for row in found:
        assert f"{row.value:.3f}" in words
    for one in differences(found, "base"):
        assert f"{one.value:+.4f}".replace("-", "−") in words


def test_the_first_words_are_the_result(page):
    result = page.partition('id="result"')[2]
    words = Elements(result.partition("<svg")[0]).words
    average = sum(r.value for r in reported.rows() if r.model == "merged") / 2
    assert f"averages {average:.3f} bits/byte , ahead of the best input" in words
    assert "better on english and german than base" in words


def test_coefficients_are_those_of_the_plan(made):
    plan = prepare(made.parent / "recipe.yaml").plans[-1]
    (stage,) = stages.stages_of(
        prepare(made.parent / "recipe.yaml").recipe, [step.name for step in plan.steps]
    )
    (weights,) = stage.coefficients
    checked = 0
    for step in plan.steps:
        layer, kind = layer_of(step.name), step.name.split(".")[-2]
        if step.method != "task_arithmetic" or layer is None:
            continue
        curves = next(found for name, found in weights.curves.items() if name.endswith(kind))
        for one, parameters in zip(step.inputs, step.each, strict=True):
            assert dict(curves[one.label])[layer[1]] == pytest.approx(parameters.weight)
            checked += 1
    assert checked == 28  # seven matrices of two layers, two models


def test_task_vectors_are_those_that_inspect_finds(made, page):
    names = [str(made.parent / name) for name in ("base", "a", "b")]
    found = inspect(open_inputs(names))
    kept = json.loads((made / MEASURED_FILE).read_text())["maps"]
    assert kept["totals"]["a"] == model_numbers(found.total, 0).relative_norm
    conflict = pair_numbers(found.total, 0, 1).conflict
    assert kept["pairs"][0]["total_conflict"] == conflict
    assert f"{100 * conflict:.1f} % on the whole" in Elements(page).words


def test_the_run_says_how_long_it_took_and_not_in_the_manifest(made, page):
    record = json.loads((made / RUN_FILE).read_text())
    assert [one["what"] for one in record["parts"]] == ["merge", "tokenizer and settings"]
    assert all(one["seconds"] > 0 for one in record["parts"])
    assert record["peak_bytes"] > 10_000_000
    assert record["recipe_folder"] == ".."
    assert RUN_FILE not in (made / MANIFEST_FILE).read_text()
    assert record["started"][:10] in Elements(page).words


def test_models_that_the_recipe_names_by_absolute_paths_are_found_again(tmp_path):
    (tmp_path / "models").mkdir()
    models = merges.write_models(tmp_path / "models")
    named = {label: str(models / label) for label in ("base", "a", "b")}
    (tmp_path / "elsewhere").mkdir()
    result = reported.run(tmp_path / "elsewhere", models=named)
    assert "./base" in (result / MANIFEST_FILE).read_text()
    assert report(result).missing == ()
    assert "not measured" not in Elements(page_file(result).read_text()).words


def test_a_run_with_a_plugin_is_reported_with_it(tmp_path, capsys):
    merges.write_models(tmp_path)
    plugin = tmp_path / "first_model.py"
    plugin.write_text(OURS)
    spec = {"method": "first_model", "models": {"a": {}, "b": {}}}
    recipe = {"mergepipe": 1, "models": {"a": "./a", "b": "./b"}, "merge": spec}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out, given = tmp_path / "out", ("--plugin", plugin)
    words = [sys.executable, "-m", "mergepipe", "run", tmp_path / "recipe.yaml", *given]
    subprocess.run([*words, "--out", out], check=True, capture_output=True)
    said = command(capsys, "report", out)
    assert "run with --plugin first_model.py" in said.err
    said = command(capsys, "report", out, *given)
    assert (said.status, said.err) == (0, "")
    assert "reproduce out --inputs FOLDER-OF-THE-MODELS --plugin first_model.py" in page_of(out)
    plugin.write_text(OURS + "#")
    said = command(capsys, "report", out, *given)
    assert "is not the one that was used" in said.err


def test_a_mixture_of_experts_has_no_task_vectors_to_look_for(tmp_path):
    mixtures.family(tmp_path)
    result = merge(mixtures.prepared(tmp_path)).folder
    assert report(result).missing == ()
    assert "A mixture of experts has no task vectors." in page_file(result).read_text()


def test_the_folder_of_a_search_is_named_where_there_is_no_result(tmp_path, capsys):
    (tmp_path / "mix.search").mkdir()
    (tmp_path / "mix.search" / "trials.json").touch()
    said = command(capsys, "report", tmp_path / "mix")
    assert said.status == 2
    assert f"did you mean {tmp_path / 'mix.search'}?" in said.err


def test_verify_knows_what_lies_beside_a_checkpoint(copied):
    page_of(copied)
    found = verify(copied)
    assert (found.differences, found.extra) == ((), ())


def test_a_failed_evaluation_is_shown_with_its_reason(page):
    assert "the judge did not answer" in Elements(page).words
    assert ">failed</text>" in page


# What is not there.


def test_a_run_without_scores_says_so(copied):
    (copied / "results.jsonl").unlink()
    assert "This run has no scores" in Elements(page_of(copied)).words


def test_scores_that_are_no_numbers_are_failures(copied):
    values = {"base": 1.0, "a": math.nan, "b": -math.inf, "merged": math.inf}
    scored(copied, [reported.row(m, "english", 1.0, value=v) for m, v in values.items()])
    page = page_of(copied)
    assert page.count(">failed</text>") == 3
    assert "nan" not in Elements(page).words.lower().split()
    assert 'cx="nan"' not in page


def test_no_items_and_no_formula_draw_values_without_intervals(copied):
    bare = [
        ScoreRow(m, "tool", "command", "score", at, "", True, 3, ())
        for at, m in enumerate(("base", "a", "b", "merged"))
    ]
    scored(copied, bare)
    words = Elements(page_of(copied)).words
    assert "no differences" in words
    assert "ahead of the best input" in words


def test_inputs_that_are_gone_are_asked_for_and_measured_ones_are_kept(copied, tmp_path):
    moved = copied.parent.rename(tmp_path / "models")
    shutil.move(moved / copied.name, tmp_path / "alone")
    alone = tmp_path / "alone"
    (alone / MEASURED_FILE).unlink(missing_ok=True)
    assert "give the folder that has them by --inputs" in page_of(alone)
    page = page_of(alone, inputs=moved)
    assert "Sign conflicts" in page
    shutil.rmtree(moved)
    assert "Sign conflicts" in page_of(alone)


def test_other_models_of_the_same_names_are_not_measured(copied):
    (copied / MEASURED_FILE).unlink(missing_ok=True)
    merges.small(copied.parent / "a", seed=9)
    page = page_of(copied)
    assert "a is not what the run read" in page
    assert "Sign conflicts" not in page


@pytest.mark.parametrize("name", ["results.jsonl", RUN_FILE, "transplant.json", "config.json"])
@pytest.mark.parametrize("text", ["{", "[]\n", "[1]\n", '{"a": 1}\n', "\0\n"])
def test_a_damaged_file_costs_its_part_and_no_more(copied, name, text):
    (copied / name).write_text(text)
    found = report(copied)
    words = Elements(found.file.read_text()).words
    assert "Method and parameters" in words
    if name == "results.jsonl":
        assert any(name in one for one in found.missing)


def test_a_recipe_of_another_form_is_shown_as_it_is(copied):
    page_file(copied).unlink(missing_ok=True)
    edited(copied / MANIFEST_FILE, lambda one: one["recipe"].update({"gate_mode": "hidden"}))
    words = Elements(page_of(copied)).words
    assert "gate_mode: hidden" in words
    assert "the recipe cannot be read" in words


@pytest.mark.parametrize("name", ["nothing", "a-file", "empty"])
def test_what_is_no_run_is_refused(tmp_path, capsys, name):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty").mkdir()
    said = command(capsys, "report", tmp_path / name)
    assert said.status == 2
    assert said.err.count("\n") <= 2


# Names and texts are data.


def benign_and_hostile(tmp_path, word):
    """The page of a run whose every name and text has `word` in it."""
    folder = merges.write_models(tmp_path)
    result = reported.run(folder, merges.TIES, out=f"out{word}"[:40].replace("/", "∕"))
    models = ("base", f"a{word}", f"b{word}", "merged")
    scored(
        result,
        reported.rows(models, (f"english{word}", f"german{word}")),
        [reported.failure(f"reason {word}", f"a{word}", f"english{word}")],
    )
    edited(result / RUN_FILE, lambda one: one.update(warnings=[f"warned {word}"], device=word))
    edited(result / "config.json", lambda one: one.update(architectures=[word]))
    for key in ("mergepipe", "seed"):
        edited(result / MANIFEST_FILE, lambda one, key=key: one.update({key: word}))
    edited(result / MANIFEST_FILE, lambda one: one["recipe"].update({"note": [word]}))
    edited(
        result / MANIFEST_FILE,
        lambda one: one["inputs"]["a"].update(source={"hub": word, "commit": word}),
    )
    (result / "transplant.json").write_text(json.dumps(reported.transplanted(word)))
    reported.searched(result.with_name(f"{result.name}.search"), names=(f"loss{word}",), word=word)
    return page_of(result)


def test_names_never_become_markup(tmp_path):
    for name in ("plain", "hostile"):
        (tmp_path / name).mkdir()
    plain = Elements(benign_and_hostile(tmp_path / "plain", "word"))
    page = benign_and_hostile(tmp_path / "hostile", HOSTILE)
    assert Elements(page).tags == plain.tags
    assert Elements(page).words.count("<script>alert(1)</script>") > 50
    assert not [part for part in PARTS[:3] if part in page.replace("<style", "")]
    assert page.count("</title>") == page.count("<title>")


def test_controls_and_overrides_of_direction_are_visible(copied):
    scored(copied, [reported.row("base", "e\u202eng\x1b[2J", 1.0)])
    page = page_of(copied)
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert r"\u202e" in page


def test_secrets_are_masked(copied):
    token = "hf_abcdefghijklmnopqrstuvwxyz012345"
    scored(copied, failures=[reported.failure(f"refused: {token}")])
    assert token not in page_of(copied)


def test_the_page_asks_for_nothing_and_runs_nothing(page):
    found = Elements(page)
    assert all(one.startswith("#") for one in found.addresses)
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert not {"script", "iframe", "link", "img", "object", "form"} & {
        tag for tag, _ in found.tags
    }
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    assert "style" not in {name for _, names in found.tags for name in names}
    assert "@import" not in page
    assert "url(" not in page


def test_no_absolute_path_is_shown(tmp_path):
    folder = merges.write_models(tmp_path)
    absolute = {label: str(folder / label) for label in ("base", "a", "b")}
    result = reported.run(folder, merges.TIES, models=absolute)
    scored(result, failures=[reported.failure(f"{folder}/judge.py: not found")])
    page = page_of(result)
    assert str(tmp_path) not in page
    assert "path: ./merged" not in page
    assert "base: ./base" in page
    assert "…/judge.py: not found" in page


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": "/x/base"}, {"a": "./base"}),
        ({"a": "/x/base", "b": "/y/c"}, {"a": "…/base", "b": "…/c"}),
        ({"a": "org/name", "b": [1, None, True]}, {"a": "org/name", "b": [1, None, True]}),
    ],
)
def test_paths_of_a_recipe_are_relative_to_what_they_share(data, expected):
    assert paths.portable(data) == expected


# Where it goes.


def test_a_file_that_is_no_report_is_not_overwritten(copied, tmp_path):
    theirs = tmp_path / "notes.html"
    theirs.write_text("<html>mine</html>")
    with pytest.raises(InputError, match="not a report"):
        report(copied, out=theirs)
    assert theirs.read_text() == "<html>mine</html>"


def test_the_report_of_another_run_is_not_overwritten_and_ones_own_is(copied, tmp_path):
    out = tmp_path / "page.html"
    report(copied, out=out)
    report(copied, out=out)
    merges.small(copied.parent / "b", seed=7)
    other = reported.run(copied.parent, GRADIENTS, out="other")
    with pytest.raises(InputError, match="another run"):
        report(other, out=out)


def test_the_command_says_where_the_page_is(copied, capsys):
    said = command(capsys, "report", copied)
    assert said.status == 0
    assert str(page_file(copied)) in said.out
    assert page_file(copied).stat().st_size < 300_000


def test_the_same_run_gives_the_same_page(copied):
    assert page_of(copied) == page_of(copied)


@pytest.mark.parametrize("module", [paths, scales], ids=lambda one: one.__name__)
def test_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
