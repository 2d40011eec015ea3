"""What the configurations of a transplanted model say of special tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mergepipe.errors import Problems
from mergepipe.tokenizer.faults import place, stored_json
from mergepipe.tokenizer.matching import Match
from mergepipe.tokenizer.vocabulary import ROLES

__all__ = ["stated_ids"]

_ID = re.compile(r"_token_(id|index)$")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_PARTS = ("text_config", "llm_config", "language_config")
_MAY_LACK = ("forced", "decoder_start", *ROLES)


def stated_ids(file: str, match: Match, problems: Problems) -> dict[str, Any]:
    """Give the new ids of all that the base's `file` names, by key.

    A role (`eos_token_id`) is the donor's token of that role, None where it has none; of a list
    the donor's token comes first, then what matches the others, which may be nothing. What else
    is named goes by the match; that the donor has no such token is a fault.
    """
    back: dict[int, int] = {}
    for number, target in match.ids.items():
        if match.donor.tokens[number].is_added or target not in back:
            back[target] = number
    found: dict[str, Any] = {}
    for key, value in _stated(file, match).items():
        role = key.removesuffix("_token_id")
        ours = match.donor.roles.get(role)
        if isinstance(value, list):
            kept = [back[one] for one in value if one in back]
            lost = len(value) - len(kept)
            if lost and key not in _LISTS:
                problems.warn(_place(file, match), f"{key}: {lost} of {len(value)} ids are lost")
            found[key] = list(dict.fromkeys(([] if ours is None else [ours]) + kept))
        elif role in ROLES:
            found[key] = ours
        elif type(value) is int and value >= 0:
            found[key] = back.get(value)
            if found[key] is None and not key.startswith(_MAY_LACK):
                what = f"{key} is {value}, a token that {match.donor.label}'s tokenizer lacks"
                problems.add(_place(file, match), what, "name the token it shall be in `roles`")
    return found


def _place(file: str, match: Match) -> str:
    return place(match.base.folder, match.base.label, file)


def _stated(file: str, match: Match) -> dict[str, Any]:
    """Give the ids that a configuration of the base names, also in its part on language."""
    if not (match.base.folder / file).is_file():
        return {}
    config: Mapping[str, Any] = stored_json(match.base.folder, match.base.label, file)
    parts = [config, *(config[key] for key in _PARTS if isinstance(config.get(key), dict))]
    return {
        key: value
        for part in parts
        for key, value in part.items()
        if (_ID.search(key) or key in _LISTS) and value is not None
    }
