"""What strangers may try on a merge service, and what it tells them."""

from __future__ import annotations

import json
import logging
import resource
import socket
import ssl
import stat
import subprocess
import time

import pytest
from attempts import wait_for
from merge_service import QUICKSTART, serving, write_pool

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.execute import Resources
from mergepipe.service.keys import add_key, holder_of, read_keys
from mergepipe.service.pool import Limits, read_pool
from mergepipe.service.quotas import Quotas
from mergepipe.service.serving import Address, guarded
from mergepipe.service.strict import NotStrictError, read_json

MERGE = {"method": "linear", "models": {"german": {"weight": 1}}}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A service with two keys; small limits."""
    folder = tmp_path_factory.mktemp("keyed")
    limits = {"body": "100KB", "header_seconds": 0.6, "requests_per_minute": 200}
    file = write_pool(folder, keys="./keys", hosts=["merge.example.org"], limits=limits)
    keys = {name: add_key(folder / "keys", name) for name in ("alice", "bob")}
    with serving(file) as served:
        served.keys = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
        served.folder = folder
        yield served


def raw(served, data, *, wait=5.0):
    """Send bytes as they are; give what comes back until the server hangs up or `wait` is over."""
    found = b""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(wait)
        connection.sendall(data)
        try:
            while piece := connection.recv(65536):
                found += piece
        except TimeoutError:
            found += b"(still open)"
    return found


def head(served, *lines, method="POST", path="/v1/candidates"):
    key = served.keys["alice"]["authorization"]
    first = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {key}"]
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


# Keys


@pytest.mark.parametrize("path", ["/v1/pool", "/v1/models", "/metrics", "/nothing"])
@pytest.mark.parametrize("key", [None, "Bearer wrong", "Basic x", "Bearer", "Bearer \xff"])
def test_nothing_is_told_without_a_key_that_is_known(keyed, path, key):
    headers = {} if key is None else {"authorization": key.encode("latin-1")}
    said = keyed.ask("GET", path, headers=headers)
    assert said.status_code == 401
    assert said.headers["www-authenticate"] == "Bearer"


def test_whether_it_is_up_is_told_to_everybody(keyed):
    assert keyed.ask("GET", "/health").json() == {"status": "ok"}


def test_every_known_key_is_compared_in_constant_time(monkeypatch, tmp_path):
    keys = {name: add_key(tmp_path / "keys", name) for name in ("a", "b", "c")}
    known, compared = read_keys(tmp_path / "keys"), []
    import hmac

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    assert holder_of(f"Bearer {keys['a']}", known) == "a"
    assert holder_of("Bearer wrong", known) is None
    assert compared == 2 * list(known.values())


def test_the_keys_file_holds_digests_that_nobody_else_can_read(tmp_path):
    key = add_key(tmp_path / "keys", "alice")
    assert key not in (tmp_path / "keys").read_text()
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    with pytest.raises(InputError, match="already"):
        add_key(tmp_path / "keys", "alice")
    with pytest.raises(InputError, match="letters"):
        add_key(tmp_path / "keys", "al ice\nroot sha256:00")


@pytest.mark.parametrize(
    ("pool", "address"),
    [({}, Address("0.0.0.0")), ({}, Address("192.0.2.7")), ({"keys": "./keys"}, Address())],
)
def test_it_does_not_begin_without_keys_where_others_could_ask(tmp_path, pool, address):
    file = write_pool(tmp_path, **pool)
    with pytest.raises(InputError, match="there are no keys"):
        guarded(read_pool(file), address, Resources())


def test_a_key_sees_its_own_candidates_only(keyed):
    mine = keyed.post("/v1/candidates", {"merge": MERGE}, headers=keyed.keys["alice"]).json()["id"]
    body = {"candidate": mine, "texts": ["Am Anfang"]}
    assert keyed.post("/v1/loss", body, headers=keyed.keys["alice"]).status_code == 200
    assert keyed.post("/v1/loss", body, headers=keyed.keys["bob"]).status_code == 404
    assert keyed.ask("GET", "/v1/models", headers=keyed.keys["bob"]).json()["data"] == []


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/files/../../etc/passwd",
        "/files/%2e%2e%2f%2e%2e%2fetc/passwd",
        "/..%5c..%5cetc/passwd",
        "//etc/passwd",
        "/v1/%00",
        "/v1/models/../../pool.yaml",
    ],
)
def test_there_are_no_files_behind_paths(keyed, path):
    said = raw(keyed, head(keyed, "Connection: close", method="GET", path=path))
    assert said.startswith(b"HTTP/1.1 404")
    assert b"root:" not in said
    assert b"pool: 1" not in said


@pytest.mark.parametrize(
    "body",
    [
        {"merge": MERGE, "models": {"x": "/etc"}},
        {"merge": MERGE, "models": {"x": {"path": "https://example.org/model"}}},
        {"merge": MERGE, "output": {"path": "/tmp/out"}},
        {"merge": MERGE, "plugins": ["x.py"]},
        {"merge": MERGE, "tokenizer": "/etc"},
    ],
)
def test_a_post_cannot_name_other_models_or_places(keyed, body):
    said = keyed.post("/v1/candidates", body, headers=keyed.keys["alice"])
    assert said.status_code == 403
    assert "not the client's to say" in said.json()["error"]["message"]


def test_a_path_as_a_label_is_no_model(keyed):
    merge = {"method": "linear", "models": {str(QUICKSTART / "german"): {"weight": 1}}}
    said = keyed.post("/v1/candidates", {"merge": merge}, headers=keyed.keys["alice"])
    assert said.status_code == 400


# Bodies


def test_a_body_that_says_it_is_large_is_refused_before_it_comes(keyed):
    said = raw(keyed, head(keyed, "Content-Length: 1000000000"))
    assert said.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in said.lower()


def send_often(connection, data, count):
    for _ in range(count):
        connection.sendall(data)


def test_a_body_without_an_end_is_cut_at_the_limit(keyed):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", keyed.port)) as connection:
        connection.settimeout(5)
        connection.sendall(head(keyed, "Transfer-Encoding: chunked"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_often(connection, chunk, 2000)  # more than a hundred megabytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_body_that_never_comes_is_not_waited_for(keyed):
    began = time.monotonic()
    said = raw(keyed, head(keyed, "Content-Length: 500") + b'{"merge"')
    assert said.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("length", ["-5", "x", "1, 2"])
def test_a_length_that_is_none_is_refused(keyed, length):
    assert raw(keyed, head(keyed, f"Content-Length: {length}")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[" * 100_000, "levels deep"),
        ('{"merge": {}, "merge": {}}', "twice"),
        ('{"merge": NaN}', "NaN"),
        ('{"merge": -Infinity}', "Infinity"),
        ('{"merge": 1e999}', "too large"),
        ("{", "not JSON"),
        (b'{"merge": "\xff"}', "not JSON"),
        ("[]", ""),
        ("null", ""),
        ('{"merge": "\\ud800"}', ""),
        (json.dumps({"merge": {"method": ["linear"] * 3}}), "names no method"),
        (json.dumps({"merge": {"method": "linear", "models": 3}}), ""),
        (json.dumps({"merge": {"method": "linear", "where": {"a": 3}}}), ""),
    ],
)
def test_bodies_that_are_no_plain_json_are_refused(keyed, body, says):
    said = keyed.post("/v1/candidates", body, headers=keyed.keys["alice"])
    assert said.status_code == 400
    assert says in said.json()["error"]["message"]


def test_strings_full_of_brackets_are_not_deep():
    assert read_json(json.dumps({"text": '[[{\\"' * 1000}).encode())
    with pytest.raises(NotStrictError, match="deep"):
        read_json(b'{"text": ' + b"[" * 33 + b"]" * 33 + b"}")


# Many, and slow


def test_half_open_connections_keep_nobody_out_and_are_ended(keyed):
    slow = [socket.create_connection(("127.0.0.1", keyed.port)) for _ in range(100)]
    for connection in slow:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
    began = time.monotonic()
    assert keyed.ask("GET", "/health").status_code == 200
    assert time.monotonic() - began < 1
    for connection in slow:
        connection.settimeout(5)
        assert connection.recv(100) == b""
        connection.close()


def test_quotas_are_of_each_key_and_say_when_they_are_over():
    quotas = Quotas(Limits(requests_per_minute=2, candidates_per_day=1))
    assert [quotas.use("a", now, requests=1) is None for now in (0, 1, 2)] == [True, True, False]
    assert quotas.use("a", 50, requests=1).wait == 10
    assert quotas.use("b", 2, requests=1) is None
    assert quotas.use("a", 60, requests=1) is None
    assert quotas.use("a", 60, candidates=1) is None
    assert quotas.use("a", 60, candidates=1).what == "candidates"


def test_used_up_quotas_are_answered_with_when_to_come_back(tmp_path):
    limits = {"requests_per_minute": 3, "tokens_per_day": 5}
    with serving(write_pool(tmp_path, limits=limits)) as served:
        body = {"candidate": served.candidate(), "texts": ["Am Anfang schuf Gott"]}
        assert served.post("/v1/loss", body).status_code == 200
        tokens = served.post("/v1/loss", body)
        assert (tokens.status_code, "tokens" in tokens.text) == (429, True)
        assert 86000 < int(tokens.headers["retry-after"]) <= 86400


def test_what_takes_too_long_is_given_up_and_others_go_on(tmp_path):
    with serving(write_pool(tmp_path, limits={"seconds": 0.3, "waiting": 1})) as served:
        candidate = served.candidate()
        many = {"candidate": candidate, "texts": ["Am Anfang schuf Gott " * 100] * 12}
        assert served.post("/v1/loss", many).status_code == 504
        few = {"candidate": candidate, "texts": ["Am Anfang"]}
        for _ in range(100):
            said = served.post("/v1/loss", few)
            if said.status_code == 200:
                break
            time.sleep(0.2)
        assert said.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 100_000}, 400),
        ("/v1/completions", {"prompt": "a " * 5000, "max_tokens": 1}, 400),
        ("/v1/completions", {"prompt": [-1], "max_tokens": 1}, 400),
        ("/v1/completions", {"prompt": [10**9], "max_tokens": 1}, 400),
        ("/v1/completions", {"prompt": [], "max_tokens": 1}, 400),
        ("/v1/completions", {"prompt": "a", "best_of": 5}, 400),
        ("/v1/completions", {"prompt": "a", "stream": True}, 400),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400),
        ("/v1/completions", {"prompt": "a", "max_tokens": 8, "logprobs": 1}, 400),
    ],
)
def test_questions_beyond_the_limits_are_refused(keyed, path, body, status):
    headers = keyed.keys["bob"]
    candidate = keyed.post("/v1/candidates", {"merge": MERGE}, headers=headers).json()["id"]
    said = keyed.post(path, {"model": candidate, **body}, headers=headers)
    assert said.status_code == status
    assert set(said.json()) == {"error"}


# Other sites


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_other_host_names_are_refused_as_after_dns_rebinding(keyed, host):
    said = raw(keyed, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("host", ["merge.example.org", "LOCALHOST:1234", "127.0.0.1"])
def test_its_own_host_names_are_heard(keyed, host):
    assert keyed.ask("GET", "/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_pages_of_other_sites_are_refused_and_never_allowed_by_cors(keyed, origin):
    said = keyed.ask("GET", "/health", headers={"origin": origin})
    assert said.status_code == 403
    options = keyed.ask("OPTIONS", "/v1/loss", headers={"origin": origin, **keyed.keys["bob"]})
    assert not [name for name in options.headers if name.startswith("access-control")]


def test_pages_run_no_scripts_and_are_in_no_frame(keyed):
    page = keyed.ask("GET", "/docs")
    assert "<script" not in page.text
    assert "/v1/loss" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_interface_is_described_for_machines(keyed):
    said = keyed.ask("GET", "/openapi.json").json()
    assert {"/v1/pool", "/v1/candidates", "/v1/completions", "/v1/loss"} <= set(said["paths"])


# What is told, and what is logged


@pytest.mark.parametrize("path", ["/v1/loss", "/v1/completions", "/v1/candidates"])
def test_an_error_inside_is_no_traceback_outside(keyed, path, monkeypatch):
    from mergepipe.service.candidates import Candidates

    def broken(*_):
        raise RuntimeError(f"{QUICKSTART} is broken")

    headers = keyed.keys["alice"]
    candidate = keyed.post("/v1/candidates", {"merge": MERGE}, headers=headers).json()["id"]
    for name in ("model", "checked"):
        monkeypatch.setattr(Candidates, name, broken)
    bodies = {
        "/v1/loss": {"candidate": candidate, "texts": ["a"]},
        "/v1/completions": {"model": candidate, "prompt": "a"},
        "/v1/candidates": {"merge": MERGE},
    }
    said = keyed.post(path, bodies[path], headers=headers)
    assert said.status_code == 500
    assert "quickstart" not in said.text
    assert "Traceback" not in said.text


def test_errors_of_the_disk_do_not_show_where_things_are(keyed, monkeypatch):
    from mergepipe.service.candidates import Candidates

    def full(*_):
        raise EnvironmentFault(f"{QUICKSTART}: no space left")

    monkeypatch.setattr(Candidates, "checked", full)
    said = keyed.post("/v1/candidates", {"merge": MERGE}, headers=keyed.keys["alice"])
    assert (said.status_code, "quickstart" in said.text) == (503, False)
    assert said.headers["retry-after"] == "30"


def service_lines(caplog):
    return [one.getMessage() for one in caplog.records if one.name.endswith("service")]


def test_the_log_has_a_line_a_request_without_bodies_and_keys(keyed, caplog):
    caplog.set_level(logging.INFO, "mergepipe.service")
    body = {"candidate": "none", "texts": ["a secret text"]}
    keyed.post("/v1/loss", body, headers=keyed.keys["alice"])
    keyed.ask("GET", "/v1/%0a%0dINFO%20forged%1b[31m", headers=keyed.keys["alice"])
    wait_for(lambda: len(service_lines(caplog)) > 1)  # a line comes after its answer
    lines = service_lines(caplog)
    read = [json.loads(line) for line in lines]
    assert [(one["key"], one["status"]) for one in read] == [("alice", 404)] * 2
    key = keyed.keys["alice"]["authorization"].partition(" ")[2]
    text = "".join(lines)
    assert not [c for c in ("\n", "\r", "\x1b", "secret text", key) if c in text]


def metrics(keyed):
    return keyed.ask("GET", "/metrics", headers=keyed.keys["bob"]).text


def test_metrics_hold_no_names_of_keys_and_no_paths_that_were_made_up(keyed):
    keyed.ask("GET", "/v1/made-up", headers=keyed.keys["alice"])
    counted = 'mergepipe_requests_total{route="other",status="404"}'
    wait_for(lambda: counted in metrics(keyed))  # a request is counted after its answer
    text = metrics(keyed)
    assert not [word for word in ("alice", "bob", "made-up", "sk-", "c-") if word in text]


# TLS


def test_https_is_spoken_with_a_certificate(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    with serving(write_pool(tmp_path), cert=cert, key=key) as served:
        context = ssl.create_default_context(cafile=str(cert))
        assert served.ask("GET", "/health", verify=context).json() == {"status": "ok"}


def test_a_certificate_that_is_none_is_an_error_at_the_start(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    with (
        pytest.raises(InputError, match=r"cert\.pem"),
        serving(write_pool(tmp_path), cert=tmp_path / "cert.pem", key=tmp_path / "cert.pem"),
    ):
        pass
