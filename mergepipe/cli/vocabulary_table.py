"""The vocabulary of a result: what each model has of it, and what is added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergepipe.errors import printable
from mergepipe.tokenizer import Union

__all__ = ["vocabulary_json", "vocabulary_lines"]

_SHOWN = 8


def vocabulary_lines(union: Union) -> Iterator[str]:
    """Say whose rows are whose, for people."""
    tokens, rows = len(union.tokens), union.rows
    padding = f", {rows - tokens} of them of no token" if rows > tokens else ""
    yield f"vocabulary: {union.source.label}'s, {tokens} tokens, {rows} rows{padding}"
    if union.is_identity:
        yield "  every model has these tokens at these ids"
    for label, model in union.models.items() if not union.is_identity else ():
        counts = {
            "at another id": len(union.moved(label)),
            "missing": len(union.missing(label)),
            "left out": len(union.lost(label)),
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        yield f"  {label}: {model.rows} rows, {', '.join(said) or 'all tokens at the same ids'}"
    for one in union.added[:_SHOWN]:
        yield f"  + {one.id} {printable(one.token.text, 60)} (from {one.label})"
    if len(union.added) > _SHOWN:
        yield f"  + and {len(union.added) - _SHOWN} more tokens (--json lists all)"
    roles = union.source.vocabulary.roles
    named = (
        f"{role} {printable(union.tokens[n], 40)}" for role, n in roles.items() if n in union.tokens
    )
    yield f"  special tokens: {', '.join(named) or 'none named'}"


def vocabulary_json(union: Union) -> dict[str, Any]:
    """Give the same for machines, every added token included."""
    return {
        "source": union.source.label,
        "tokens": len(union.tokens),
        "rows": union.rows,
        "added": [
            {"id": one.id, "token": one.token.text, "from": one.label} for one in union.added
        ],
        "models": {
            label: {
                "rows": model.rows,
                "moved": len(union.moved(label)),
                "missing": [union.tokens[int(one)] for one in union.missing(label)],
                "left_out": list(union.lost(label)),
            }
            for label, model in union.models.items()
        },
    }
