"""Which licences are known, what kind each is, and which of them do not go together.

This is a table and a few rules of thumb over it, not legal advice: it finds what a person should
look at. Ids are those of SPDX, in lower case, and those that the Hugging Face hub adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["MISSING", "Choice", "choose", "conflicts", "is_on_hub", "kind_of", "licence_id"]

Kind: TypeAlias = Literal[
    "permissive", "copyleft", "non-commercial", "no derivatives", "own terms", "unknown"
]
MISSING = "unknown"  # the hub's word for a licence that nobody stated

_KINDS: Mapping[Kind, str] = {
    "permissive": """
        apache-2.0 mit mit-0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib ncsa
        postgresql unlicense 0bsd wtfpl cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 pddl
        odc-by cdla-permissive-1.0 cdla-permissive-2.0 afl-3.0 artistic-2.0 bsl-1.0 c-uda ecl-2.0
        etalab-2.0 ms-pl ofl-1.1 lppl-1.3c openmdw-1.0 psf-2.0 python-2.0
    """,
    "copyleft": """
        gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr agpl-3.0 mpl-2.0 epl-1.0 epl-2.0
        eupl-1.1 eupl-1.2 osl-3.0 gfdl cc-by-sa-3.0 cc-by-sa-4.0 odbl cdla-sharing-1.0
    """,
    "non-commercial": """
        cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
        fair-noncommercial-research-license intel-research apple-amlr h-research
        deepfloyd-if-license qwen-research mrl mnpl exaone
    """,
    "no derivatives": "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
    "own terms": """
        llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++
        bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m creativeml-openrail-m
        grok2-community apple-ascl tongyi-qianwen qwen deepseek yi-license falcon-llm-license
        nvidia-open-model-license nvidia-community-model-license jamba-open-model-license lfm1.0
        stabilityai-ai-community
    """,
}
_KIND: Mapping[str, Kind] = {name: kind for kind, names in _KINDS.items() for name in names.split()}
# Known here, but not to the hub, which calls them `other` and shows their name.
_OTHERS = """
    mit-0 0bsd psf-2.0 python-2.0 qwen-research mrl mnpl exaone tongyi-qianwen qwen deepseek
    yi-license falcon-llm-license nvidia-open-model-license nvidia-community-model-license
    jamba-open-model-license lfm1.0 stabilityai-ai-community
"""
_NOT_ON_THE_HUB = frozenset(_OTHERS.split())
_ALIASES = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "mit-license": "mit",
    "cc0": "cc0-1.0",
    "cc-by": "cc-by-4.0",
    "cc-by-nc": "cc-by-nc-4.0",
    "cc-by-sa": "cc-by-sa-4.0",
    "gplv3": "gpl-3.0",
    "agplv3": "agpl-3.0",
    "none": MISSING,
}
_RESTRICTED = ("non-commercial", "no derivatives")
# What is said of a licence of a kind; with `{others}` only if there are others beside it.
_WORDS: Mapping[Kind, str] = {
    "non-commercial": "allows no commercial use, and {others} may",
    "no derivatives": "allows no changed versions, and a merge is one",
    "copyleft": "asks the same licence of what is made of it, which is not {others}",
    "unknown": "is on no list here: read its terms",
}
_SUFFIX = re.compile(r"-(only|or-later)$")
_ID = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Choice:
    """The licence that a result is given, and where it comes from."""

    id: str
    reason: str


def licence_id(text: str) -> str:
    """Give a licence as the hub writes it; what cannot be an id is `other`.

    >>> licence_id("Apache License 2.0"), licence_id("GPL-3.0-or-later"), licence_id("see LICENSE!")
    ('apache-2.0', 'gpl-3.0', 'other')
    """
    plain = _SUFFIX.sub("", "-".join(text.strip().lower().split()))
    plain = _ALIASES.get(plain, plain)
    return plain if _ID.fullmatch(plain) else "other"


def is_on_hub(licence: str) -> bool:
    """Tell whether the hub's list of licences has this id."""
    return licence in {*_KIND, "other", MISSING} - _NOT_ON_THE_HUB


def kind_of(licence: str) -> Kind:
    """Give what kind a licence is, by its id; `unknown` for ids that are on no list."""
    return _KIND.get(licence, "unknown")


def conflicts(licences: Mapping[str, str]) -> list[str]:
    """Say what of the licences of models (label -> id) should be looked at before publishing."""
    labels: dict[str, list[str]] = {}
    for label, licence in licences.items():
        labels.setdefault(licence, []).append(label)
    own = [one for one in labels if one != MISSING and kind_of(one) == "own terms"]
    found = [said for licence in labels if (said := _said(licence, labels))]
    if len(own) > 1:
        shown = "; ".join(f"{one} ({', '.join(labels[one])})" for one in own)
        found.append(f"several licences with terms of their own, which may clash: {shown}")
    return found


def _said(licence: str, labels: Mapping[str, Sequence[str]]) -> str:
    """Say what is to be known of one licence beside the others; empty if nothing is."""
    whose = ", ".join(labels[licence])
    if licence == MISSING:
        return f"no licence is stated for {whose}, so nobody else may use it"
    kind = kind_of(licence)
    others = [one for one in labels if one not in (licence, MISSING)]
    if kind == "non-commercial":
        others = [one for one in others if kind_of(one) not in _RESTRICTED]
    words = _WORDS.get(kind, "")
    if not words or (not others and "{others}" in words):
        return ""
    return f"{licence} ({whose}) {words.format(others=' or '.join(others))}"


def choose(licences: Mapping[str, str]) -> Choice:
    """Give the licence that the result of these models (label -> id) seems to have.

    That is the one they share, or the most demanding one if all others are permissive; otherwise
    it is `other`, and `unknown` if one is not stated.
    """
    found = list(dict.fromkeys(licences.values()))
    if not found or MISSING in found:
        return Choice(MISSING, "not all inputs state one")
    if len(found) == 1:
        return Choice(found[0], "that of all inputs")
    strict = [one for one in found if kind_of(one) != "permissive"]
    if len(strict) == 1:
        return Choice(strict[0], "the most demanding one of the inputs")
    if strict:
        return Choice("other", f"the inputs have several: {', '.join(found)}")
    chosen = "apache-2.0" if "apache-2.0" in found else found[0]
    return Choice(chosen, "the inputs' licences are all permissive; keep all their notices")
