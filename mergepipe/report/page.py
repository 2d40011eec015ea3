"""The page: one file that asks for nothing else, runs nothing, and says the result first."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator

from mergepipe.report import models, runs, scores, searched
from mergepipe.report.contents import Contents
from mergepipe.report.markup import Child, Node, render, safe, tag
from mergepipe.report.parts import facts
from mergepipe.report.style import style

__all__ = ["GENERATOR", "IDENTITY", "page"]

GENERATOR = "mergepipe report"
IDENTITY = "mergepipe-run"


def page(contents: Contents) -> str:
    """Give the page as HTML."""
    look = style()
    digest = base64.b64encode(hashlib.sha256(look.encode()).digest()).decode()
    sections = list(_sections(contents))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        _meta("generator", GENERATOR),
        _meta(IDENTITY, contents.identity),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
            "form-action 'none'",
        ),
        _meta("viewport", "width=device-width, initial-scale=1"),
        _meta("color-scheme", "light dark"),
        tag("title", f"{contents.name} – mergepipe report"),
        tag("style", look),
    )
    body = tag(
        "body",
        _header(contents),
        tag("nav", (_link(*one) for one in sections), aria_label="sections"),
        tag("main", (_section(*one) for one in sections)),
        tag("footer", contents.versions),
    )
    assert safe(look) == look, "the style needs no escaping"
    return "<!doctype html>\n" + render(tag("html", head, body, lang="en")) + "\n"


def _meta(name: str, content: str) -> Node:
    return tag("meta", name=name, content=content)


def _header(contents: Contents) -> Node:
    return tag(
        "header",
        tag("p", "mergepipe report", class_="eyebrow"),
        tag("h1", contents.name),
        tag("p", _subtitle(contents), class_="sub") if contents.stages else None,
        facts(contents.facts),
    )


def _subtitle(contents: Contents) -> str:
    """Say what was merged how, of the last stage."""
    last = contents.stages[-1]
    models = ", ".join(label for label in last.each if label != last.base)
    base = f" on {last.base}" if last.base is not None else ""
    return f"{last.method} of {models}{base}"


def _sections(contents: Contents) -> Iterator[tuple[str, str, Iterable[Child]]]:
    """Give the sections: anchor, heading, what is in it."""
    if contents.facts or contents.scores is not None:
        yield "result", "Result", scores.result(contents)
    if contents.found is not None:
        yield "search", "Search", searched.search(contents.found)
    if contents.warnings:
        yield "warnings", "Warnings", runs.warnings(contents)
    if contents.inputs:
        yield "inputs", "What went in", models.inputs(contents)
    if contents.stages:
        yield "method", "Method and parameters", models.method(contents)
    if contents.maps is not None or contents.no_maps:
        yield "vectors", "Task vectors", models.vectors(contents)
    if contents.transplants:
        yield "tokenizer", "Tokenizer", runs.tokenizers(contents.transplants)
    if contents.record is not None:
        yield "time", "Time and memory", runs.timing(contents)
    if contents.recipe:
        yield "again", "Make it again", runs.again(contents)


def _link(anchor: str, heading: str, _: Iterable[Child]) -> Node:
    return tag("a", heading, href=f"#{anchor}")


def _section(anchor: str, heading: str, inside: Iterable[Child]) -> Node:
    return tag("section", tag("h2", heading), inside, id=anchor)
