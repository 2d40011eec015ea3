"""The tokenizer that a result is given, and what its configuration must say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from mergepipe.errors import InputError, Problem

__all__ = ["ResultTokenizer", "check_samples", "vocabulary_size", "with_ids", "with_rows"]

_FILE = "tokenizer.json"
_LANGUAGE = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class ResultTokenizer:
    """Files to write, rows of the embedding, and ids for configurations.

    `files` maps a name to its bytes, or to the file that is copied byte for byte. `folder` is the
    model's whose tokenizer it is or was made of: its chat template and code go with it.

    `ids` are set in `config.json`, also in its part on the language model, and `generation_ids` in
    `generation_config.json`: key (`eos_token_id`) -> id, list of ids, or None where the tokenizer
    has no such token. A key that stands there and is not listed is left as it is.

    `samples` maps texts to the ids that the saved tokenizer must give, special tokens in the text
    included, none added around it.
    """

    label: str
    folder: Path
    files: Mapping[str, bytes | Path]
    rows: int
    ids: Mapping[str, Any] = field(default_factory=dict)
    generation_ids: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of everything that is written."""
        hasher = blake3(repr([self.rows, sorted(self.ids.items())]).encode())
        hasher.update(repr(sorted(self.generation_ids.items())).encode())
        for name, content in sorted(self.files.items()):
            data = content if isinstance(content, bytes) else content.read_bytes()
            hasher.update(f"{name} {len(data)} ".encode())
            hasher.update(data)
        return str(hasher.hexdigest())


def check_samples(folder: Path, result: ResultTokenizer) -> None:
    """Load the tokenizer that was saved in `folder` and hold it against its samples.

    Raises
    ------
    InputError
        if a text gets other ids than it should, or an id has no row.

    """
    from tokenizers import Tokenizer

    file = folder / _FILE
    if not result.samples or not file.is_file():
        return
    saved = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    saved.no_truncation()
    saved.no_padding()
    last = max(saved.get_vocab(with_added_tokens=True).values(), default=-1)
    if last >= result.rows:
        what = f"token id {last} has no row: the embedding has {result.rows}"
        raise InputError(Problem(_FILE, what, f"is the tokenizer of {result.label} whole?"))
    encodings = saved.encode_batch(list(result.samples), add_special_tokens=False)
    for encoding, (text, ids) in zip(encodings, result.samples.items(), strict=True):
        if tuple(encoding.ids) != ids:
            what = f"the saved tokenizer splits {text[:40]!r} in another way than {result.label}'s"
            raise InputError(Problem(_FILE, what, f"`take` the tokenizer of {result.label}"))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Give how many rows a configuration counts; None where it does not say."""
    parts = [config.get(part) for part in _LANGUAGE]
    for part in (*parts, config):
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if type(size) is int and size > 0:
            return size
    return None


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Give a configuration with another size of the vocabulary, also in its part on language."""

    def changed(key: str, value: Any) -> Any:
        if key == "vocab_size" and isinstance(value, int):
            return rows
        return with_rows(value, rows) if key in _LANGUAGE and isinstance(value, dict) else value

    return {key: changed(key, value) for key, value in config.items()}


def with_ids(config: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """Give a configuration with other ids of tokens, wherever it names them.

    Those that it does not name are added at the top.
    """
    inner = {
        part: {key: ids.get(key, value) for key, value in config[part].items()}
        for part in _LANGUAGE
        if isinstance(config.get(part), dict)
    }
    nested = {key for part in inner.values() for key in part}
    return {
        **config,
        **inner,
        **{key: value for key, value in ids.items() if key in config or key not in nested},
    }
