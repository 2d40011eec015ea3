"""Ensembles of models behind real servers: two that score texts, by other tokenizers, one that
only writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from api_server import ANSWER, MODEL, scoring
from api_server import serving as answering
from command_line import command
from material import glass
from merge_service import QUICKSTART, serving, write_pool

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.execute import Resources
from mergepipe.model.answers import Answers, Remembered
from mergepipe.model.api import Budget, api_model
from mergepipe.model.load import local_model
from mergepipe.model.mixture import Ensemble
from mergepipe.pipeline import (
    Searching,
    ask_models,
    compare,
    name_models,
    prepare,
    search,
)
from mergepipe.pipeline.ensembles import Members

TEXTS = [
    "And the LORD spake unto Moses.\nThen he said, Go!\n",
    "They came to us",
    "It is good, no?",
]
PAIRS = [("And the LORD ", "spake"), ("He went", " home"), ("Go", "")]
PROBES = 3  # what a server is asked to find out what it can do


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """A model with 1024 tokens of its own, which mark spaces by `▁`."""
    return local_model(glass("en", tmp_path_factory.mktemp("en")), "english")


@pytest.fixture(scope="module")
def german():
    return local_model(QUICKSTART / "german", "german")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Our merge service; `id` is the candidate that is the German expert."""
    with serving(write_pool(tmp_path_factory.mktemp("pool"))) as found:
        merge = {"method": "linear", "models": {"german": {}}}
        name = found.post("/v1/candidates", {"merge": merge}).json()["id"]
        yield found, name


@pytest.fixture
def server(english):
    """A server that gives echo and log-probabilities, and counts what it is asked."""
    with scoring(english.module, english.tokenizer, bos="<bos>") as found:
        yield found


@pytest.fixture
def chatting(german):
    """A server that only writes: no echo, no log-probabilities."""

    def answer(handler):
        asked = handler.call.body
        if not handler.path.endswith("/chat/completions"):
            return 404, {"error": "chat only"}
        prompt = asked["messages"][-1]["content"]
        (text,) = german.generate([prompt], stop=asked.get("stop", []), max_tokens=4)
        choice = {"message": {"content": text.text}, "finish_reason": "stop"}
        return 200, {**ANSWER, "choices": [choice]}

    with answering(answer) as found:
        yield found


def asked(url, name, **options):
    host = url.split("/")[2]
    return api_model(url, name, key_env=None, trusted_hosts=[host], **options)


def ensemble(models, answers=None, mix="tokens"):
    kept = answers or Answers()
    return Ensemble({label: Remembered(one, kept) for label, one in models.items()}, mix)


def logprobs(mixture):
    pairs, texts = mixture.loglikelihood(PAIRS), mixture.loglikelihood_rolling(TEXTS)
    return [one.logprob for one in (*pairs, *texts)], [one.bytes for one in (*pairs, *texts)]


@pytest.mark.parametrize("switch", [0.0, 0.2, 1.0])
def test_a_mixture_over_two_servers_is_that_of_the_models_here(
    service, server, german, english, switch
):
    served = {
        "german": asked(service[0].url, service[1]),
        "english": asked(server.url, MODEL),
    }
    weights = {"german": 0.3, "english": 0.7}
    here = ensemble({"german": german, "english": english}).mixture(weights, switch=switch)
    ours, sizes = logprobs(ensemble(served).mixture(weights, switch=switch))
    expected, expected_sizes = logprobs(here)
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert sizes == expected_sizes
    assert ours[2] == 0.0  # of nothing


def test_a_server_is_asked_once_for_each_item_and_not_again_in_a_later_run(
    server, german, tmp_path
):
    def scores(weight):
        models = {"german": german, "english": asked(server.url, MODEL)}
        found = ensemble(models, Answers(tmp_path / "answers.db"))
        for share in (weight, weight / 2, weight / 3):
            mixture = found.mixture({"german": share, "english": 1 - share}, switch=0.1)
            mixture.loglikelihood_rolling(TEXTS)
        return mixture.loglikelihood_rolling(TEXTS)

    first = scores(0.6)
    assert len(server.calls) == PROBES + len(TEXTS)
    assert scores(0.6) == first
    assert len(server.calls) == 2 * PROBES + len(TEXTS)


def test_answers_that_came_before_a_budget_ended_are_kept(server, tmp_path):
    answers = Answers(tmp_path / "answers.db")
    poor = asked(server.url, MODEL, budget=Budget(requests=PROBES + 1))
    with pytest.raises(EnvironmentFault, match="budget"):
        Remembered(poor, answers).trace_texts(TEXTS)
    assert len(server.calls) == PROBES + 1
    rich = Remembered(asked(server.url, MODEL), Answers(tmp_path / "answers.db"))
    rich.trace_texts(TEXTS)
    assert len(server.calls) == 2 * PROBES + 1 + len(TEXTS) - 1


def test_texts_longer_than_the_server_takes_are_traced_in_windows(server, english):
    text = TEXTS[0] * 3
    served = asked(server.url, MODEL, tokenizer=english.tokenizer, max_length=20)
    (trace,) = served.trace_texts([text])
    whole = english.trace_texts([text])[0]
    assert trace.starts == whole.starts
    assert trace.logprobs[:20] == pytest.approx(whole.logprobs[:20], abs=1e-4)
    (score,) = served.loglikelihood_rolling([text])
    assert sum(trace.logprobs) == pytest.approx(score.logprob)


def test_a_server_that_only_writes_has_a_vote_and_no_score(chatting, german):
    models = {"german": german, "chat": asked(chatting.url, MODEL, kind="chat")}
    weights = {"german": 0.4, "chat": 0.6}
    mixture = ensemble(models, mix="votes").mixture(weights)
    said = mixture.generate(["12+3=", "47-8="], stop=["\n"], max_tokens=4)
    expected = german.generate(["12+3=", "47-8="], stop=["\n"], max_tokens=4)
    assert [one.text for one in said] == [one.text for one in expected]
    with pytest.raises(InputError, match=r"member 'chat' has no answer to 'loglikelihood'.*votes"):
        ensemble(models).mixture(weights).loglikelihood(PAIRS)


def recipe(folder, models, **fields):
    file = folder / "recipe.yaml"
    folder.mkdir(exist_ok=True)
    data = {"mergepipe": 1, "ensemble": models, **fields}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def evaluation(name, count):
    split = {"search": count, "holdout": count}
    data = str(QUICKSTART / "heldout" / f"{name}.jsonl")
    return {"use": "bits_per_byte", "name": name, "data": data, "split": split}


def test_a_search_over_two_servers_asks_each_item_once(server, service, tmp_path, monkeypatch):
    lines = (QUICKSTART / "heldout" / "english.jsonl").read_text().splitlines()[:12]
    short = [json.dumps({"text": json.loads(line)["text"][:60]}) for line in lines]
    (tmp_path / "short.jsonl").write_text("\n".join(short))
    monkeypatch.setenv("GERMAN_BASE_URL", service[0].url)
    monkeypatch.setenv("ENGLISH_BASE_URL", server.url)
    searched = {"search": [0.05, 1], "log": True}
    models = {
        "german": {"model": service[1], "key_env": "GERMAN_API_KEY", "weight": searched},
        "english": {"model": MODEL, "key_env": "ENGLISH_API_KEY", "weight": searched},
    }
    file = recipe(
        tmp_path / "served",
        {"switch": searched, "models": models},
        evaluate=[{**evaluation("english", 4), "data": str(tmp_path / "short.jsonl")}],
        search={"optimizer": "CMA", "budget": 16},
        output={"path": "out"},
    )
    prepared = prepare(file, resources=Resources(threads=1))
    found = search(prepared, Searching(workers=2, cache=tmp_path / "cache.db"))
    assert len(server.calls) == PROBES + 12  # 4 to search on, 4 to choose by, 4 to report
    assert {one.state for one in found.trials} == {"complete"}
    over = {one.over for one in found.verdict.gains}
    assert over == {"the untuned mixture", found.verdict.best_input, "uniform"}
    assert found.verdict.best_input in models
    best = prepare(found.best, resources=Resources(threads=1))
    mixture = Members(best, tmp_path / "answers.db").mixture(best.ensemble)
    (text,) = mixture.loglikelihood_rolling([json.loads(short[0])["text"]])
    assert text.logprob < 0
    assert len(server.calls) == 2 * PROBES + 12
    scores = compare(best, notice=lambda _: None)
    names = list(dict.fromkeys(row.model for row in scores.rows))
    assert names == ["german", "english", "uniform", "mixture"]


def test_a_recipe_cannot_send_requests_into_this_machine_by_itself(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    models = {
        "here": str(QUICKSTART / "german"),
        "there": {"model": MODEL, "base_url": server.url, "key_env": None},
    }
    file = recipe(tmp_path, {"models": models}, evaluate=[evaluation("german", 2)])
    with pytest.raises(InputError, match=r"leads to 127\.0\.0\.1"):
        prepare(file)
    assert not server.calls


THERE = {"model": "m", "base_url": "https://example.com/v1", "key_env": None}
HERE = "./german"


@pytest.mark.parametrize(
    ("models", "fields", "says"),
    [
        ({"a": HERE, "b": THERE}, {"mix": "bytes"}, "needs whole distributions, which no server"),
        ({"a": HERE, "b": THERE}, {"mix": "product"}, "needs whole distributions"),
        ({"a": HERE, "b": {**THERE, "kind": "chat"}}, {}, "no log-probabilities of texts.*votes"),
        ({"a": HERE, "b": {**THERE, "key": "sk"}}, {}, r"models.b.key: unknown field"),
        ({"a": HERE, "b": {"path": HERE, "weight": -1}}, {}, "b.weight: must be greater than"),
        ({"a": HERE, "b": {**THERE, "prefix": "sk-" + 40 * "a"}}, {}, "looks like a secret"),
        ({"a": HERE}, {}, "at least 2"),
        ({"a": HERE, "uniform": HERE}, {}, "'uniform' is a name in tables"),
        ({"a": HERE, "b": THERE}, {"switch": 2}, "ensemble.switch: must be less than or equal"),
        ({"a": HERE, "b": THERE}, {"answer": "("}, "no regular expression"),
        ({"a": HERE, "b": "./python"}, {"mix": "bytes", "answer": "x"}, "nothing is voted on"),
        ({"a": HERE, "b": THERE}, {"mixes": "votes"}, "did you mean 'mix'"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_its_line(tmp_path, models, fields, says):
    file = recipe(tmp_path, {**fields, "models": models}, evaluate=[evaluation("german", 2)])
    with pytest.raises(InputError, match=says) as error:
        prepare(file)
    assert "recipe.yaml:" in str(error.value)


def test_what_a_merge_has_means_nothing_beside_an_ensemble(tmp_path):
    models = {"a": str(QUICKSTART / "german"), "b": str(QUICKSTART / "python")}
    file = recipe(tmp_path, {"models": models}, tokenizer="union")
    with pytest.raises(InputError, match="'tokenizer' has no meaning beside an ensemble"):
        prepare(file)


def test_the_shipped_recipe_can_be_prepared():
    file = Path(__file__).parent.parent / "recipes" / "search" / "ensemble.yaml"
    prepared = prepare(file)
    assert prepared.ensemble is not None
    assert prepared.searched is not None


def test_the_recipe_of_an_ensemble_is_a_model_to_eval_and_no_other_recipe_is(tmp_path):
    models = {"a": str(QUICKSTART / "german"), "b": {"path": str(QUICKSTART / "python")}}
    file = recipe(tmp_path, {"mix": "votes", "models": models})
    (named,) = name_models([f"mixed={file}"])
    (model,) = ask_models([named], dtype="float32", device="cpu", notice=lambda _: None)
    assert (model.name, model.abilities) == ("mixed", {"generate"})
    with pytest.raises(InputError, match="only those of ensembles can be asked"):
        name_models([str(QUICKSTART / "recipe.yaml")])


@pytest.mark.slow
def test_a_tuned_mixture_is_better_than_its_members_on_items_it_never_saw(tmp_path, capsys):
    file = Path(__file__).parent.parent / "recipes" / "search" / "ensemble.yaml"
    words = ("--out", tmp_path / "out", "--budget", 40, "--no-cache", "--json")
    said = command(capsys, "search", file, *words)
    assert said.status == 0, said.err
    found = json.loads(said.out)["search"]
    gains = {one["over"]: one for one in found["gains"] if one["evaluation"] is None}
    assert set(gains) == {"the untuned mixture", found["best_input"], "uniform"}
    assert all(one["real"] and one["part"] == "final" for one in gains.values())
    assert not list(tmp_path.glob("out"))
