"""The recipes of recipes/evaluate do what their heads say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from api_server import ANSWER, serving
from askable import askable
from command_line import command

from mergepipe.model.api import api_model
from mergepipe.model.load import local_model

FOLDER = Path(__file__).parent.parent / "recipes" / "evaluate"
RECIPES = sorted(FOLDER.glob("*.yaml"))
COUNTED = (
    "bits_per_byte",
    "classification",
    "code",
    "command",
    "exact_match",
    "multiple_choice",
    "retention",
    "weights",
)
OF_RECIPES = {"beside", "retention"}  # what recipes ask for beside evaluators
MODELS = ("base", "arithmetic", "merged")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "results.db"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, cache):
    """What a test has scored, another need not: the result is the same, as other tests show."""
    monkeypatch.setenv("MERGEPIPE_CACHE", str(cache))


def head(name):
    lines = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def expected(name):
    """The numbers of a head: (evaluation, model) -> what its column shows."""
    found = {}
    for evaluation, rest in re.findall(r"(\w+): (base [^\n]*)", head(name)):
        for model, shown in re.findall(r"(\w+) (\d+\.\d+)", rest):
            found[evaluation, model] = shown
    return found


def run(capsys, tmp_path, name):
    """Run a recipe by the command of its head."""
    (line,) = re.findall(
        r"command .*?mergepipe (run [^#]*?)--out /tmp/merged(.*)", head(name).replace("\\\n#", "")
    )
    words = f"{line[0]} --out {tmp_path / 'merged'} {line[1]} --json".split()
    assert Path(words[1]) == Path("recipes/evaluate") / f"{name}.yaml"
    said = command(capsys, *words)
    assert said.status == 0, said.err
    return json.loads(said.out)["results"]


def mains(rows):
    """The main metric of each evaluation and model."""
    return {(row["name"], row["model"]): row["value"] for row in reversed(rows)}


def test_every_evaluator_has_a_recipe_and_every_recipe_a_head():
    shipped = (FOLDER.parent.parent / "evaluators").glob("*.py")
    assert {path.stem for path in RECIPES} == {path.stem for path in shipped} | OF_RECIPES
    for path in RECIPES:
        said = head(path.stem)
        assert f"recipes/evaluate/{path.name}" in said
        assert "# expected " in said


@pytest.mark.parametrize(
    "name",
    [
        *COUNTED,
        pytest.param("mergebench", marks=pytest.mark.slow),
        pytest.param("lm_eval", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_gives_the_numbers_of_its_head(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(FOLDER.parent.parent)
    said = expected(name)
    assert len(said) >= 3
    found = mains(run(capsys, tmp_path, name))
    assert {key: f"{found[key]:.3f}" for key in said} == said


def test_sums_are_voted_on_and_what_has_no_number_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER.parent.parent)
    rows = run(capsys, tmp_path, "exact_match")
    voted = {
        row["metric"]: row["value"]
        for row in rows
        if (row["name"], row["model"]) == ("voted", "arithmetic")
    }
    assert set(voted) == {"exact_match", "maj@4", "unextracted"}
    assert voted["maj@4"] >= 0.9
    assert voted["unextracted"] == 0


def test_speed_is_of_the_moment(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER.parent.parent)
    found = mains(run(capsys, tmp_path, "speed"))
    assert set(found) == {("speed", model) for model in MODELS}
    assert min(found.values()) > 0


def test_a_served_model_stands_beside_the_merge_with_what_it_cost(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER.parent.parent)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = local_model(FOLDER.parent / "quickstart" / "arithmetic", "arithmetic")

    def complete(handler):
        asked = handler.call.body
        if not handler.path.endswith("/v1/completions"):
            return 404, {"error": "not here"}
        stop, most = asked.get("stop", ()), asked["max_tokens"]
        (said,) = model.generate([asked["prompt"]], stop=stop, max_tokens=most)
        return 200, {**ANSWER, "model": "arithmetic", "choices": [{"text": said.text}]}

    with serving(complete) as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        rows = run(capsys, tmp_path, "beside")
    found = {(row["name"], row["model"]): row for row in rows if row["metric"] == "exact_match"}
    said = expected("beside")
    assert {key: f"{found[key]['value']:.3f}" for key in said} == said
    assert len(said) == 4
    tokens = found["sums", "served"]["usage"]
    usd = (0.1 * tokens["prompt_tokens"] + 0.4 * tokens["generated_tokens"]) / 1e6
    assert tokens["usd"] == pytest.approx(usd)


@pytest.mark.slow
def test_the_little_server_is_one(tmp_path):
    """That of the folder, in a process of its own: what it writes is what the model writes."""
    folder = askable("llama", tmp_path / "tiny")
    words = [sys.executable, FOLDER / "serve.py", folder, "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip().partition("=")[2]
            host = url.split("/")[2]
            far = api_model(url, "tiny", key_env=None, trusted_hosts=[host])
            said = far.generate(["12+30="], stop=(), max_tokens=4)
        finally:
            server.terminate()
    assert said == local_model(folder, "here").generate(["12+30="], stop=(), max_tokens=4)


def arithmetic(handler):
    """A judge that knows sums, and says what it thinks in the form that it is asked for."""
    asked = handler.call.body["messages"][0]["content"]
    sum_asked = re.search(r"\[prompt \w+\]\n(\d+)([+-])(\d+)=", asked)
    a, sign, b = sum_asked.groups()
    right = str(int(a) + int(b) if sign == "+" else int(a) - int(b))
    texts = dict(re.findall(r"\[(answer(?: [AB])?) \w+\]\n(.*?)\n\[end", asked, re.DOTALL))
    good = {name: text.strip() == right for name, text in texts.items()}
    if "answer" in good:
        word = ("GRADE: I", "GRADE: C") if "GRADE: C" in asked else ("RATING: 1", "RATING: 10")
        said = word[good["answer"]]
    else:
        better = {(True, False): "A", (False, True): "B"}
        said = f"VERDICT: {better.get((good['answer A'], good['answer B']), 'TIE')}"
    choice = {"message": {"content": f"{a}{sign}{b} is {right}.\n{said}"}, "finish_reason": "stop"}
    return 200, {**ANSWER, "model": "judge", "choices": [choice]}


def test_a_judge_that_knows_arithmetic_prefers_the_model_that_does(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER.parent.parent)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(arithmetic) as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        rows = run(capsys, tmp_path, "judge")
    found = mains(rows)
    for evaluation, best in {"rated": 10, "graded": 1, "won": 0.5}.items():
        # Its sums are the data's: against the right answers it can at best draw.
        assert found[evaluation, "arithmetic"] == best
        assert found[evaluation, "arithmetic"] > found[evaluation, "base"]
    assert {row["value"] for row in rows if row["metric"] == "position_bias"} == {0.0}
