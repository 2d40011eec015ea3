"""Where a key may go: to its own host, and into no log, error, traceback or file."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from api_server import serving

from mergepipe.errors import InputError
from mergepipe.model.api import Limits, api_model
from mergepipe.model.api_faults import ApiFault

KEY = "Zebra0123456789Quagga"  # has no known shape: nothing masks it by chance
HERE = Path(__file__).parent
STEPS = ["echokey:500", "echokey:400", "echokey:422", "reset", "truncated", "hang", "badjson"]

DRIVER = """
    import logging, sys, traceback
    logging.basicConfig(level=logging.DEBUG, filename="log.txt")
    from mergepipe.model.api import Limits, api_model
    limits = Limits(attempts=1, read_seconds=0.2, backoff_seconds=0.01)
    model = api_model(sys.argv[1], "tiny", key_env="SERVER_API_KEY", limits=limits)
    last = None
    with open("tracebacks.txt", "w") as file:
        for _ in range(int(sys.argv[2])):
            try:
                model.generate(["q"], stop=[], max_tokens=1)
            except Exception as error:
                last = error
                assert error.__context__ is None
                stack = traceback.TracebackException.from_exception(error, capture_locals=True)
                file.writelines(stack.format())
        print(model, repr(model.exchange), file=file)
    print(model.fingerprint)
"""


def test_a_key_is_in_no_log_traceback_or_output_though_the_server_repeats_it(tmp_path):
    with serving(*STEPS, "ok", "echokey:401") as script:
        environment = {
            **os.environ,
            "SERVER_API_KEY": KEY,
            "SERVER_BASE_URL": script.url,
            "OPENAI_LOG": "debug",
            "PYTHONPATH": str(HERE.parent),
        }
        command = [sys.executable, "-c", textwrap.dedent(DRIVER), script.url, str(len(STEPS) + 1)]
        done = subprocess.run(
            command, capture_output=True, cwd=tmp_path, env=environment, timeout=60, check=False
        )
    assert done.returncode == 1  # the last call's 401 ends it, with a traceback
    assert {call.headers["authorization"] for call in script.calls} == {f"Bearer {KEY}"}
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert min(map(len, files)) > 1000
    for said in (*files, done.stdout, done.stderr):
        assert KEY.encode() not in said
    assert b"bad key Bearer [key]" in b"".join(files)


def test_an_answer_that_repeats_the_key_is_masked(monkeypatch):
    def repeat(handler):
        return 200, {"choices": [{"text": handler.headers["authorization"]}]}

    with serving(repeat) as script:
        monkeypatch.setenv("SERVER_API_KEY", KEY)
        monkeypatch.setenv("SERVER_BASE_URL", script.url)
        model = api_model(script.url, "tiny", key_env="SERVER_API_KEY")
        assert model.generate(["q"], stop=[], max_tokens=1)[0].text == "Bearer [key]"


def test_a_key_written_in_place_of_its_name_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="must name an environment variable") as caught:
        api_model("https://api.openai.com/v1", "tiny", key_env=f"sk-{KEY}")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url", [f"https://me:{KEY}@host.example/v1", f"https://host.example/?k={KEY}"]
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="may be secret") as caught:
        api_model(url, "tiny", key_env=None)
    assert KEY not in str(caught.value)


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        api_model("https://api.openai.com/v1", "tiny")


def test_a_key_with_a_line_break_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\nx: y")
    with pytest.raises(InputError, match="characters that no key has") as caught:
        api_model("https://api.openai.com/v1", "tiny")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/", "inside this machine or its network"),
        ("http://[::1]:22", "inside this machine or its network"),
        ("http://2130706433/v1", "inside this machine or its network"),
        ("http://localhost:8000/v1", "inside this machine or its network"),
        ("https://10.1.2.3/v1", "inside this machine or its network"),
        ("file:///etc/passwd", "no http address"),
        ("gopher://host/", "no http address"),
        ("http://8.8.8.8/v1", "trusted hosts only"),
        ("https://host:port/v1", "no address"),
    ],
)
def test_addresses_that_the_operator_has_not_trusted_are_refused(monkeypatch, url, words):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match=words):
        api_model(url, "tiny", key_env=None)


def test_a_key_does_not_go_to_another_host_than_its_own(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for own in ("", "https://own.example/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", own)
        with pytest.raises(InputError, match="not meant for this host"):
            api_model("https://8.8.8.8/v1", "tiny")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://8.8.8.8/v1")
    assert api_model("https://8.8.8.8/v1", "tiny").name == "tiny"


def test_a_key_is_not_sent_in_the_clear_to_another_machine(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://10.1.2.3/v1")
    with pytest.raises(InputError, match="show the key"):
        api_model("http://10.1.2.3/v1", "tiny")


def test_netrc_is_not_read_and_what_the_client_would_tell_is_not_sent(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {KEY}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens
    with serving("ok") as script:
        host = script.url.split("/")[2]
        model = api_model(script.url, "tiny", key_env=None, trusted_hosts=[host])
        model.generate(["q"], stop=[], max_tokens=1)
    said = {name.lower(): value for name, value in script.calls[0].headers.items()}
    assert not {"authorization", "openai-organization", "cookie"} & set(said)
    assert not [name for name in said if name.startswith("x-stainless")]
    assert KEY not in str(said)


def test_a_proxy_is_used_for_other_machines(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving("ok") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        model = api_model(
            "http://192.0.2.1:8000/v1", "tiny", key_env=None, trusted_hosts=["192.0.2.1:8000"]
        )
        assert model.generate(["q"], stop=[], max_tokens=1)[0].text == " 42"
    assert proxy.calls[0].path == "http://192.0.2.1:8000/v1/completions"


# Whom it is for, how many days it lasts, whether its maker is known.
CERTIFICATES = {
    "self-signed": ("IP:127.0.0.1", 2, False),
    "other host": ("DNS:other.example", 2, True),
    "expired": ("IP:127.0.0.1", -1, True),
    "trusted": ("IP:127.0.0.1", 2, True),
}


def make_certificate(folder, host, days):
    (folder / "host.txt").write_text(f"subjectAltName={host}")
    for command in (
        "openssl req -newkey rsa:2048 -nodes -subj /CN=x -keyout key.pem -out asked.csr",
        "openssl x509 -req -in asked.csr -signkey key.pem -extfile host.txt -out cert.pem -days",
    ):
        words = [*command.split(), *([str(days)] if command.endswith("-days") else [])]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("case", CERTIFICATES)
def test_only_a_valid_certificate_of_a_known_authority_for_this_host_is_accepted(
    tmp_path, monkeypatch, case
):
    host, days, known = CERTIFICATES[case]
    make_certificate(tmp_path, host, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with serving("ok", context=context) as script:
        host = script.url.split("/")[2]
        model = api_model(
            script.url, "tiny", key_env=None, trusted_hosts=[host], limits=Limits(attempts=1)
        )
        if case == "trusted":
            assert model.generate(["q"], stop=[], max_tokens=1)[0].text == " 42"
            return
        with pytest.raises(ApiFault, match="its certificate is refused"):
            model.generate(["q"], stop=[], max_tokens=1)
    assert not script.calls


def test_where_the_client_is_missing_the_extra_is_named(tmp_path):
    (tmp_path / "openai.py").write_text("raise ImportError(\"No module named 'openai'\")\n")
    code = "import mergepipe.model.api"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE.parent}"},
        check=False,
    )
    assert "pip install 'mergepipe[api]'" in done.stderr
