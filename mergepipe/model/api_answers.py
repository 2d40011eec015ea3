"""What a server's bytes say: JSON, or events that it streams unasked; never half an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergepipe.errors import printable
from mergepipe.model import Score
from mergepipe.model.api_faults import Failure

__all__ = ["Answer", "Echo", "echoed", "excerpt", "read_answer", "written"]

_EXCERPT = 300  # characters


@dataclass(frozen=True, slots=True)
class Answer:
    """An object with choices; tokens are None where the server does not count them."""

    said: dict[str, Any]
    prompt_tokens: int | None
    generated_tokens: int | None

    @property
    def choice(self) -> dict[str, Any]:
        """The only choice that was asked for."""
        choice: dict[str, Any] = self.said["choices"][0]
        return choice


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a prompt: where each starts (in characters), its ln p, was it the likeliest.

    `first` is the text of the first of them; `end` is where the first new token starts.
    """

    starts: Sequence[int]
    logprobs: Sequence[float | None]
    greedy: Sequence[bool]
    first: str
    end: int | None

    def score(self, start: int, size: int) -> Score | None:
        """Score the tokens from index `start` on; None if one of them has no probability."""
        logprobs = [value for value in self.logprobs[start:] if value is not None]
        if len(logprobs) < len(self.starts) - start:
            return None
        return Score(math.fsum(logprobs), len(logprobs), size, all(self.greedy[start:]))

    def token_at(self, character: int) -> int:
        """Index of the first token at `character` or, where one goes over it, of that one."""
        later = [i for i, start in enumerate(self.starts) if start >= character]
        first = later[0] if later else len(self.starts)
        exact = first < len(self.starts) and self.starts[first] == character
        return first if exact or first == 0 else first - 1


def excerpt(body: bytes | str) -> str:
    """The start of what a server said, safe to show."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    return printable(" ".join(text[:4000].split()), _EXCERPT)


def read_answer(body: bytes, content_type: str, holds: str = "choices") -> Answer | Failure:
    """Read the body of an answer with status 200, an object that holds a list of choices."""
    try:
        text = body.decode("utf-8").lstrip("\ufeff")
        read = _joined if content_type.startswith("text/event-stream") else json.loads
        said = read(text)
    except RecursionError:
        return Failure("stop", f"the answer is nested too deeply: {excerpt(body)}")
    except ValueError:
        login = "<html" in excerpt(body).lower() or "<!doctype" in excerpt(body).lower()
        fix = "a login or error page? Check the base_url and the proxy" if login else ""
        return Failure("once", f"the answer is not JSON: it starts with '{excerpt(body)}'", fix)
    if said is None:
        return Failure("retry", "the stream of the answer ends before its [DONE]")
    answer = _checked(said, holds)
    return answer or Failure("once", f"the answer holds no {holds}: '{excerpt(body)}'")


def _checked(said: Any, holds: str) -> Answer | None:
    choices = said.get(holds) if isinstance(said, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    usage = said.get("usage") if isinstance(said.get("usage"), dict) else {}
    return Answer(said, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _joined(text: str) -> dict[str, Any] | None:
    """Put the events of a stream together; None if it was cut."""
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    if not events or events[-1] != "[DONE]":
        return None
    whole: dict[str, Any] = {}
    texts: dict[str, list[str]] = {"text": [], "content": []}
    for event in map(json.loads, events[:-1]):
        if not isinstance(event, dict):
            raise ValueError  # noqa: TRY004 (of the text, as json's own)
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        pieces = {**choice, **(choice.get("delta") or {})} if isinstance(choice, dict) else {}
        for key, found in texts.items():
            found.extend([pieces[key]] if isinstance(pieces.get(key), str) else [])
        whole |= {key: value for key, value in event.items() if value is not None}
    said = {key: "".join(found) if found else None for key, found in texts.items()}
    message = {"content": said["content"]}
    return {**whole, "choices": [{"text": said["text"], "message": message}]}


def written(answer: Answer, *, chat: bool) -> str | Failure:
    """Give the text that was generated."""
    message = answer.choice.get("message") if chat else answer.choice
    text = message.get("content" if chat else "text") if isinstance(message, dict) else None
    if isinstance(text, str):
        return text
    reason = printable(answer.choice.get("finish_reason"), 40)
    return Failure("item", f"the answer holds no text (finish_reason: {reason})")


def echoed(answer: Answer) -> Echo | Failure:
    """Read the prompt's tokens from an answer to `echo` and `logprobs` with one new token."""
    said = answer.choice.get("logprobs")
    names = ("text_offset", "token_logprobs", "top_logprobs", "tokens")
    columns = [said.get(name) if isinstance(said, dict) else None for name in names]
    starts, logprobs, tops, tokens = ([] if c is None else c for c in columns)
    lists = (starts, logprobs, tops, tokens)
    same = all(isinstance(c, list) and len(c) == len(starts) for c in lists)
    new = 1 if answer.generated_tokens is None else answer.generated_tokens
    count = len(starts) - new if same else 0
    expected = count if answer.prompt_tokens is None else answer.prompt_tokens
    if count < 1 or count != expected or not all(isinstance(s, int) for s in starts):
        what = "the answer holds no log-probabilities of the prompt's tokens"
        return Failure("once", f"{what}: '{excerpt(json.dumps(said))}'")
    if bad := [p for p in logprobs[:count] if p is not None and not _is_logprob(p)]:
        return Failure("once", f"the answer holds {printable(bad[0], 40)} as a log-probability")
    likeliest = [_is_likeliest(p, top) for p, top in zip(logprobs, tops, strict=True)]
    end = starts[count] if new else None
    return Echo(starts[:count], logprobs[:count], likeliest[:count], str(tokens[0]), end)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value <= 0


def _is_likeliest(logprob: float | None, top: Any) -> bool:
    others = [p for p in top.values() if _is_logprob(p)] if isinstance(top, dict) else []
    return logprob is not None and _is_logprob(logprob) and max(others, default=0.0) <= logprob
