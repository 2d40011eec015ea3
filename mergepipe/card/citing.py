"""BibTeX from docstrings: a method's file cites its paper in words, and that is the only place.

A citation is `Authors, "Title", Venue Year`; the address may follow. Several are told apart by a
semicolon, and may have their addresses together at the end. Authors after `et al.` are `others`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Citation", "bibtex", "citations"]

_CITATION = re.compile(
    r'(?P<authors>[A-Za-zÀ-ž][^";:()]*?),? "(?P<title>[^"]+)"(?: \([^)]*\))?'
    r"(?:,? (?P<venue>[^\";.]*?))?,? \(?(?P<year>(?:19|20)\d\d)\b(?P<track>(?: [A-Z]\w+)?)"
)
_NOT_AUTHORS = re.compile(r"^(?:The (?:mask|idea) is (?:that )?of|the election that of) ")
_URL = re.compile(r"https?://[^\s,;)]*[^\s,;).]")
_ARXIV = re.compile(r"https://arxiv\.org/abs/(\d{4}\.\d{4,5})")
_BETWEEN = re.compile(r"[\s.,()]*")  # what may stand between a citation and its address
_JOURNALS = ("TMLR", "CPAM", "Psychometrika", "JMLR")
_SPECIAL = re.compile(r"([&%$#_{}])")


@dataclass(frozen=True, slots=True)
class Citation:
    """A work, as a docstring cites it."""

    authors: tuple[str, ...]  # the last may be `others`
    title: str
    venue: str
    year: str
    url: str

    @property
    def key(self) -> str:
        """`yadav2023ties`: first author, year, first word of the title, in plain letters."""
        first = re.findall(r"\w+", self.authors[0])[-1]
        word = re.findall(r"\w+", self.title)[0]
        plain = unicodedata.normalize("NFKD", f"{first}{self.year}{word}".lower())
        return re.sub(r"[^a-z0-9]", "", plain)


def citations(doc: str) -> tuple[Citation, ...]:
    """Give the works that a docstring cites before its formula."""
    _, _, rest = doc.strip().partition("\n")
    text = " ".join(re.split(r"\n\s*\n {4}", rest)[0].split())
    found = list(_CITATION.finditer(text))
    return tuple(
        _citation(match, url) for match, url in zip(found, _urls(text, found), strict=True)
    )


def _urls(text: str, found: Sequence[re.Match[str]]) -> Iterator[str]:
    """Give the address of each citation; empty where none is its."""
    last = [match[0] for match in _URL.finditer(text)]
    ends = [match.end() for match in found]
    together = len(found) > 1 and len(last) == len(found) and text.find(last[0]) > ends[-1]
    for at, end in enumerate(ends):
        if together:
            yield last[at]
            continue
        url = _URL.search(text, end)
        is_next = url is not None and _BETWEEN.fullmatch(text[end : url.start()])
        yield url[0] if url is not None and is_next else ""


def _citation(match: re.Match[str], url: str) -> Citation:
    authors = _NOT_AUTHORS.sub("", match["authors"].strip())
    names = re.split(r", | and ", re.sub(r",? et al\.", " and others", authors))
    venue = f"{match['venue'] or ''}{match['track']}".strip()
    return Citation(tuple(names), match["title"], venue, match["year"], url)


def bibtex(work: Citation) -> str:
    """Give a work as a BibTeX entry."""
    arxiv = _ARXIV.fullmatch(work.url)
    journal = work.venue in _JOURNALS
    kind = "article" if journal else "inproceedings" if work.venue[:1].isupper() else "misc"
    where = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}[kind]
    names = (one if one == "others" or " " not in one else f"{{{one}}}" for one in work.authors)
    fields = {
        "title": f"{{{_escaped(work.title)}}}",  # in double braces, so that capitals stay
        "author": _escaped_names(names),
        where: _escaped(work.venue),
        "year": work.year,
        "eprint": arxiv[1] if arxiv else "",
        "archivePrefix": "arXiv" if arxiv else "",
        "url": work.url,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{work.key},", *lines, "}"])


def _escaped_names(names: Iterator[str]) -> str:
    return " and ".join(names)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
