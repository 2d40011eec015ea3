"""What stands beside a checkpoint's weights, read without loading anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.errors import InputError, Problem
from mergepipe.model.chat import ChatTemplate

__all__ = ["Companions", "companions_of", "read_json"]


@dataclass(frozen=True, slots=True)
class Companions:
    """What stands beside the weights: the folder, its config.json and the text of its template.

    `where` is what errors call it.
    """

    folder: Path
    settings: Mapping[str, Any]
    jinja: str | None
    where: str

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template with the special tokens that it may name."""
        return ChatTemplate(self.jinja, dict(self._tokens())) if self.jinja is not None else None

    def _tokens(self) -> Iterator[tuple[str, str]]:
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            for key, token in read_json(self.folder / file).items():
                content = token.get("content") if isinstance(token, dict) else token
                if key.endswith("_token") and isinstance(content, str):
                    yield key, content


def companions_of(folder: Path, where: str | None = None) -> Companions:
    """Read those of a checkpoint folder, which errors call `where` if it is given.

    Raises
    ------
    InputError
        if there is no config.json, or a file is not JSON.

    """
    where = str(folder) if where is None else where
    if not (folder / "config.json").is_file():
        raise InputError(Problem(where, "holds no config.json, so no model to ask"))
    return Companions(folder, read_json(folder / "config.json"), _template(folder), where)


def _template(folder: Path) -> str | None:
    """Find the chat template of a folder, wherever it keeps it; None if it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        said = read_json(folder / file).get("chat_template")
        if isinstance(said, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
            said = named.get("default")
        if isinstance(said, str):
            return said
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no such file.

    Raises
    ------
    InputError
        if it is not JSON.

    """
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(Problem(str(path), f"not JSON: {error}")) from error
    return settings if isinstance(settings, dict) else {}
