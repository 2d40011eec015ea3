"""A united vocabulary -> the files of its tokenizer, and the ids that configurations name.

Files are copied byte for byte where the vocabulary is its source's own. Else `tokenizer.json` and
what lists added tokens beside it are edited as JSON: loading a tokenizer to save it again may make
another one of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mergepipe.errors import Problems
from mergepipe.tokenizer.faults import place, stored_json
from mergepipe.tokenizer.outcome import ResultTokenizer
from mergepipe.tokenizer.uniting import Union
from mergepipe.tokenizer.vocabulary import ROLES, Vocabulary

__all__ = ["SAMPLES", "result_tokenizer"]

# Texts that must get the same ids before and after: spaces, numbers, scripts, code, marks.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a\ttab,\r\na new line\n\nand 1234567890 digits, 3.14159, -40\N{DEGREE SIGN}C  ",
    "na\u00efve cafe\u0301 Stra\u00dfe \u00e6\u00f8\u00e5",
    "\u4f60\u597d\uff0c\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f469\u200d\U0001f52c \U0001f1e9\U0001f1ea \u2603\ufe0f",
    "def f(x):\n    return {'a': [x ** 2, None]}  # so it is\n",
)
_ID = re.compile(r"_token_(id|index)$")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_LANGUAGE = ("text_config", "llm_config", "language_config")
_SPOKEN = 8  # added tokens of the source among the samples


def result_tokenizer(
    union: Union, files: Sequence[str], donor: Vocabulary, problems: Problems
) -> ResultTokenizer:
    """Give the tokenizer of a result.

    `files` are the names of the source's files that belong to its tokenizer; `donor` is the
    vocabulary of the model whose configuration the result gets.
    """
    source = union.source.vocabulary
    changed = union.added or union.dropped
    contents: dict[str, bytes | Path] = {name: source.folder / name for name in files}
    stored = _edited(source, union, problems) if changed else source.stored
    if changed:
        contents = {name: one for name, one in contents.items() if _is_right(name, union, problems)}
        contents.update(_written(stored, source, union, files))
    return ResultTokenizer(
        label=source.label,
        folder=source.folder,
        files=contents,
        rows=union.rows,
        ids=_ids("config.json", union, donor, problems),
        generation_ids=_ids("generation_config.json", union, donor, problems),
        samples={} if union.is_identity and not changed else _samples(stored, union, problems),
    )


def _edited(source: Vocabulary, union: Union, problems: Problems) -> dict[str, Any]:
    """Give `tokenizer.json` with the added tokens of the union, without tokens that have no row."""
    stored = dict(source.stored)
    listed = [one for one in stored.get("added_tokens") or () if one["id"] not in union.dropped]
    listed += [{"id": one.id, "content": one.token.text, **one.flags} for one in union.added]
    stored["added_tokens"] = listed
    gone = {source.tokens[number].text for number in union.dropped}
    model = dict(stored["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict) and gone & vocabulary.keys():
        model["vocab"] = {text: n for text, n in vocabulary.items() if text not in gone}
        if "merges" in model:
            model["merges"] = [one for one in model["merges"] if not _makes(one, gone)]
        stored["model"] = model
    elif isinstance(vocabulary, list) and len(vocabulary) > union.source.used:
        where = place(source.folder, source.label, "tokenizer.json")
        what = f"{len(vocabulary)} tokens, but only {union.source.used} rows"
        problems.add(where, what, "take the tokenizer of another model")
    return stored


def _makes(merge: str | Sequence[str], gone: set[str]) -> bool:
    """Tell whether a merge needs or makes one of these tokens."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return bool({left, right, left + right} & gone)


def _is_right(name: str, union: Union, problems: Problems) -> bool:
    """Tell whether a file of the source still says what the result's tokenizer is."""
    source = union.source.vocabulary
    lists_all = name == "tekken.json" or name.endswith(".tiktoken")
    lists_ordinary = name.endswith((".model", ".spm", ".txt")) or name == "vocab.json"
    if lists_all or (lists_ordinary and _vocabulary_shrinks(source, union)):
        where = place(source.folder, source.label, name)
        problems.warn(where, "is left out of the result, whose vocabulary is another")
        return False
    return True


def _written(
    stored: Mapping[str, Any],
    source: Vocabulary,
    union: Union,
    files: Sequence[str],
) -> dict[str, bytes | Path]:
    """Give the files that say something else than the source's."""
    found: dict[str, bytes | Path] = {"tokenizer.json": _json(stored)}
    settings = dict(source.settings)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        kept = {key: one for key, one in decoder.items() if int(key) not in union.dropped}
        kept |= {str(one.id): {"content": one.token.text, **one.flags} for one in union.added}
        found["tokenizer_config.json"] = _json({**settings, "added_tokens_decoder": kept})
    if "added_tokens.json" in files:
        listed = stored_json(source.folder, source.label, "added_tokens.json")
        gone = {source.tokens[number].text for number in union.dropped}
        kept = {text: number for text, number in listed.items() if text not in gone}
        new = {one.token.text: one.id for one in union.added}
        found["added_tokens.json"] = _json(kept | new)
    elif "tokenizer.model" in files and union.added:
        added = [one for one in source.tokens.values() if one.is_added]
        old = {one.text: one.id for one in added if one.id not in union.dropped}
        behind = {text: n for text, n in old.items() if n >= _pieces(source)}
        found["added_tokens.json"] = _json(behind | {one.token.text: one.id for one in union.added})
    return found


def _pieces(source: Vocabulary) -> int:
    return len(source.stored["model"]["vocab"])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def _samples(
    stored: Mapping[str, Any], union: Union, problems: Problems
) -> dict[str, tuple[int, ...]]:
    """Give texts with the ids that the source's tokenizer gives them, and the added tokens."""
    from tokenizers import Tokenizer

    source = union.source.vocabulary
    added = {one.token.text: (one.id,) for one in union.added}
    known = stored if _vocabulary_shrinks(source, union) else source.stored
    try:
        tokenizer = Tokenizer.from_str(json.dumps(known, ensure_ascii=False))
    except Exception as error:  # noqa: BLE001  (tokenizers raises nothing narrower)
        where = place(source.folder, source.label, "tokenizer.json")
        problems.add(where, f"cannot be loaded: {error}", "fetch the tokenizer again")
        return {}
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = (one.text for one in source.tokens.values() if one.is_added)
    texts = [one for one in (*SAMPLES, *islice(special, _SPOKEN)) if not _has_any(one, added)]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    found = {text: tuple(one.ids) for text, one in zip(texts, encoded, strict=True)}
    kept = {text: ids for text, ids in found.items() if not union.dropped & set(ids)}
    alone = {text: ids for text, ids in added.items() if not _has_any(text, added.keys() - {text})}
    return kept | alone


def _vocabulary_shrinks(source: Vocabulary, union: Union) -> bool:
    return any(not source.tokens[number].is_added for number in union.dropped)


def _has_any(text: str, tokens: Iterable[str]) -> bool:
    return any(token in text for token in tokens)


def _ids(file: str, union: Union, donor: Vocabulary, problems: Problems) -> dict[str, Any]:
    """Give what a configuration must say: the source's own words, else those of its tokenizer.

    `donor` is the model whose configuration the result gets; what only that one says is said of
    the same tokens.
    """
    source = union.source.vocabulary
    if donor.label == source.label and not union.dropped:
        return {}
    own, theirs = _stated(source, file), _stated(donor, file)
    back = {int(old): new for new, old in enumerate(union.own[donor.label]) if old >= 0}
    here = {number: number for number in source.tokens if number not in union.dropped}
    found: dict[str, Any] = {}
    for key in dict.fromkeys((*own, *theirs)):
        if key in own:
            found[key] = _mapped(own[key], here)
            continue
        found[key] = source.roles.get(key.removesuffix("_token_id"), _mapped(theirs[key], back))
        if found[key] is None and not _may_lack(key) and theirs[key] is not None:
            where = place(donor.folder, donor.label, file)
            what = f"{key} is {theirs[key]}, a token that {source.label}'s tokenizer lacks"
            problems.add(where, what, "unite the vocabularies, or add it by `tokens`")
    return {key: value for key, value in found.items() if value is not None or key in theirs}


def _stated(model: Vocabulary, file: str) -> dict[str, Any]:
    """Give the ids of tokens that a configuration names, also in its part on language."""
    if not (model.folder / file).is_file():
        return {}
    config = stored_json(model.folder, model.label, file)
    parts = [config, *(config[key] for key in _LANGUAGE if isinstance(config.get(key), dict))]
    return {
        key: value
        for part in parts
        for key, value in part.items()
        if _ID.search(key) or key in _LISTS
    }


def _mapped(value: Any, ids: Mapping[int, int]) -> Any:
    """Give the new ids of what a configuration names: None, or a shorter list, without a token."""
    if isinstance(value, list):
        return [ids[one] for one in value if one in ids]
    is_id = type(value) is int and value >= 0
    return ids.get(value) if is_id else value


def _may_lack(key: str) -> bool:
    return key in _LISTS or key.startswith(("forced", "decoder_start", *ROLES))
