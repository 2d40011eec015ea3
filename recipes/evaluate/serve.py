"""Serves a model's folder by OpenAI's protocol, for beside.yaml: completions, one at a time.

python recipes/evaluate/serve.py recipes/quickstart/arithmetic 8000
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from mergepipe.model.load import local_model

folder = Path(sys.argv[1])
model = local_model(folder, folder.name)


class Completions(BaseHTTPRequestHandler):
    """Answers POST /v1/completions with what the model writes."""

    def do_POST(self) -> None:
        """Go on with a prompt; whatever else is asked is not here."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/completions":
            self.send_error(404)
            return
        stop, before = asked.get("stop", ()), model.usage
        (written,) = model.generate([asked["prompt"]], stop=stop, max_tokens=asked["max_tokens"])
        used = model.usage - before
        usage = {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.generated_tokens}
        choices = [{"index": 0, "text": written.text, "finish_reason": "stop"}]
        body = json.dumps({"model": asked["model"], "choices": choices, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""


server = HTTPServer(("127.0.0.1", int(sys.argv[2])), Completions)
print(f"export OPENAI_BASE_URL=http://127.0.0.1:{server.server_port}/v1", flush=True)
server.serve_forever()
