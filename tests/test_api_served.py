"""A real server, `transformers serve`, over a real model: it writes what the model here writes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergepipe.errors import InputError
from mergepipe.model.api import api_model
from mergepipe.model.api_faults import ApiRefusal
from mergepipe.model.load import local_model

FOLDER = Path(__file__).parent.parent / "recipes" / "quickstart" / "base"
# A turn is its text, so that a conversation of one is a prompt that the model can go on with.
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
PROMPTS = ["def add(a, b):", "The king of", "12+30=", "Die Straße ist größer"]
START_SECONDS = 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "base"
    shutil.copytree(FOLDER, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def host(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = (folder.parent / "log.txt").open("wb")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(port, server, folder.parent / "log.txt")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def wait_for(port, server, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(log.read_text()[-2000:])


def served(host, folder, **options):
    return api_model(
        f"http://{host}/v1", str(folder), key_env=None, trusted_hosts=[host], **options
    )


@pytest.mark.parametrize(("kind", "prefix"), [("completions", "<bos>"), ("chat", "")])
@pytest.mark.parametrize("stop", [[], ["\n"], list("vwxyz")])
def test_it_writes_what_the_model_here_writes(host, folder, kind, prefix, stop):
    model = served(host, folder, kind=kind, prefix=prefix)
    ours = model.generate(PROMPTS, stop=stop, max_tokens=12)
    expected = local_model(folder, "here").generate(PROMPTS, stop=stop, max_tokens=12)
    assert [g.text for g in ours] == [g.text for g in expected]
    assert model.usage.requests == len(PROMPTS)
    assert model.usage.generated_tokens >= sum(g.tokens for g in expected)


def test_it_is_found_to_chat_and_not_to_score(host, folder):
    model = served(host, folder, prefix="<bos>")
    assert model.abilities == {"generate", "chat"}
    with pytest.raises(InputError, match="no log-probabilities"):
        model.loglikelihood([("a", "b")])
    said = model.generate([[{"role": "user", "content": PROMPTS[0]}]], stop=[], max_tokens=12)
    assert (
        said[0].text
        == local_model(folder, "here").generate(PROMPTS[:1], stop=[], max_tokens=12)[0].text
    )


def test_another_name_is_refused_in_its_words(host):
    model = api_model(f"http://{host}/v1", "other/model", key_env=None, trusted_hosts=[host])
    with pytest.raises(ApiRefusal, match=r"status 400: .*pinned to"):
        model.generate(["a"], stop=[], max_tokens=1)
