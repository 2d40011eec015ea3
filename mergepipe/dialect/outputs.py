"""What a configuration says beside the merge: dtype, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergepipe.dialect.reading import Origins, Reading

__all__ = ["output_fields"]

_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
_DTYPES = ("bfloat16", "float16", "float32")


def output_fields(
    reading: Reading, base: str | None, labels: Sequence[str], origins: Origins
) -> dict[str, Any]:
    """Give the fields of the recipe; `labels` are those of the models, in order."""
    found: dict[str, Any] = {}
    asked, dtype = reading.data.get("output"), _dtype(reading)
    if asked is not None:
        found["output"] = asked
    if dtype is not None:
        found["output"] = {"dtype": dtype, **(asked if isinstance(asked, dict) else {})}
    tokenizer = _tokenizer(reading, base)
    if tokenizer is not None:
        found["tokenizer"] = tokenizer
    if reading.data.get("chat_template") is not None:
        found["chat_template"] = _chat_template(reading, labels[0] if labels else base)
    for name in ("tokenizer", "chat_template"):
        origins[(name,)] = (*reading.front, name)
    return found


def _dtype(reading: Reading) -> str | None:
    data = reading.data
    key = "out_dtype" if data.get("out_dtype") else "dtype"
    value = data.get(key)
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        reading.add((key,), f"'{value}' cannot be written", f"one of {', '.join(_DTYPES)}")
        return None
    if data.get("dtype") not in (None, "float32", "torch.float32"):
        what = "mergekit computes in this dtype; here it is fp32, rounded once at the end"
        reading.warn(("dtype",), what)
    return name


def _tokenizer(reading: Reading, base: str | None) -> str | None:
    """Give whose tokenizer the result gets; None for the base's."""
    key = "tokenizer" if reading.data.get("tokenizer") is not None else "tokenizer_source"
    asked = reading.data.get(key)
    if asked is None:
        return None
    if isinstance(asked, dict):
        reading.check_keys(asked, _TOKENIZER, (key,))
        for part in ("tokens", "pad_to_multiple_of"):
            if asked.get(part):
                reading.add(
                    (key, part),
                    "rows of single words cannot be chosen yet",
                    "leave it out where the vocabularies are the same",
                )
        asked = asked.get("source", "union")
    if asked == "union":
        what = "vocabularies are not united yet: they must be the same, and are compared"
        reading.warn((key,), what)
        return None
    return base if asked == "base" else reading.label(asked, (key,))


def _chat_template(reading: Reading, first: str | None) -> Any:
    asked = reading.data["chat_template"]
    if asked == "auto":
        what = "'auto': the first model's chat template (mergekit: the commonest)"
        reading.warn(("chat_template",), what)
        return first
    return {"jinja": _template(str(asked))}


def _template(name: str) -> str:
    """Give the text of a template that mergekit has under this name; else it is a text itself."""
    found = find_spec("mergekit")
    for place in (found.submodule_search_locations or ()) if found else ():
        file = Path(place) / "_data" / "chat_templates" / f"{name}.jinja"
        if name.isidentifier() and file.is_file():
            return file.read_text(encoding="utf-8")
    return name
