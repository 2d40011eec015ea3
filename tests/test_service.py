"""The merge service as its clients see it: candidates by coefficients, asked over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import write_json
from merge_service import ADAPTERS, MODELS, QUICKSTART, serving, write_pool

from mergepipe.errors import InputError
from mergepipe.execute import Resources
from mergepipe.lora.composed import ComposedModels
from mergepipe.lora.composing import open_adapters
from mergepipe.model.api import api_model
from mergepipe.pipeline import live_model, prepare
from mergepipe.search.remote import remote_pool
from mergepipe.service.pool import read_pool

TEXTS = [
    json.loads(line)["text"]
    for line in (QUICKSTART / "heldout" / "german.jsonl").read_text().splitlines()[:3]
]
PAIRS = [("12+4=", "16\n"), ("Am Anfang ", "war das Wort"), ("47-8=", "39\n")]
NAMES = ("sum", "difference", "german")
MERGE = {"method": "task_arithmetic", "base": "base", "models": {"german": {"weight": 0.5}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    names = ["sum", "difference"]
    with serving(write_pool(tmp_path_factory.mktemp("pool"), names)) as found:
        yield found


@pytest.fixture
def pool(served, monkeypatch):
    monkeypatch.setenv("MERGEPIPE_SERVICE_BASE_URL", served.url)
    return remote_pool(served.url)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same merge, made in this process."""
    folder = tmp_path_factory.mktemp("here")
    write_json(folder / "recipe.yaml", {"mergepipe": 1, "models": MODELS, "merge": MERGE})
    ready = prepare(folder / "recipe.yaml", resources=Resources(threads=1))
    return live_model(ready, ready.plans[-1])


def test_names_and_sizes_are_told_but_no_paths_or_weights(served):
    said = served.ask("GET", "/v1/pool")
    models = {one["name"]: one for one in said.json()["models"]}
    assert models["sum"] == {"name": "sum", "kind": "adapter", "parameters": 40960, "rank": 4}
    assert models["german"]["parameters"] == 1361120
    assert said.json()["methods"]["task_arithmetic"] == {"weight": [-1.5, 1.5], "lambda": [0, 2]}
    assert "quickstart" not in said.text
    assert "safetensors" not in said.text


def test_scores_are_those_of_the_merge_made_here_to_the_last_bit(pool, here):
    candidate = pool.candidate(MERGE)
    assert candidate.loglikelihood(PAIRS) == here.loglikelihood(PAIRS)
    assert candidate.loglikelihood_rolling(TEXTS) == here.loglikelihood_rolling(TEXTS)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_it_writes_is_what_the_merge_here_writes(pool, here, temperature):
    asked = {"stop": ["\n"], "max_tokens": 12, "temperature": temperature, "seed": 3}
    prompts = [prompt for prompt, _ in PAIRS]
    assert pool.candidate(MERGE).generate(prompts, **asked) == here.generate(prompts, **asked)


def test_the_mean_loss_is_over_tokens(served):
    said = served.post(
        "/v1/loss", {"candidate": served.candidate(), "pairs": [list(pair) for pair in PAIRS]}
    ).json()
    total = sum(one["logprob"] for one in said["scores"])
    assert said["loss"] == -total / sum(one["tokens"] for one in said["scores"])


def test_a_composition_is_that_of_the_adapters_here(pool):
    adapters = open_adapters({name: ADAPTERS / name for name in ("sum", "difference")})
    local = ComposedModels(QUICKSTART / "base", adapters).composed([0.5, 1.0], [0.7, -0.2])
    remote = pool.composed([0.5, 1.0], [0.7, -0.2])
    assert remote.loglikelihood(PAIRS) == local.loglikelihood(PAIRS)


def test_any_openai_client_can_score_and_write(served, here, monkeypatch):
    """Our own client for OpenAI-compatible servers, through echo and logprobs."""
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    model = api_model(served.url, served.candidate())
    assert {"loglikelihood", "rolling", "generate"} <= model.abilities
    for theirs, ours in zip(model.loglikelihood(PAIRS), here.loglikelihood(PAIRS), strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
        assert (theirs.tokens, theirs.bytes, theirs.greedy) == (
            ours.tokens,
            ours.bytes,
            ours.greedy,
        )
    asked = {"stop": ["\n"], "max_tokens": 8}
    (theirs,), (ours,) = model.generate(["12+4="], **asked), here.generate(["12+4="], **asked)
    assert theirs.text == ours.text


def test_token_ids_are_taken_as_prompts_and_scored_alike(served, here):
    ids = [here.loaded.special.prefix, *here.loaded.encode([TEXTS[0]])[0]][:40]
    body = {"model": served.candidate(), "max_tokens": 0, "echo": True, "logprobs": 0}
    choice = served.post("/v1/completions", {**body, "prompt": ids}).json()["choices"][0]
    with torch.inference_mode():
        table = here.module(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [table[at, token].item() for at, token in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"] == [None, *wanted]
    assert choice["logprobs"]["text_offset"][0] == 0


def test_a_chat_needs_a_template(served):
    body = {"model": served.candidate(), "messages": [{"role": "user", "content": "Hello"}]}
    said = served.post("/v1/chat/completions", body)
    assert said.status_code == 400
    assert "chat template" in said.json()["error"]["message"]


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ({**MERGE, "method": "slerp"}, "'slerp' is not allowed here"),
        ({**MERGE, "models": {"german": {"weight": 3}}}, "weight = 3 is not in [-1.5, 1.5]"),
        ({**MERGE, "models": {"german": {"weight": [0.1, 9]}}}, "weight = 9"),
        ({**MERGE, "models": {"germn": {"weight": 1}}}, "germn"),
        ({**MERGE, "models": {"german": {"wieght": 1}}}, "did you mean 'weight'"),
        ({**MERGE, "where": [{"tensors": "*", "method": "ties"}]}, "'ties' is not allowed"),
        ({"method": "lora_composition", "models": {"german": {"weight": 1}}}, "no such adapter"),
        ({"method": "lora_composition", "models": {"sum": {"density": 2}}}, "not in [0, 1]"),
        ({"models": {}}, "names no method"),
    ],
)
def test_a_merge_that_is_not_allowed_is_refused_by_name(served, merge, says):
    said = served.post("/v1/candidates", {"merge": merge})
    assert said.status_code == 400
    assert says in said.json()["error"]["message"]


def test_the_same_post_is_the_same_candidate_and_is_listed(served):
    first, again, other = (served.candidate(weight) for weight in (0.25, 0.25, 0.3))
    assert first == again != other
    listed = {
        one["id"]: one["fingerprint"] for one in served.ask("GET", "/v1/models").json()["data"]
    }
    assert {first, other} <= set(listed)
    assert listed[first] != listed[other]


def test_the_latest_candidates_stay_in_memory_and_others_are_made_again(tmp_path):
    room = 2 * 1361120 * 4
    with serving(write_pool(tmp_path, limits={"memory": room + 10})) as found:
        ids = [found.candidate(weight) for weight in (0.1, 0.2, 0.3)]
        body = {"pairs": [list(PAIRS[0])]}
        losses = [found.post("/v1/loss", {"candidate": i, **body}).json()["loss"] for i in ids]
        assert "mergepipe_candidates_held 2\n" in found.ask("GET", "/metrics").text
        again = [found.post("/v1/loss", {"candidate": i, **body}).json()["loss"] for i in ids]
        assert losses == again
        assert len(set(losses)) == 3


def test_a_service_that_has_forgotten_a_candidate_is_told_of_it_again(tmp_path, monkeypatch):
    """As after it was killed: a search goes on."""
    file = write_pool(tmp_path)
    with serving(file) as found:
        monkeypatch.setenv("MERGEPIPE_SERVICE_BASE_URL", found.url)
        candidate = remote_pool(found.url).candidate(MERGE)
        before, port = candidate.loglikelihood(PAIRS), found.port
    with serving(file, port=port):
        assert candidate.loglikelihood(PAIRS) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": {"tise": None}}, "did you mean 'ties'"),
        ({"base": "bose"}, "did you mean 'base'"),
        ({"limits": {"memory": "lots"}}, "not a size"),
        ({"paths": 1}, "paths"),
        ({"methods": {"linear": {"weight": [1, 0]}}}, "is empty"),
    ],
)
def test_a_pool_with_faults_is_refused_with_the_line(tmp_path, change, says):
    with pytest.raises(InputError, match=r"pool\.yaml:\d+") as caught:
        read_pool(write_pool(tmp_path, **change))
    assert says in str(caught.value)


def test_the_command_serves_until_it_is_stopped(tmp_path):
    command = [sys.executable, "-m", "mergepipe", "serve", str(write_pool(tmp_path)), "--port"]
    with subprocess.Popen([*command, "18973"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "serving http://127.0.0.1:18973/v1" in process.stderr.readline()
            time.sleep(0.1)
        finally:
            process.terminate()
        assert process.wait(15) == 143
