"""Prompts of data files: texts to go on with, or conversations to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.errors import InputError, Problem, did_you_mean, printable
from mergepipe.evaluate.data import read_jsonl
from mergepipe.model import Prompt

__all__ = ["Prompted", "read_prompts", "shown"]

_ROLES = ("system", "user", "assistant")
_SHOWN = 10  # faults


@dataclass(frozen=True, slots=True)
class Prompted:
    """What a model is asked, and the rest of the record."""

    prompt: Prompt
    record: Mapping[str, Any]


def read_prompts(file: Path, fields: Mapping[str, type], *, chat: bool) -> dict[str, Prompted]:
    """Read records with a `prompt`, or with `messages` where the model is to `chat`, by line.

    A `prompt` becomes the one message of a conversation then. `fields` are as in `read_jsonl`.

    Raises
    ------
    InputError
        naming each faulty line, or if there is no record.

    """
    records = read_jsonl(file, fields)
    faults = {line: fault for line, one in records.items() if (fault := _fault(one, chat=chat))}
    if faults:
        shown_faults = list(faults.items())[:_SHOWN]
        raise InputError(*(Problem(f"{file}:{line}", fault) for line, fault in shown_faults))
    return {str(line): Prompted(_prompt(one, chat=chat), one) for line, one in records.items()}


def _fault(record: Mapping[str, Any], *, chat: bool) -> str | None:
    if "messages" in record:
        if not chat:
            return "`messages` are a conversation: give `chat: true`"
        return None if _are_messages(record["messages"]) else _NO_MESSAGES
    if "prompt" not in record:
        return f"no field 'prompt'{did_you_mean('prompt', record)}"
    if not isinstance(record["prompt"], str):
        got = printable(json.dumps(record["prompt"]), 60)
        return f"field 'prompt' must be text, got {got}"
    return None


_NO_MESSAGES = '`messages` must be a list of {"role": "user", "content": ...}; roles: ' + ", ".join(
    _ROLES
)


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(one, dict)
            and one.get("role") in _ROLES
            and isinstance(one.get("content"), str)
            for one in messages
        )
    )


def _prompt(record: Mapping[str, Any], *, chat: bool) -> Prompt:
    if "messages" in record:
        return [{"role": one["role"], "content": one["content"]} for one in record["messages"]]
    text: str = record["prompt"]
    return [{"role": "user", "content": text}] if chat else text


def shown(prompt: Prompt) -> str:
    r"""Give a prompt as one text, turn by turn.

    >>> shown([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}])
    'user: Hi\n\nassistant: Yes?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in prompt)
