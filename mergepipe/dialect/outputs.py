"""What a configuration says beside the merge: dtype, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergepipe.dialect.reading import Origins, Reading
from mergepipe.recipe import FieldPath

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
    tokenizer = _tokenizer(reading, base, labels)
    if tokenizer is not None:
        found["tokenizer"] = tokenizer
    if reading.data.get("chat_template") is not None:
        found["chat_template"] = _chat_template(reading, labels[0] if labels else base)
    for name in ("tokenizer", "chat_template"):
        origins[(name,)] = (*reading.front, name)
    if reading.data.get("tokenizer") is None:
        origins[("tokenizer",)] = (*reading.front, "tokenizer_source")
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


def _tokenizer(reading: Reading, base: str | None, labels: Sequence[str]) -> dict[str, Any] | None:
    """Give whose vocabulary the result gets; None for the base's, as it is."""
    key = "tokenizer" if reading.data.get("tokenizer") is not None else "tokenizer_source"
    asked = reading.data.get(key)
    if asked is None:
        return None
    if key == "tokenizer" and reading.data.get("tokenizer_source") is not None:
        reading.add((key,), "`tokenizer` and `tokenizer_source` exclude each other", "keep one")
    fields = asked if key == "tokenizer" and isinstance(asked, dict) else {"source": asked}
    reading.check_keys(fields, _TOKENIZER, (key,))
    source, path = fields.get("source") or "union", (key, "source") if fields is asked else (key,)
    # mergekit unites whatever it is given; what that does to words is said when it is planned.
    found: dict[str, Any] = {"source": "union", "allow_ordinary_union": True}
    if source != "union":
        first = base or (labels[0] if labels else None)
        found = {"source": first if source == "base" else reading.label(source, path)}
    if fields.get("pad_to_multiple_of"):
        found["pad_to_multiple_of"] = fields["pad_to_multiple_of"]
    tokens = fields.get("tokens") or {}
    if not isinstance(tokens, dict):
        reading.add((key, "tokens"), "must be a mapping")
    elif tokens:
        found["tokens"] = {
            str(token): _token(reading, one, (key, "tokens", token))
            for token, one in tokens.items()
        }
    return found


def _token(reading: Reading, entry: Any, path: FieldPath) -> dict[str, Any]:
    """Give where the row of one token comes from."""
    entry = entry if isinstance(entry, dict) else {}
    reading.check_keys(entry, ("source", "force"), path)
    source = entry.get("source")
    found: dict[str, Any] = {"force": True} if entry.get("force") else {}
    kind = source.get("kind") if isinstance(source, dict) else None
    if source is None:
        reading.add(path, "no `source`: whose row is it?", "name a model, or {kind: zero}")
    elif kind == "zero":
        found["zero"] = True
    elif kind == "model_token":
        found["take"] = reading.label(source.get("model"), (*path, "source", "model"))
        for theirs, ours in (("token", "token"), ("token_id", "id")):
            if source.get(theirs) is not None:
                found[ours] = source[theirs]
        if ("token" in found) == ("id" in found):
            reading.add((*path, "source"), "give exactly one of `token` and `token_id`")
    else:
        found["take"] = reading.label(source, (*path, "source"))
    return found


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
