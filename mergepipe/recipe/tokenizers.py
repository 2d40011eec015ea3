"""`tokenizer:` of a recipe -> which vocabulary the result shall have."""

from __future__ import annotations

from mergepipe.recipe.fields import TokenFields, TokenizerFields
from mergepipe.recipe.merges import MergeReader
from mergepipe.tokenizer import RowSource, TokenizerChoice

__all__ = ["read_tokenizer"]

_UNION = "union"


def read_tokenizer(fields: TokenizerFields | None, reader: MergeReader) -> TokenizerChoice | None:
    """Give the choice of a recipe, its models resolved; what is wrong goes to the reader's list."""
    if fields is None:
        return None
    path, where = ("tokenizer",), reader.document.where
    known = [_UNION, *reader.stage_names]
    is_short = isinstance(reader.document.data["tokenizer"], str)
    if fields.source == _UNION and _UNION in reader.labels:
        what = f"'{_UNION}' is a word of the language here, and a model's label"
        reader.problems.add(where(path), what, "give the model another label")
    reader.check_label(fields.source, path if is_short else (*path, "source"), known)
    for token in fields.tokens:
        if not token:
            reader.problems.add(where((*path, "tokens")), "a token without text")
    return TokenizerChoice(
        place=where(path),
        source=None if fields.source == _UNION else fields.source,
        tokens={text: _row(text, one, reader) for text, one in fields.tokens.items()},
        multiple=fields.pad_to_multiple_of,
        allow_ordinary_union=fields.allow_ordinary_union,
    )


def _row(text: str, fields: TokenFields, reader: MergeReader) -> RowSource:
    path = ("tokenizer", "tokens", text)
    place = reader.document.where(path)
    reader.check_label(fields.take, (*path, "take"))
    if (fields.take is None) != fields.zero:
        reader.problems.add(place, "say `take: MODEL`, or `zero`", "one of the two")
    if fields.token is not None and fields.id is not None:
        reader.problems.add(place, "`token` and `id` both name a row", "keep one of the two")
    if fields.take is None and (fields.token is not None or fields.id is not None):
        reader.problems.add(place, "`token` and `id` name a row of a model", "add `take: MODEL`")
    return RowSource(place, fields.take, fields.token, fields.id, fields.force)
