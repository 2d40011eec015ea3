"""`mergepipe eval`, on real models: what it prints, what it refuses, and programs as evaluators."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from api_server import scoring
from command_line import assert_clean, command
from evaluations import Counting, judged_by, right
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.evaluate import (
    Item,
    ItemFault,
    Metric,
    Result,
    Settings,
    Split,
    Unscored,
    markdown,
    page,
    results_jsonl,
    score,
)
from mergepipe.pipeline import name_models, read_uses

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"
TEXTS = QUICKSTART / "heldout" / "arithmetic_text.jsonl"
SUMS = QUICKSTART / "heldout" / "arithmetic.jsonl"
BASE, GERMAN = QUICKSTART / "base", QUICKSTART / "german"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "cache" / "results.db"))


@pytest.fixture
def plugin(tmp_path):
    def write(name, body, head=""):
        file = tmp_path / f"{name}.py"
        file.write_text(
            f'"""Plugs in."""\nfrom pydantic import BaseModel\n'
            f"from mergepipe.evaluate import Item, Metric, Result, mean\n{head}\n"
            f'class Parameters(BaseModel, frozen=True, extra="forbid", strict=True): ...\n'
            f"def evaluate(model, context):\n    {body}\n"
        )
        return file

    return write


# The command


def test_models_are_scored_side_by_side_and_a_second_run_loads_none(capsys, monkeypatch):
    call = "eval", BASE, f"de={GERMAN}", "--use", f"bits_per_byte:data={TEXTS},limit=20", "--json"
    first = command(capsys, *call)
    found = json.loads(first.out)["results"]
    assert [one["model"] for one in found if one["metric"] == "bits_per_byte"] == ["base", "de"]
    assert {"model", "evaluator", "name", "metric", "value", "stderr", "n", "higher_is_better"} <= (
        found[0].keys()
    )
    assert found[0]["n"] == 20
    monkeypatch.setattr("mergepipe.model.load.local_model", None)  # loading would fail
    again = command(capsys, *call).out
    assert again.replace('"cached": true', '"cached": false') == first.out


def test_without_the_cache_nothing_is_kept(capsys, tmp_path):
    use = f"bits_per_byte:data={TEXTS},limit=2"
    said = command(capsys, "eval", BASE, "--use", use, "--no-cache")
    assert said.status == 0
    assert not (tmp_path / "cache").exists()


def test_the_scores_are_those_of_a_recipe(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"mergepipe: 1\nmodels: {{base: {BASE}}}\n"
        f"merge: {{method: passthrough, models: [base]}}\n"
        f"evaluate: [{{use: bits_per_byte, data: {TEXTS}, limit: 20}}]\n"
    )
    said = command(capsys, "run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--json")
    use = f"bits_per_byte:data={TEXTS},limit=20"
    asked = command(capsys, "eval", tmp_path / "out", "--use", use, "--json")
    ours, theirs = (json.loads(one.out)["results"][0]["value"] for one in (said, asked))
    assert ours == theirs
    kept = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(json.loads(kept[0])["items"]) == 20
    assert command(capsys, "verify", tmp_path / "out").err == ""


def test_the_table_says_which_differences_are_real(capsys, tmp_path):
    files = "--markdown", tmp_path / "t.md", "--html", tmp_path / "t.html"
    use = f"bits_per_byte:data={TEXTS},limit=60"
    said = command(capsys, "eval", BASE, QUICKSTART / "arithmetic", "--use", use, *files)
    assert re.search(r"arithmetic\s+1\.\d+ \+", said.out)
    assert "+ better, − worse than base: 95 %, paired, corrected (Holm)." in said.out
    assert re.search(r"\| arithmetic \| \*\*1\.\d+\*\* \+ \|", (tmp_path / "t.md").read_text())
    html = (tmp_path / "t.html").read_text()
    assert "<h2>Differences from base</h2>" in html
    assert "http" not in html


def test_standard_errors_are_shown_on_request(capsys):
    call = "eval", BASE, "--use", f"bits_per_byte:data={TEXTS},limit=20"
    assert re.search(r"2\.\d{3} ±0\.\d{3}", command(capsys, *call, "--errors").out)
    assert "±" not in command(capsys, *call).out


def test_parts_of_a_split_share_no_item_and_leave_none_out(capsys):
    use = f"bits_per_byte:data={TEXTS},split={{search: 50, holdout: 70}}"
    ns = []
    for part in ("search", "holdout", "final"):
        said = command(capsys, "eval", BASE, "--use", use, "--split", part, "--json")
        ns.append(json.loads(said.out)["results"][0]["n"])
    assert ns == [50, 70, 80]
    ids = [str(i) for i in range(200)]
    parts = [Split(50, 70).part(ids, part) for part in ("search", "holdout", "final")]
    assert frozenset.union(*parts) == set(ids)
    assert sum(map(len, parts)) == 200
    assert parts[0] != Split(50, 70, seed=1).part(ids, "search")


def test_evaluators_are_listed_with_their_pages(capsys):
    said = command(capsys, "evaluators")
    assert "bits_per_byte" in said.out
    assert "--allow-commands" in said.out
    assert "max_tokens" in command(capsys, "evaluators", "exact_match").out


REFUSED = {
    "no such folder": ((BASE / "nothing", "--use", f"bits_per_byte:data={TEXTS}"), "nothing"),
    "no label twice": ((BASE, BASE, "--use", f"bits_per_byte:data={TEXTS}"), "give it a label"),
    "no evaluator": ((BASE, "--use", "bits_per_bite"), "did you mean 'bits_per_byte'?"),
    "no parameter": ((BASE, "--use", f"bits_per_byte:dta={TEXTS}"), "did you mean 'data'?"),
    "no value": ((BASE, "--use", "bits_per_byte:data"), "'data' is not parameter=value"),
    "no file": ((BASE, "--use", "bits_per_byte:data=none.jsonl"), "there is no file none.jsonl"),
    "no limit": ((BASE, "--use", f"bits_per_byte:data={TEXTS},limit=0"), "limit"),
    "no reference": (
        (BASE, "--use", f"bits_per_byte:data={TEXTS}", "--reference", "bse"),
        "did you mean 'base'?",
    ),
    "two of a name": (
        (BASE, "--use", f"bits_per_byte:data={TEXTS}", "--use", f"bits_per_byte:data={TEXTS}"),
        "give each its own name",
    ),
    "no server": (
        ("api:localhost#m", "--use", f"bits_per_byte:data={TEXTS}"),
        "write api:https://HOST/v1#MODEL",
    ),
    "unknown option of a server": (
        (BASE, "api:http://127.0.0.1:9/v1?knd=chat#m", "--use", f"bits_per_byte:data={TEXTS}"),
        "unknown option 'knd'; did you mean 'kind'?",
    ),
    "a key shown to the network": (
        (BASE, "api:http://192.0.2.1/v1?key_env=MY_KEY#m", "--use", f"bits_per_byte:data={TEXTS}"),
        "http would show the key in MY_KEY to the network",
    ),
    "no permission": ((BASE, "--use", "command:run=[python3]"), "give --allow-commands"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said_before_a_model_is_loaded(capsys, monkeypatch, what):
    monkeypatch.setattr("mergepipe.model.load.local_model", None)
    monkeypatch.setenv("MY_KEY", "s3cret")
    arguments, words = REFUSED[what]
    said = command(capsys, "eval", *arguments)
    assert said.status == 2
    assert words in said.err
    assert_clean(said.err)


def test_values_are_those_of_recipes():
    use = f'exact_match:data={SUMS},stop=["a,b", c],extract="(-?[0-9]+)",limit=5,name=x'
    [one] = read_uses([use], Path())
    assert (one.name, one.limit, one.parameters.stop) == ("x", 5, ("a,b", "c"))
    assert one.parameters.extract == "(-?[0-9]+)"


def test_models_of_servers_and_labels_are_read():
    [local, served] = name_models([f"a={BASE}", "api:http://127.0.0.1:1/v1#org/model"])
    assert (local.label, local.folder) == ("a", BASE)
    assert (served.label, served.server.base_url) == ("model", "http://127.0.0.1:1/v1")


def test_a_model_behind_a_server_scores_as_the_same_model_here(capsys):
    module = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").eval()
    use = ("--use", f"bits_per_byte:data={TEXTS},limit=4", "--json")
    with scoring(module, Tokenizer.from_file(str(BASE / "tokenizer.json"))) as server:
        there = f"far=api:{server.url}?prefix=%3Cbos%3E&requests=50#tiny"
        said = command(capsys, "eval", BASE, there, *use)
    here, far = (
        one["value"] for one in json.loads(said.out)["results"] if one["metric"] == "bits_per_byte"
    )
    assert said.status == 0
    assert far == pytest.approx(here, abs=1e-5)


# Failures


def test_one_failure_does_not_lose_the_other_results(capsys, plugin):
    file = plugin("gone", "raise KeyError('gone')")
    use = "--use", "gone", "--use", f"bits_per_byte:data={TEXTS},limit=2"
    said = command(capsys, "eval", BASE, *use, "--plugin", file)
    assert said.status == 2
    assert re.search(r"base\s+\d\.\d{3}\s+failed", said.out)
    assert "error: gone of base: the evaluator failed: KeyError: 'gone'" in said.err
    assert_clean(said.err)
    said = command(capsys, "eval", BASE, *use, "--plugin", file, "--json")
    assert json.loads(said.out)["failures"][0]["name"] == "gone"
    assert len(json.loads(said.out)["results"]) == 3


def returned(value):
    return lambda *_: value


def metric(value, **more):
    return Result({"x": Metric(value, True, 1, "u", **more)}, ())


def raising(error):
    def evaluate(*_):
        raise error

    return evaluate


BAD = {
    "None": (returned(None), "gave None (NoneType), not a Result"),
    "a number": (returned(0.5), "gave 0.5 (float), not a Result"),
    "no metric": (returned(Result({}, ())), "gave no metric"),
    "NaN": (returned(metric(float("nan"))), "x is nan (float), not a finite number"),
    "infinity": (returned(metric(float("-inf"))), "x is -inf"),
    "text": (returned(metric("0.5")), "x is '0.5' (str)"),
    "a bool": (returned(metric(True)), "x is True (bool)"),
    "nothing as a value": (returned(metric(None)), "x is None"),
    "a bad error": (returned(metric(0.5, stderr=float("nan"))), "the stderr of x is nan"),
    "a metric that is none": (returned(Result({"x": 0.5}, ())), "gave 0.5 (float) as 'x'"),
    "an item's NaN": (
        returned(replace(metric(0.5), items=(Item("7", {"x": float("nan")}),))),
        "item 7: x is nan",
    ),
    "two items of one id": (
        returned(replace(right(1, 0), items=right(1, 0).items * 2)), "item 0: the evaluator gave two"),
    "a value that is missing": (
        returned(replace(right(1, 0), items=(Item("0", {}),))), "item 0: right is made of right"),
    "an exception": (raising(ZeroDivisionError("x / 0")), "ZeroDivisionError: x / 0"),
    "an exit": (raising(SystemExit(0)), "SystemExit: 0"),
    "an item's fault": (raising(ItemFault("3", "no picture")), "item 3: no picture"),
    "our own error": (raising(InputError("a context of 9 tokens")), "a context of 9 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_whatever_is_no_result_is_a_failure_and_never_a_score(what):
    evaluate, words = BAD[what]
    scores = score([Counting("a"), Counting("b")], [judged_by(evaluate)])
    assert (scores.rows, [one.model for one in scores.failures]) == ((), ["a", "b"])
    assert words in str(scores.error())


def test_an_interruption_is_no_failure():
    with pytest.raises(KeyboardInterrupt):
        score([Counting()], [judged_by(raising(KeyboardInterrupt()))])


def test_only_the_environments_faults_are_its():
    fault, mine = raising(EnvironmentFault("no network")), raising(ValueError("mine"))
    assert score([Counting()], [judged_by(fault)]).error().exit_status == 3
    both = [judged_by(fault), replace(judged_by(mine), name="other")]
    assert score([Counting()], both).error().exit_status == 2


def test_a_traceback_is_kept_with_the_results():
    scores = score([Counting()], [judged_by(raising(ValueError("here")))])
    [line] = map(json.loads, results_jsonl(scores.rows, scores.failures).splitlines())
    assert "raise error" in line["traceback"]
    assert line["failed"] == "the evaluator failed: ValueError: here"


def test_a_model_that_cannot_is_refused_in_words():
    one = judged_by(returned(right(1)), needs=frozenset({"chat", "rolling"}))
    [failure] = score([Counting()], [one]).failures
    assert failure.reason == "judge needs a model that can do chat; this one can do rolling"


@pytest.mark.parametrize(("lost", "fails"), [(2, False), (3, True)])
def test_few_items_may_go_unscored_and_are_counted(lost, fails):
    unscored = tuple(Unscored(f"u{i}", "HTTP 500") for i in range(lost))
    result = replace(right(*[1] * (100 - lost)), unscored=unscored)
    scores = score([Counting()], [judged_by(returned(result))])
    if fails:
        assert "3 of 100 items could not be scored" in scores.failures[0].reason
        assert "HTTP 500" in scores.failures[0].reason
    else:
        assert (scores.rows[0].value, scores.rows[0].n) == (1.0, 98)
        assert len(scores.rows[0].unscored) == 2


def test_a_split_of_too_few_items_is_a_failure():
    def evaluate(_, context):
        context.choose({str(i): i for i in range(9)})

    one = judged_by(evaluate, split=Split(5, 4))
    [failure] = score([Counting()], [one], Settings(part="search")).failures
    assert "needs 10 or more, but there are 9" in failure.reason


def test_hostile_names_are_escaped():
    scores = score([Counting("<b>|\x1b[31m")], [judged_by(raising(ValueError("<script>")))])
    html = page(scores.rows, (), scores.failures)
    assert "<script>" not in html
    assert "&lt;b&gt;|\\x1b[31m" in html
    assert "<b>\\|\\x1b[31m" in markdown(scores.rows, (), scores.failures)


# Plugins


def test_the_evaluator_in_the_documentation_works(capsys, tmp_path):
    text = (ROOT / "docs" / "evaluators.md").read_text(encoding="utf-8")
    source = next(
        one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "NEEDS" in one
    )
    (tmp_path / "forwards.py").write_text(source)
    call = "eval", BASE, "--plugin", tmp_path / "forwards.py", "--json"
    said = command(capsys, *call, "--use", f"forwards:data={TEXTS},limit=40")
    [found] = json.loads(said.out)["results"]
    assert found["metric"] == "likelier"
    assert 0.8 < found["value"] <= 1


def test_a_plugin_with_the_name_of_a_shipped_evaluator_is_refused(capsys, plugin):
    file = plugin("exact_match", "return None")
    said = command(capsys, "eval", BASE, "--use", "exact_match", "--plugin", file)
    assert said.status == 2
    assert "the name of an evaluator that is there already" in said.err


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("NEEDS = {'think'}", "needs `NEEDS`, if any, as a set of loglikelihood"),
        ("VERSION = '1'", "needs `VERSION`, if any, as a whole number"),
        ("PERMISSION = 'everything'", "needs `PERMISSION`, if any, as one of commands"),
    ],
)
def test_a_plugin_that_is_wrong_says_what_it_needs(capsys, plugin, head, words):
    said = command(capsys, "eval", BASE, "--use", "odd", "--plugin", plugin("odd", "pass", head))
    assert said.status == 2
    assert words in said.err


@pytest.mark.parametrize(("said", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_let_others_work_unless_the_user_says_otherwise(
    capsys, monkeypatch, said, expected
):
    monkeypatch.setenv("OMP_WAIT_POLICY", said or "")
    if said is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert command(capsys, "evaluators").status == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected
