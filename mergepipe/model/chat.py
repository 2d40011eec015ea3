"""Conversations as text, by the chat template of a model's folder, in transformers' sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergepipe.errors import InputError, Problem
from mergepipe.model import Message

__all__ = ["ChatTemplate"]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja text, and the special tokens it may name (`bos_token`)."""

    jinja: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], name: str) -> str:
        """Give the text after which the assistant of the model `name` speaks.

        Raises
        ------
        InputError
            if the template cannot be understood, or refuses the conversation.

        """
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        conversation = [dict(message) for message in messages]
        try:
            texts, _ = render(
                [conversation],
                chat_template=self.jinja,
                add_generation_prompt=True,
                **self.tokens,
            )
        except Exception as error:  # a template is a program, which may raise anything
            what = f"its chat template cannot write this conversation: {error}"
            raise InputError(Problem(name, what)) from error
        text: str = texts[0]
        return text
