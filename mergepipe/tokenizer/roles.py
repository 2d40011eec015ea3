"""Which token begins a text, which ends it: what the files of a model say of special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mergepipe.errors import InputError, Problems, printable
from mergepipe.tokenizer.faults import place, stored_json
from mergepipe.tokenizer.vocabulary import ROLES

__all__ = ["Named", "check_roles", "read_roles", "stated_roles"]

_SETTINGS = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_IDS = ("config.json", "generation_config.json")
_CHECKED = ("bos", "eos")
_NESTED = ("text_config", "llm_config", "language_config")


def read_roles(
    folder: Path, label: str, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[str, int]:
    """Give the id of each role: the first file that names a token of the vocabulary decides.

    They are asked in the order tokenizer_config.json, special_tokens_map.json, config.json,
    generation_config.json.
    """
    found: dict[str, int] = {}
    for _, stated in stated_roles(folder, label, settings, ids):
        for role, numbers in stated.items():
            found.setdefault(role, numbers[0])
    return {role: found[role] for role in ROLES if role in found}


def stated_roles(
    folder: Path, label: str, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> Iterator[tuple[str, Mapping[str, tuple[int, ...]]]]:
    """Give what each file says of the roles: one id, or several ends of text.

    Tokens that the vocabulary lacks are passed over.
    """
    for file, texts in _named(folder, label, settings):
        yield file, {role: (ids[text],) for role, text in texts.items() if text in ids}
    known = set(ids.values())
    for file in _IDS:
        config = _stored(folder, label, file)
        parts = [config, *(config[key] for key in _NESTED if isinstance(config.get(key), dict))]
        stated: dict[str, tuple[int, ...]] = {}
        for part in parts:
            for role in ROLES:
                numbers = _numbers(part.get(f"{role}_token_id"))
                if numbers and all(number in known for number in numbers):
                    stated.setdefault(role, numbers)
        yield file, stated


def _named(
    folder: Path, label: str, settings: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Give the tokens that the files of the tokenizer name for roles."""
    special = _stored(folder, label, _SPECIAL)
    for file, named in ((_SETTINGS, settings), (_SPECIAL, special)):
        texts = ((role, _content(named.get(f"{role}_token"))) for role in ROLES)
        yield file, {role: text for role, text in texts if text}


class Named(Protocol):
    """A tokenizer whose tokens have ids and roles: a `Vocabulary`, or what was read of one."""

    @property
    def label(self) -> str:
        """Label of the model."""

    @property
    def folder(self) -> Path:
        """Folder of the model."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The parsed tokenizer_config.json."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Id of each token as it is spelled."""

    @property
    def roles(self) -> Mapping[str, int]:
        """Id of each role."""


def check_roles(model: Named, donor: Named | None, problems: Problems) -> None:
    """Warn where a model's files disagree on how a text begins or ends, or model and `donor` do.

    Also where they name a token that there is not, or, in a model beside a `donor`, custom code.
    """
    where = place(model.folder, model.label)
    for file, texts in _named(model.folder, model.label, model.settings):
        for role in _CHECKED:
            text = texts.get(role)
            if text and text not in model.ids:
                what = f"{file} names {printable(text, 80)} as its {role} token, and no id has it"
                problems.warn(where, what)
    if donor is not None and "auto_map" in model.settings:
        what = f"{_SETTINGS} names custom code (auto_map), which is not run"
        problems.warn(where, f"{what}; the tokenizer is what its other files say")
    stated = list(stated_roles(model.folder, model.label, model.settings, model.ids))
    for role in _CHECKED:
        said = [(file, roles[role]) for file, roles in stated if role in roles]
        # Several ends of text agree with any of them.
        if any(model.roles[role] not in numbers for _, numbers in said):
            shown = ", ".join(f"{file} says {_shown(model, numbers)}" for file, numbers in said)
            problems.warn(where, f"its files disagree on the {role} token: {shown}")
        ours = None if donor is None else donor.roles.get(role)
        theirs = model.roles.get(role)
        if donor is None or ours is None or theirs is None:
            continue
        mine, other = _shown(donor, (ours,)), _shown(model, (theirs,))
        if mine != other:
            problems.warn(where, f"its {role} token is {other}, {donor.label}'s is {mine}")


def _shown(model: Named, numbers: tuple[int, ...]) -> str:
    texts = {number: token for token, number in model.ids.items() if number in numbers}
    return " or ".join(f"{printable(texts[n], 80)} (id {n})" for n in numbers)


def _stored(folder: Path, label: str, file: str) -> Mapping[str, Any]:
    if not (folder / file).is_file():
        return {}
    try:
        found = stored_json(folder, label, file)
    except InputError:
        # Whoever needs the configuration itself says what is wrong with it.
        if file in _IDS:
            return {}
        raise
    return found if isinstance(found, dict) else {}


def _content(named: Any) -> str | None:
    text = named.get("content") if isinstance(named, dict) else named
    return text if isinstance(text, str) else None


def _numbers(stated: Any) -> tuple[int, ...]:
    listed = stated if isinstance(stated, list) else [stated]
    return tuple(listed) if all(type(number) is int for number in listed) else ()
