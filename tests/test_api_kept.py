"""What a server has answered is paid for once, whenever the run is cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from api_server import ANSWER, MODEL, serving

from mergepipe.errors import EnvironmentFault
from mergepipe.evaluate import Evaluation, Settings, find_evaluator, open_cache, score
from mergepipe.model.api import Limits, api_model

COUNT = 8
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_api_kept import scored
print(scored(sys.argv[1], Path(sys.argv[2])))
"""


def evaluation(folder):
    file = folder / "sums.jsonl"
    file.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(COUNT)))
    evaluator = find_evaluator("exact_match")
    return Evaluation("sums", evaluator, evaluator.parameters(data=file), folder)


def scored(url, folder, *, cached=True):
    """Score the model behind the server, one request at a time."""
    host = url.split("/")[2]
    limits = Limits(concurrency=1, attempts=1)
    model = api_model(url, MODEL, key_env=None, trusted_hosts=[host], limits=limits)
    with open_cache(folder / "results.db") as cache:
        settings = Settings(cache=cache if cached else None)
        found = score([model], [evaluation(folder)], settings)
    return [row.value for row in found.rows], model.usage


class Sums:
    """A server that can add, and kills who asks it once it has answered so many times."""

    def __init__(self):
        self.asked = Counter()
        self.tags = {}
        self.kill_after, self.victim = None, None

    def __call__(self, handler):
        asked = handler.call.body
        if handler.path.endswith("/models"):
            return 200, {"data": [{"id": MODEL}]}
        prompt = asked.get("prompt", "")
        if handler.path.endswith("/chat/completions"):
            return 404, {"error": "no chat here"}
        if not prompt.endswith("+1="):  # what it can do is being found out
            return 200, ANSWER
        self.asked[prompt] += 1
        self.tags.setdefault(prompt, set()).add(handler.headers["idempotency-key"])
        if sum(self.asked.values()) == self.kill_after:
            os.kill(self.victim.pid, signal.SIGKILL)  # it never hears this answer
        choice = {"text": str(int(prompt[:-3]) + 1), "finish_reason": "stop"}
        return 200, {**ANSWER, "choices": [choice]}


@pytest.mark.parametrize("kill_after", [1, COUNT // 2])
def test_a_kill_costs_one_request_at_most_and_its_repetition_says_that_it_is_one(
    tmp_path, kill_after
):
    server = Sums()
    with serving(server) as script:
        server.kill_after = kill_after
        code = RUN.format(tests=str(Path(__file__).parent))
        words = [sys.executable, "-c", code, script.url, tmp_path]
        server.victim = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert server.victim.wait() == -signal.SIGKILL
        assert sum(server.asked.values()) == kill_after
        server.kill_after = None
        values, usage = scored(script.url, tmp_path)
    assert values[0] == 1.0
    twice = [prompt for prompt, count in server.asked.items() if count > 1]
    assert len(server.asked) == COUNT
    assert len(twice) <= 1
    assert all(len(tags) == 1 for tags in server.tags.values())
    found_out = 3  # requests: completions, conversations, the list of models
    assert usage.requests == found_out + COUNT - kill_after + len(twice)


def test_what_one_item_fails_on_is_asked_again_alone(tmp_path):
    server = Sums()
    answers = iter([*[None] * 5, (404, {}), *[None] * 99])

    def partly(handler):
        said = server(handler)
        return next(answers) or said if "+1=" in handler.call.body.get("prompt", "") else said

    with serving(partly) as script:
        assert scored(script.url, tmp_path)[0] == []
        before = server.asked.total()
        assert scored(script.url, tmp_path)[0][0] == 1.0
    assert server.asked.total() - before == COUNT - 5


def test_without_the_cache_every_answer_is_paid_for(tmp_path):
    server = Sums()
    with serving(server) as script:
        scored(script.url, tmp_path)
        (tmp_path / "sums.jsonl").unlink()
        scored(script.url, tmp_path, cached=False)
    assert set(server.asked.values()) == {2}


def test_another_server_at_the_address_is_asked_itself(tmp_path):
    server, listed = Sums(), [{"id": MODEL, "root": "one"}]

    def changing(handler):
        if handler.path.endswith("/models"):
            return 200, {"data": listed}
        return server(handler)

    with serving(changing) as script:
        scored(script.url, tmp_path)
        listed[0] = {"id": MODEL, "root": "two"}
        scored(script.url, tmp_path)
    assert set(server.asked.values()) == {2}


def test_the_speed_of_a_server_is_measured_and_not_remembered(tmp_path):
    server, evaluator = Sums(), find_evaluator("speed")
    evaluation_ = Evaluation("speed", evaluator, evaluator.parameters(), tmp_path)
    with serving(server) as script, open_cache(tmp_path / "results.db") as cache:
        host = script.url.split("/")[2]
        model = api_model(script.url, MODEL, key_env=None, trusted_hosts=[host])
        score([model], [evaluation_], Settings(cache=cache))
    assert model.exchange.kept is None


def test_a_kept_answer_that_is_damaged_is_said_and_nothing_is_kept_of_the_key(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody-at-all")
    file = tmp_path / "results.db"
    with open_cache(file) as cache:
        cache.keep_answer("key", b"json\n{}")
        assert cache.answer("key") == b"json\n{}"
        assert cache.answer("other") is None
        cache._connection.execute("UPDATE answers SET body = x'00'")
        with pytest.raises(EnvironmentFault, match="is damaged"):
            cache.answer("key")
    assert b"sk-of-nobody" not in file.read_bytes()


def test_a_cache_of_before_is_given_room_for_answers(tmp_path):
    file = tmp_path / "results.db"
    with open_cache(file) as cache:
        cache._connection.executescript("DROP TABLE answers; PRAGMA user_version = 1")
    with open_cache(file) as cache:
        cache.keep_answer("key", b"said")
        assert cache.answer("key") == b"said"
