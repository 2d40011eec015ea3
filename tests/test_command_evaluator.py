"""Programs as evaluators: what they are told, what they answer, and every way not to."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import command
from evaluations import Counting, judged_by, right

from mergepipe.evaluate import Context, Settings, find_evaluator, score
from mergepipe.model.api import api_model

ROOT = Path(__file__).parent.parent
BASE = ROOT / "recipes" / "quickstart" / "base"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "cache" / "results.db"))


@pytest.fixture
def program(tmp_path):
    def run(source, **parameters):
        (tmp_path / "score.py").write_text(source)
        evaluator = find_evaluator("command")
        given = {"run": (sys.executable, "score.py"), "timeout": 20.0, **parameters}
        one = replace(
            judged_by(evaluator.evaluate, evaluator.parameters(**given)),
            evaluator=evaluator, folder=tmp_path, limit=7,
        )  # fmt: skip
        model = Counting()
        model.location = {"path": str(BASE)}
        return score([model], [one], Settings(allowed=frozenset({"commands"})))

    return run


def documented_program():
    text = (ROOT / "docs" / "evaluators.md").read_text(encoding="utf-8")
    return next(
        one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "json.load" in one
    )


def test_the_program_in_the_documentation_works(program):
    [row] = program(documented_program()).rows
    assert (row.metric, row.value, row.n, row.stderr) == ("accuracy", 0.5, 2, pytest.approx(0.5))
    assert [item.values for item in row.items] == [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert row.formula is not None


def test_a_program_is_told_where_the_model_is(program):
    source = (
        "import json, sys\nasked = json.load(sys.stdin)\nassert asked['model']['path'], asked\n"
        "assert asked['parameters'] == {'k': [1]} and asked['limit'] == 7\n"
        "print('some words')\nprint(json.dumps({'metrics': {'m': {'value': 3, 'n': 5, "
        "'higher_is_better': False, 'unit': 's', 'stderr': 0.5}}}))"
    )
    [row] = program(source, parameters={"k": [1]}).rows
    assert (row.value, row.n, row.higher_is_better, row.stderr) == (3.0, 5, False, 0.5)


PROGRAMS = {
    "exits early": ("import os; os._exit(0)", "it ended without a result"),
    "exit status": ("import sys; sys.exit('no GPU here')", "exit status 1: no GPU here"),
    "raises": ("1 / 0", "exit status 1: ZeroDivisionError: division by zero"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    "closes its output": ("import os; os.close(1)", "it ended without a result"),
    "prints words": ("print('0.5')", "its last line is no JSON object: 0.5"),
    "NaN": ("""print('{"metrics": {"m": NaN}}')""", "metric m: "),
    "text": ("""print('{"metrics": {"m": "high"}}')""", "metric m: "),
    "a bool": ("""print('{"metrics": {"m": true}}')""", "metric m: "),
    "no metric": ("""print('{"metrics": {}}')""", 'gave no "metrics"'),
    "no id": (
        """print('{"metrics": {"m": 1}, "samples": [{"m": 1}]}')""",
        'a sample needs an "id"',
    ),
    "1 GB": (
        "import sys\nfor _ in range(1000): sys.stdout.write('x' * 2**20)",
        "it says more than 67,108,864 bytes",
    ),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_without_a_result_has_failed(program, what):
    source, words = PROGRAMS[what]
    [failure] = program(source).failures
    assert words in failure.reason


def test_a_program_that_hangs_is_killed_with_its_children(program, tmp_path):
    source = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\ntime.sleep(99)\n"
    )
    began = time.monotonic()
    [failure] = program(source, timeout=2.0).failures
    assert time.monotonic() - began < 10
    assert "no end after 2 s" in failure.reason
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for_end(pid)


def wait_for_end(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"{pid} still runs")


def test_a_program_that_is_not_there_is_named(program):
    [failure] = program("", run=("no-such-program",)).failures
    assert "no-such-program: cannot be run: " in failure.reason


def test_a_recipe_runs_no_program_unasked(capsys, tmp_path):
    (tmp_path / "score.py").write_text("open('ran', 'w')\n" + documented_program())
    (tmp_path / "recipe.yaml").write_text(
        f"mergepipe: 1\nmodels: {{base: {BASE}}}\n"
        f"merge: {{method: passthrough, models: [base]}}\n"
        f"evaluate: [{{use: command, run: [{sys.executable}, score.py], name: mine}}]\n"
    )
    call = "run", tmp_path / "recipe.yaml", "--out", tmp_path / "out"
    said = command(capsys, *call)
    assert said.status == 2
    assert "evaluation 'mine': command runs programs that others may have written" in said.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
    assert command(capsys, *call, "--allow-commands").status == 0
    assert (tmp_path / "ran").exists()


def test_a_library_call_runs_no_program_unasked():
    one = judged_by(lambda *_: right(1), permission="commands")
    [failure] = score([Counting()], [one]).failures
    assert failure.reason == "judge needs --allow-commands"


def test_results_of_a_program_are_kept_only_under_a_version():
    evaluator = find_evaluator("command")
    assert evaluator.cached is not None
    assert not evaluator.cached(evaluator.parameters(run=("x",)))
    assert evaluator.cached(evaluator.parameters(run=("x",), version="2"))


def test_a_program_is_told_where_a_server_is_and_what_holds_its_key_but_not_the_key(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-user-0123456789")
    (tmp_path / "score.py").write_text(
        "import json, sys; text = sys.stdin.read(); open('asked', 'w').write(text);"
        "print(json.dumps({'metrics': {'one': 1}}))"
    )
    model = api_model("http://127.0.0.1:9/v1", "tiny", name="far")
    evaluator = find_evaluator("command")
    parameters = evaluator.parameters(run=(sys.executable, "score.py"), timeout=20.0)
    result = evaluator.evaluate(model, Context(parameters, folder=tmp_path))
    assert result.metrics["one"].value == 1
    asked = (tmp_path / "asked").read_text()
    assert json.loads(asked)["model"] == {
        "name": "far",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "tiny",
        "kind": "completions",
        "key_env": "OPENAI_API_KEY",
    }
    assert "sk-secret" not in asked
