"""OpenAI-compatible servers on loopback: one that fails as scripted, one over a real local model."""

from __future__ import annotations

import email.utils
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "tiny"
ANSWER = {
    "id": "1",
    "object": "text_completion",
    "model": MODEL,
    "choices": [
        {"index": 0, "text": " 42", "finish_reason": "stop", "message": {"content": " 42"}}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@dataclass
class Call:
    path: str
    headers: dict[str, str]
    body: dict
    at: float
    closed: float | None = None  # when the client hung up, for those that wait for it


@dataclass
class Script:
    """What is answered to the first call, to the second and so on; the last step stands for all."""

    steps: list[str | Callable]
    calls: list[Call] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    mebibytes: int = 0  # sent of a huge answer
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # see hub_server.py
    script: Script

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle({})

    def do_POST(self):
        size = int(self.headers.get("content-length", 0))
        self._handle(json.loads(self.rfile.read(size) or b"{}"))

    def _handle(self, body):
        script = self.script
        self.call = Call(self.path, dict(self.headers.items()), body, time.monotonic())
        with script.lock:
            script.calls.append(self.call)
            script.at_once += 1
            script.most_at_once = max(script.most_at_once, script.at_once)
            step = script.steps[min(len(script.calls), len(script.steps)) - 1]
        try:
            if callable(step):
                self.reply(*step(self))
            else:
                word, _, argument = step.partition(":")
                (getattr(self, f"on_{word}", None) or self.on_status)(word, argument)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with script.lock:
                script.at_once -= 1

    def reply(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content_type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _wait_for_hangup(self):
        self.connection.settimeout(20)
        try:
            while self.connection.recv(1000):
                pass
            self.call.closed = time.monotonic()
        except ConnectionResetError:
            self.call.closed = time.monotonic()
        self.close_connection = True

    def on_status(self, word, _):
        self.reply(int(word), {"error": {"message": f"scripted {word}"}})

    def on_429(self, _, seconds):
        self.reply(429, {"error": "slow down"}, retry_after=seconds)

    def on_429date(self, _, seconds):
        date = email.utils.formatdate(time.time() + float(seconds), usegmt=True)
        self.reply(429, {"error": "slow down"}, retry_after=date)

    def on_429none(self, *_):
        self.reply(429, {"error": "slow down"})

    def on_429huge(self, *_):
        self.reply(429, {"error": "slow down"}, retry_after="86400")

    def on_429quota(self, *_):
        self.reply(429, {"error": {"code": "insufficient_quota"}})

    def on_echokey(self, _, argument):
        said = {"error": f"bad key {self.headers.get('authorization')}", "padding": "x" * 900}
        self.reply(int(argument), said)

    def on_hang(self, *_):
        self._wait_for_hangup()

    def on_slow(self, *_):
        data = json.dumps(ANSWER).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        self.wfile.write(b"content-length: %d\r\n\r\n" % len(data))
        self._drip(data)

    def on_slowheaders(self, *_):
        self._drip(b"HTTP/1.1 200 OK\r\n" + b"x-padding: 1\r\n" * 100)

    def _drip(self, data):
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.03)

    def on_reset(self, *_):
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def on_truncated(self, *_):
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        self.wfile.write(b"content-length: 10000\r\n\r\n" + json.dumps(ANSWER).encode())
        self.close_connection = True

    def on_chunkcut(self, *_):
        data = json.dumps(ANSWER).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.close_connection = True

    def on_badjson(self, *_):
        self.reply(200, b'{"choices": [{"text": " 4')

    def on_html(self, *_):
        self.reply(200, b"<!DOCTYPE html><html>Please log in</html>", content_type="text/html")

    def on_utf8(self, *_):
        self.reply(200, b'{"choices": [{"text": "\xff\xfe"}]}')

    def on_deep(self, *_):
        self.reply(200, b"[" * 200_000)

    def on_huge(self, _, mebibytes):
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        for _ in range(int(mebibytes)):
            self.wfile.write(b" " * (1 << 20))
            self.script.mebibytes += 1
        self.close_connection = True

    def on_gzipbomb(self, _, mebibytes):
        packed = gzip.compress(b" " * (int(mebibytes) << 20))
        self.reply(200, packed, content_encoding="gzip")

    def on_redirect(self, _, url):
        self.reply(307, {}, location=url)

    def on_loop(self, *_):
        self.reply(307, {}, location=self.path)

    def on_wrongmodel(self, *_):
        self.reply(200, {**ANSWER, "model": "some-other-model"})

    def on_null(self, *_):
        choice = {"text": None, "message": {"content": None}, "finish_reason": "content_filter"}
        self.reply(200, {**ANSWER, "choices": [choice]})

    def on_ok(self, _, argument):
        bodies = {
            "": json.dumps(ANSWER).encode(),
            "text": b'"42"',
            "empty": b"",
            "nochoice": json.dumps({**ANSWER, "choices": []}).encode(),
            "nan": json.dumps(_echo_of_two(float("nan"))).encode(),
        }
        self.reply(200, bodies[argument])

    def on_sse(self, *_):
        self._stream(["data: [DONE]"])

    def on_ssecut(self, *_):
        self._stream([])

    def _stream(self, end):
        pieces = [{**ANSWER, "usage": None, "choices": [{"text": t}]} for t in (" 4", "2")]
        usage = {**ANSWER, "choices": []}
        lines = [f"data: {json.dumps(piece)}" for piece in (*pieces, usage)] + end
        self.reply(200, "\n\n".join(lines).encode(), content_type="text/event-stream")


def _echo_of_two(logprob):
    tokens = {
        "tokens": ["<s>", "a", "b"],
        "text_offset": [0, 3, 4],
        "token_logprobs": [None, logprob, -1.0],
        "top_logprobs": [None, {"a": logprob}, {"b": -1.0}],
    }
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    return {**ANSWER, "choices": [{"text": "ab", "logprobs": tokens}], "usage": usage}


@contextmanager
def serving(*steps, context=None) -> Iterator[Script]:
    """Serve the steps until the block ends; a `context` makes it https."""
    script = Script(list(steps))
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    scheme = "https" if context else "http"
    script.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def scoring(module, tokenizer, *, bos="", offsets_in_bytes=False, context_tokens=None):
    """Serve a real causal model's completions, with `echo` and `logprobs` of what it computes.

    With `bos` that token stands before a text prompt, as some servers have it, and is echoed.
    """
    import torch

    def complete(handler):
        if handler.path.endswith("/models"):
            return 200, {"data": [{"id": MODEL, "root": "here"}]}
        if handler.path.endswith("/chat/completions"):
            return 404, {"error": "no chat here"}
        asked = handler.call.body
        prompt = asked["prompt"]
        ids = tokenizer.encode(bos + prompt).ids if isinstance(prompt, str) else list(prompt)
        if context_tokens and len(ids) + asked["max_tokens"] > context_tokens:
            return 400, {"error": f"the context has {context_tokens} tokens"}
        with torch.inference_mode():
            for _ in range(asked["max_tokens"]):
                logits = module(torch.tensor([ids])).logits[0]
                ids.append(int(logits[-1].argmax()))
        new = asked["max_tokens"]
        usage = {"prompt_tokens": len(ids) - new, "completion_tokens": new}
        shown = ids if asked.get("echo") else ids[-new:]
        choice = {"text": tokenizer.decode(shown, skip_special_tokens=False)}
        if asked.get("echo"):
            choice["logprobs"] = _columns(ids, logits.log_softmax(-1), tokenizer, offsets_in_bytes)
        return 200, {**ANSWER, "choices": [choice], "usage": usage}

    with serving(complete) as script:
        yield script


def _columns(ids, table, tokenizer, in_bytes):
    logprobs = [table[i, token].item() for i, token in enumerate(ids[1:])]
    best = [{"": row.max().item()} for row in table]
    starts, text = [], ""
    for count in range(1, len(ids) + 1):
        starts.append(len(text.encode()) if in_bytes else len(text))
        so_far = tokenizer.decode(ids[:count], skip_special_tokens=False)
        if not so_far.endswith("\ufffd"):  # within a character: it starts where that one does
            text = so_far
    return {
        "tokens": [tokenizer.decode([i], skip_special_tokens=False) for i in ids],
        "text_offset": starts,
        "token_logprobs": [None, *logprobs],
        "top_logprobs": [None, *best[: len(logprobs)]],
    }
