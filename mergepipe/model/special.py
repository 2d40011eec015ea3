"""A folder's tokenizer as it is, and which of its tokens have a role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from tokenizers import Tokenizer

from mergepipe.errors import InputError, Problem
from mergepipe.model.companions import Companions, read_json
from mergepipe.model.loaded import Special

__all__ = ["read_special", "read_tokenizer"]

_MASKS = ("[MASK]", "<mask>")
_transformers: Any = transformers  # half of it is untyped


def read_tokenizer(companions: Companions) -> Tokenizer:
    """Read `tokenizer.json` as it is: AutoTokenizer may rebuild it by class and change ids.

    Raises
    ------
    InputError
        if there is no tokenizer, or none that can be read.

    """
    folder = companions.folder
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            loaded = _transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer = loaded.backend_tokenizer
    except Exception as error:  # tokenizers raises the bare class
        what = f"has no usable tokenizer: {error}"
        raise InputError(Problem(companions.where, what)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_special(companions: Companions, tokenizer: Tokenizer) -> Special:
    """Find the tokens with a role.

    Ids that the tokenizer does not hold as special tokens are defaults of some config class.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found: dict[str, list[int]] = {"bos": [], "eos": [], "mask": []}
    sources = _sources(companions)
    for settings in sources:
        for role in found:
            token, listed = settings.get(f"{role}_token"), settings.get(f"{role}_token_id")
            content = token.get("content") if isinstance(token, dict) else token
            named = tokenizer.token_to_id(content) if isinstance(content, str) else None
            listed = listed if isinstance(listed, list) else [listed]
            found[role] += [i for i in listed if i in special] if named is None else [named]
    masks = (*found["mask"], *map(tokenizer.token_to_id, _MASKS))
    prefix = next(iter((*found["bos"], *found["eos"])), None)
    before, after = _around(tokenizer)
    pad = _number(sources[1:], "pad_token_id")
    return Special(
        prefix=prefix,
        ends=frozenset(found["eos"]),
        mask=next((i for i in masks if i is not None), None),
        pad=pad if pad is not None else prefix or 0,
        before=before,
        after=after,
        start=_start(sources[1:]),
    )


def _sources(companions: Companions) -> list[Mapping[str, Any]]:
    return [
        read_json(companions.folder / "tokenizer_config.json"),
        read_json(companions.folder / "generation_config.json"),
        companions.settings,
    ]


def _number(sources: list[Mapping[str, Any]], name: str) -> int | None:
    numbers = (source.get(name) for source in sources)
    return next((number for number in numbers if type(number) is int and number >= 0), None)


def _start(sources: list[Mapping[str, Any]]) -> tuple[int, ...]:
    """What a decoder begins with, and the language or BOS that must follow where one is said."""
    first = _number(sources, "decoder_start_token_id")
    second = _number(sources, "forced_bos_token_id")
    return tuple(number for number in (first, second) if number is not None)


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a").ids
    for at in range(len(ids) - len(bare) + 1):
        if ids[at : at + len(bare)] == bare:
            return tuple(ids[:at]), tuple(ids[at + len(bare) :])
    return (), ()
