"""Kept results: the same to the bit, never another's, and safe when shared, killed or damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import Anything, Counting, bits, judged_by, right
from hypothesis import given, settings
from hypothesis import strategies as st

from mergepipe.errors import EnvironmentFault
from mergepipe.evaluate import (
    Formula,
    Item,
    Metric,
    Result,
    Settings,
    Split,
    Unscored,
    cache_file,
    open_cache,
    score,
)


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f'{{"text": "{"ab" * n}"}}\n' for n in range(1, 21)))
    return file


@pytest.fixture
def cache(tmp_path):
    with open_cache(tmp_path / "deep" / "results.db") as cache:
        yield cache


def test_a_second_run_asks_nothing_and_gives_the_same_to_the_bit(texts, cache):
    model = Counting()
    first = score([model], [bits(texts)], Settings(cache=cache))
    again = score([model], [bits(texts)], Settings(cache=cache))
    assert first == again == score([model], [bits(texts)])
    assert model.asked == 2  # once for the first, once without the cache


def test_a_file_that_is_opened_again_has_what_was_kept(texts, tmp_path):
    file = tmp_path / "results.db"
    models = Counting(), Counting()
    for model in models:
        with open_cache(file) as cache:
            score([model], [bits(texts)], Settings(cache=cache))
    assert [model.asked for model in models] == [1, 0]


def moved(texts):
    return texts.rename(texts.parent / "moved.jsonl")


def test_data_count_by_their_content_and_not_by_their_path(texts, cache):
    score([model := Counting()], [bits(texts)], Settings(cache=cache))
    score([model], [bits(moved(texts))], Settings(cache=cache))
    assert model.asked == 1


def other_text(evaluation):
    evaluation.parameters.data.write_text('{"text": "other"}\n')
    return evaluation


OTHERS = {
    "model": lambda model, one, how: (replace(model, fingerprint="g"), one, how),
    "data": lambda model, one, how: (model, other_text(one), how),
    "limit": lambda model, one, how: (model, replace(one, limit=3), how),
    "version": lambda model, one, how: (
        model, replace(one, evaluator=replace(one.evaluator, version=2)), how),
    "source": lambda model, one, how: (
        model, replace(one, evaluator=replace(one.evaluator, digest="changed")), how),
    "name of evaluator": lambda model, one, how: (
        model, replace(one, evaluator=replace(one.evaluator, name="other")), how),
    "parameter": lambda model, one, how: (
        model, replace(one, parameters=one.parameters.model_copy(update={"field": "text "})), how),
    "seed": lambda model, one, how: (model, one, replace(how, seed=1)),
    "part": lambda model, one, how: (
        model, replace(one, split=Split(5, 5)), replace(how, part="search")),
    "seed of the split": lambda model, one, how: (
        model, replace(one, split=Split(5, 5, 1)), replace(how, part="search")),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_another_one_is_another_result(texts, tmp_path, what):
    def key(model, evaluation, how):
        from mergepipe.evaluate.running import _key

        return _key(model, evaluation, how)

    with open_cache(tmp_path / "results.db") as cache:
        asked = Counting(), bits(texts), Settings(cache=cache)
        before = key(*asked)
        assert before != key(*OTHERS[what](*asked))


def test_the_name_and_the_heading_do_not_matter(texts, cache):
    score([model := Counting()], [bits(texts)], Settings(cache=cache))
    named = replace(bits(texts), name="other")
    rows = score([other := Counting("b")], [named], Settings(cache=cache)).rows
    assert (model.asked, other.asked) == (1, 0)
    assert (rows[0].model, rows[0].evaluation) == ("b", "other")


def test_a_parameter_that_names_a_file_by_text_counts_by_content_too(tmp_path, cache):
    (tmp_path / "prompt.txt").write_text("one")
    times = []
    judge = judged_by(
        lambda *_: times.append(1) or right(1, 0), Anything(value="prompt.txt"), folder=tmp_path
    )
    for text in ("one", "one", "two"):
        (tmp_path / "prompt.txt").write_text(text)
        score([Counting()], [judge], Settings(cache=cache))
    assert len(times) == 2


@pytest.mark.parametrize("unknown", ["model", "evaluator"])
def test_what_has_no_fingerprint_is_not_kept(texts, cache, unknown):
    model, one = Counting(fingerprint="" if unknown == "model" else "f"), bits(texts)
    if unknown == "evaluator":
        one = replace(one, evaluator=replace(one.evaluator, digest=""))
    for _ in range(2):
        score([model], [one], Settings(cache=cache))
    assert model.asked == 2


def test_failures_and_partial_results_are_not_kept(cache):
    times = []

    def evaluate(*_):
        times.append(1)
        if len(times) == 1:
            raise ValueError("bad")
        return replace(right(1, 0), unscored=(Unscored("x", "no answer"),))

    judge = judged_by(evaluate, max_error_rate=0.5)
    for _ in range(3):
        score([Counting()], [judge], Settings(cache=cache))
    assert len(times) == 3


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(st.text(), FLOATS), min_size=1, unique_by=lambda pair: pair[0]))
@settings(deadline=None, max_examples=50)
def test_any_result_comes_back_as_it_was(tmp_path_factory, pairs):
    items = tuple(Item(name, {"x": x, "b": 2}, name[:1] or None) for name, x in pairs)
    formula = Formula("x", "b", pairs[0][1], exponential=True)
    metrics = {
        "x": Metric(pairs[-1][1], True, len(items), "ü"),
        "r": Metric(0.1, False, 3, "", 0.1, formula),
    }
    result = Result(metrics, items)
    with open_cache(tmp_path_factory.mktemp("any") / "results.db") as cache:
        cache.put("key", result)
        assert cache.get("key") == result
        assert cache.get("other") is None


# Faults


def filled(file):
    with open_cache(file) as cache:
        for i in range(50):
            cache.put(str(i), right(1, 0, 1))
    return file


def test_a_kill_at_any_time_leaves_a_sound_file(tmp_path):
    file = tmp_path / "results.db"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nfrom evaluations import right\n"
        "from mergepipe.evaluate import open_cache\n"
        "with open_cache(Path(sys.argv[1])) as cache:\n"
        "    print('ready', flush=True)\n"
        "    for i in range(10**9): cache.put(str(i), right(*[1, 0] * 500))\n"
    )
    for delay in (0.0, 0.05, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", code, file, Path(__file__).parent], stdout=subprocess.PIPE
        )
        child.stdout.readline()
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    with open_cache(file) as cache:
        assert cache.get("0") == right(*[1, 0] * 500)
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_many_may_write_at_once(tmp_path):
    file = tmp_path / "results.db"

    def write(worker):
        with open_cache(file) as cache:
            for i in range(20):
                cache.put(f"{worker} {i}", right(1, 0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    with open_cache(file) as cache:
        assert all(cache.get(f"{w} {i}") == right(1, 0) for w in range(8) for i in range(20))


@pytest.mark.parametrize("damage", ["no database", "torn", "overwritten"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    file = filled(tmp_path / "results.db")
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes({
        "no database": b"SQLite? no" * 1000,
        "torn": whole[:half],
        "overwritten": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }[damage])  # fmt: skip

    def read():
        with open_cache(file) as cache:
            assert [cache.get(str(i)) for i in range(50)] == [right(1, 0, 1)] * 50

    with pytest.raises(EnvironmentFault, match=r"results.db: .* damaged: .*delete it, or"):
        read()


def test_a_result_that_was_changed_is_not_believed(tmp_path):
    file = filled(tmp_path / "results.db")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE results SET body = x'00' WHERE key = '7'")
    connection.close()
    with (
        open_cache(file) as cache,
        pytest.raises(EnvironmentFault, match="not what was stored"),
    ):
        cache.get("7")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA user_version = 99", "written by a later mergepipe .format 99.*upgrade"),
        ("PRAGMA application_id = 7", "is no cache of mergepipe's .name another file"),
    ],
)
def test_another_programs_or_versions_file_is_left_alone(tmp_path, statement, message):
    file = filled(tmp_path / "results.db")
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(EnvironmentFault, match=message), open_cache(file):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EnvironmentFault, match=r"results.db: .*MERGEPIPE_CACHE, or give --no-cache"),
        open_cache(tmp_path / "file" / "results.db"),
    ):
        pass


def test_a_result_that_cannot_be_kept_is_not_lost(texts, tmp_path):
    told = []
    with open_cache(tmp_path / "results.db") as cache:
        cache._connection.execute("PRAGMA query_only = ON")
        scores = score([Counting()], [bits(texts)], Settings(cache=cache, tell=told.append))
    assert (len(scores.rows), scores.failures) == (3, ())
    assert "warning: a result is not kept" in told[0]


def test_the_file_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MERGEPIPE_CACHE", str(tmp_path / "mine.db"))
    assert cache_file() == tmp_path / "mine.db"
    monkeypatch.delenv("MERGEPIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "mergepipe" / "results.db"
