"""A model behind an API against a server that fails in every way it can; requests are real."""

from __future__ import annotations

import asyncio
import doctest
import os
import signal
import threading
import time

import pytest
from api_server import ANSWER, serving

from mergepipe.errors import InputError
from mergepipe.model import api_waits, windows
from mergepipe.model.api import Budget, Limits, Prices, api_model
from mergepipe.model.api_faults import ApiFault, ApiRefusal, BudgetExhausted
from mergepipe.model.api_limits import Pace
from mergepipe.model.api_waits import asked_wait

QUICK = Limits(backoff_seconds=0.01, backoff_cap=0.05)


def model_of(script, limits=QUICK, **options):
    host = script.url.split("/")[2]
    return api_model(
        script.url, "tiny", key_env=None, trusted_hosts=[host], limits=limits, **options
    )


def ask(model, count=1, **options):
    prompts = [f"question {i}" for i in range(count)]
    return model.generate(prompts, **{"stop": [], "max_tokens": 4, **options})


def failing(*steps, count=1, error=ApiFault, **options):
    """The error's words and the calls that were made."""
    with serving(*steps) as script, pytest.raises(error) as caught:
        ask(model_of(script, **options), count)
    return str(caught.value), script.calls


@pytest.mark.parametrize("step", ["429:2", "429date:3"])
def test_the_wait_that_a_server_asks_for_is_kept(step):
    with serving(step, "ok") as script:
        assert [g.text for g in ask(model_of(script))] == [" 42"]
    first, second = script.calls
    assert 2.0 <= second.at - first.at < 5


def test_without_a_wait_asked_for_retries_back_off_within_bounds():
    with serving("429none", "429none", "ok") as script:
        ask(model_of(script))
    gaps = [b.at - a.at for a, b in zip(script.calls, script.calls[1:], strict=False)]
    assert len(gaps) == 2
    assert max(gaps) < 1


@pytest.mark.parametrize(("draw", "expected"), [(0.0, [0, 0, 0]), (1.0, [0.5, 1, 1.5])])
def test_waits_double_up_to_a_cap_and_are_drawn_below_that(draw, expected):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    with serving("500", "500", "500", "ok") as script:
        model = model_of(script, Limits(backoff_seconds=0.5, backoff_cap=1.5))
        model.exchange.sleep, model.exchange.draw = sleep, lambda: draw
        ask(model)
    assert waits == expected


def test_a_wait_of_a_day_is_not_slept_and_what_was_answered_is_kept():
    with serving("ok", "429huge") as script:
        model = model_of(script)
        started = time.monotonic()
        with pytest.raises(ApiFault, match=r"asks for 86400 s.*1 of 2 were answered") as caught:
            ask(model, 2)
    assert time.monotonic() - started < 5
    first, second = caught.value.answers
    assert (first.text, second) == (" 42", None)


def test_server_errors_are_tried_again():
    with serving("500", "502", "503", "ok") as script:
        assert len(ask(model_of(script))) == 1
    assert len(script.calls) == 4


def test_an_endpoint_that_stays_down_is_given_up_and_asked_anew_the_next_time():
    with serving(*["503"] * 6, "ok") as script:
        model = model_of(script)
        with pytest.raises(ApiFault, match=r"status 503.*tried 6 times"):
            ask(model)
        assert len(script.calls) == 6
        assert ask(model)[0].text == " 42"


def test_a_refused_key_costs_one_request_in_the_whole_run(monkeypatch):
    monkeypatch.setenv("SERVER_API_KEY", "not-shown-0123456789")
    with serving("401") as script:
        monkeypatch.setenv("SERVER_BASE_URL", script.url)
        model = api_model(script.url, "tiny", key_env="SERVER_API_KEY")
        for _ in range(2):
            with pytest.raises(ApiRefusal, match="SERVER_API_KEY") as caught:
                ask(model, 50)
            assert "not-shown" not in str(caught.value)
        with pytest.raises(ApiRefusal):
            _ = model.abilities
    assert len(script.calls) == 1


@pytest.mark.parametrize("status", ["403", "404"])
def test_a_refused_model_or_path_costs_one_request_and_is_named(status):
    words, calls = failing(status, count=20, error=ApiRefusal)
    assert len(calls) == 1
    assert "http://127.0.0.1" in words
    assert "tiny" in words


def test_a_bad_request_is_not_tried_again_and_its_words_are_cut():
    words, calls = failing("echokey:400", error=ApiRefusal)
    assert len(calls) == 1
    assert "bad key None" in words
    assert len(words) < 500


def test_spent_quota_is_not_waited_for():
    words, calls = failing("429quota", error=ApiRefusal)
    assert "quota is spent" in words
    assert len(calls) == 1


def test_a_server_that_hangs_is_hung_up_on():
    limits = Limits(read_seconds=0.3, attempts=1)
    started = time.monotonic()
    words, (call,) = failing("hang", limits=limits)
    assert "no answer within the time limit" in words
    assert time.monotonic() - started < 3
    assert call.closed is not None


@pytest.mark.parametrize("step", ["slow:1", "slowheaders"])
def test_drops_of_an_answer_do_not_extend_its_time(step):
    started = time.monotonic()
    words, _ = failing(step, limits=Limits(total_seconds=0.3, attempts=1))
    assert "no whole answer within 0.3 s" in words
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("step", ["reset", "truncated", "chunkcut", "ssecut"])
def test_a_cut_answer_is_thrown_away_and_asked_for_again(step):
    with serving(step, "ok") as script:
        assert ask(model_of(script))[0].text == " 42"
    assert len(script.calls) == 2


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("badjson", "not JSON: it starts with '{\"choices"),
        ("html", "login or error page"),
        ("utf8", "not JSON"),
        ("ok:empty", "not JSON"),
        ("ok:text", "no choices: '\"42\"'"),
        ("ok:nochoice", 'no choices: \'{"id"'),
    ],
)
def test_garbage_is_tried_once_more_and_never_an_answer(step, words):
    said, calls = failing(step)
    assert words in said
    assert len(calls) == 2
    with serving(step, "ok") as script:
        assert ask(model_of(script))[0].text == " 42"


def test_nesting_without_end_is_an_error():
    words, _ = failing("deep")
    assert "nested too deeply" in words


def test_an_answer_beyond_the_limit_is_not_read():
    with serving("huge:500") as script:
        with pytest.raises(ApiFault, match="larger than 16 MiB"):
            ask(model_of(script))
        time.sleep(0.1)
        assert script.mebibytes < 64


def test_an_answer_that_is_packed_is_not_unpacked():
    words, _ = failing("gzipbomb:100")
    assert "compressed (gzip)" in words


def test_a_server_that_is_not_there_is_said_to_refuse():
    with serving("ok") as script:
        model = model_of(script)
    with pytest.raises(ApiFault, match=r"no answer: .*(refused|failed).*tried 6 times"):
        ask(model)


def test_redirects_to_another_server_are_not_followed(monkeypatch):
    monkeypatch.setenv("SERVER_API_KEY", "not-shown-0123456789")
    with serving("ok") as other, serving(f"redirect:{other.url}/completions") as script:
        monkeypatch.setenv("SERVER_BASE_URL", script.url)
        with pytest.raises(ApiRefusal, match="redirects to http"):
            ask(api_model(script.url, "tiny", key_env="SERVER_API_KEY"))
    assert not other.calls
    assert script.calls[0].headers["authorization"] == "Bearer not-shown-0123456789"


def test_redirects_in_a_circle_end_at_once():
    assert len(failing("loop", error=ApiRefusal)[1]) == 1


def test_an_answer_of_another_model_is_refused_unless_it_is_named():
    words, _ = failing("wrongmodel", error=ApiRefusal)
    assert "'some-other-model' answers" in words
    with serving("wrongmodel") as script:
        assert ask(model_of(script, served_as="some-other-model"))[0].text == " 42"


@pytest.mark.parametrize("name", ["tiny-2024-07-18", "tiny@main", "tiny"])
def test_a_dated_name_is_the_same_model(name):
    with serving(lambda _: (200, {**ANSWER, "model": name})) as script:
        assert ask(model_of(script))[0].text == " 42"
    assert script.calls


def test_a_log_probability_that_is_not_a_number_is_no_score():
    with serving("ok:nan") as script:
        model = model_of(script)
        assert "loglikelihood" not in model.abilities
        with pytest.raises(InputError, match="cannot score texts"):
            model.loglikelihood([("a", "b")])


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_no_text_is_not_an_empty_text_and_the_other_answers_are_kept(kind):
    words = r"no text \(finish_reason: content_filter\)"
    with serving("ok", "null", "ok") as script, pytest.raises(ApiFault, match=words) as caught:
        ask(model_of(script, limits=Limits(concurrency=1), kind=kind), 3)
    assert [answer and answer.text for answer in caught.value.answers] == [" 42", None, " 42"]


def test_a_stream_that_was_not_asked_for_is_read_to_its_end():
    with serving("sse") as script:
        assert ask(model_of(script))[0].text == " 42"


def test_a_429_stops_all_requests_and_halves_how_many_there_are():
    def two_at_a_time(handler):
        if handler.script.at_once > 2:
            return 429, {"error": "too many"}
        time.sleep(0.01)
        return 200, ANSWER

    with serving(two_at_a_time) as script:
        model = model_of(script, Limits(50, backoff_seconds=0.05, backoff_cap=0.1))
        assert len(ask(model, 50)) == 50
    assert script.most_at_once <= 4
    assert len(script.calls) <= 60


def test_the_width_grows_with_answers_and_is_halved_once_a_pause():
    pace = Pace(Limits(concurrency=6))
    for _ in range(60):
        pace.answered(0, 0)
    assert pace.width == 6
    pace.throttled(10.0, 5.0)
    pace.throttled(10.1, 5.0)
    assert pace.width == 3
    assert pace.delay(11.0, 1) == pytest.approx(4.1)
    assert pace.delay(15.2, 1) == 0


def test_requests_and_tokens_a_minute_are_kept():
    pace = Pace(Limits(requests_per_minute=60, tokens_per_minute=6000))
    assert pace.delay(0.0, 50) == 0
    assert pace.delay(0.0, 10) == 1  # a request a second
    assert pace.delay(1.0, 300) == 0  # larger than a second's tokens: leaves a debt of 200
    assert pace.delay(2.0, 50) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "nonsense"}, None),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, 360),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "9"}, None),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({}, None),
    ],
)
def test_waits_are_read_in_every_form(headers, seconds):
    assert asked_wait(headers) == seconds


@pytest.mark.parametrize("budget", [Budget(requests=3), Budget(tokens=33), Budget(usd=33e-6)])
def test_budgets_end_the_run_before_they_are_overspent_and_count_retries(budget):
    with serving("ok", "reset", "ok") as script:
        model = model_of(script, limits=Limits(1), budget=budget, prices=Prices(1.0, 1.0))
        with pytest.raises(BudgetExhausted, match=r"budget of .* is spent") as caught:
            ask(model, 9)
    # The worst case of a request is 16 tokens; an answer costs 5, one that was cut all 16.
    assert len(script.calls) == {True: 3, False: 2}[budget.requests is not None]
    assert [a is not None for a in caught.value.answers].count(True) >= 1
    assert model.usage.requests == len(script.calls)


def test_usage_is_what_the_server_reports():
    with serving("ok") as script:
        model = model_of(script, prices=Prices(prompt=2.0, generated=10.0))
        ask(model, 3)
    usage = model.usage
    assert (usage.requests, usage.prompt_tokens, usage.generated_tokens) == (3, 9, 6)
    assert usage.usd == pytest.approx((9 * 2 + 6 * 10) / 1e6)
    assert usage.seconds > 0


def test_a_request_has_the_same_name_in_a_run_that_is_resumed():
    with serving("reset", "ok") as script:
        ask(model_of(script))
        ask(model_of(script))
        ask(model_of(script), seed=1)
    names = [call.headers["idempotency-key"] for call in script.calls]
    assert names[0] == names[1] == names[2] != names[3]


def test_settings_are_passed_on_and_stops_beyond_four_are_cut_here():
    with serving("ok") as script:
        model = model_of(script, kind="chat")
        made = ask(model, stop=["a", "b", "c", "d", "2"], temperature=0.5, seed=7)
    body = script.calls[0].body
    assert script.calls[0].path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "question 0"}]
    assert (body["stop"], body["temperature"], body["seed"]) == (["a", "b", "c", "d"], 0.5, 7)
    assert made[0].text == " 4"


def test_the_other_name_of_max_tokens_is_learnt_from_the_server():
    def newer(handler):
        if "max_tokens" in handler.call.body:
            return 400, {"error": "use 'max_completion_tokens' instead"}
        return 200, ANSWER

    with serving(newer) as script:
        model = model_of(script, kind="chat")
        assert len(ask(model, 3)) == 3
        ask(model)
    assert len(script.calls) == 5


def test_a_caller_may_be_inside_an_event_loop():
    async def notebook(script):
        return ask(model_of(script), 2)

    with serving("ok") as script:
        assert len(asyncio.run(notebook(script))) == 2


def test_an_interrupt_ends_what_is_under_way_and_books_it():
    with serving("ok", "hang") as script:
        model = model_of(script, budget=Budget(requests=20))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            ask(model, 9)
        time.sleep(0.2)
    hung = script.calls[1:]
    assert hung
    assert all(call.closed is not None for call in hung)
    assert model.usage.requests == model.exchange.ledger.spent.requests == len(script.calls)


@pytest.mark.parametrize("module", [api_waits, windows])
def test_examples_are_right(module):
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_fingerprints_tell_servers_names_and_what_these_say_apart():
    def listed(revision):
        entry = {"id": "tiny", "revision": revision, "created": time.time()}
        return lambda _: (200, {**ANSWER, "data": [entry]})

    with serving(listed("a")) as script:
        prints = [model_of(script).fingerprint for _ in range(2)]
        script.steps = [listed("b")]
        prints += [model_of(script).fingerprint, model_of(script, prefix="<s>").fingerprint]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
