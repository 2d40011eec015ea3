"""How the run went, what it did to tokenizers, what it warned of, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergepipe.report.charts.bars import bars
from mergepipe.report.contents import Contents, RunRecord, Table, Transplanted
from mergepipe.report.markup import Child, tag
from mergepipe.report.parts import card, facts, fold, grid, note, size, table, time

__all__ = ["again", "timing", "tokenizers", "warnings"]


def timing(contents: Contents) -> Iterator[Child]:
    """Give where the time went."""
    record = contents.record
    if record is None:
        yield note("How long this run took was not recorded.")
        return
    yield facts(_numbers(record))
    cards = []
    if record.parts:
        parts = [(name, seconds, time(seconds)) for name, seconds in record.parts]
        cards.append(card(tag("b", "Merging"), bars("seconds of merging", parts)))
    if record.scoring:
        models = [(name, seconds, time(seconds)) for name, seconds in record.scoring]
        cards.append(
            card(
                tag("b", "Scoring"),
                bars("seconds of scoring", models),
                "Results that were kept from before take no time.",
            )
        )
    yield grid(cards)


def _numbers(record: RunRecord) -> Iterator[tuple[str, str]]:
    yield "started", record.started.replace("T", " ").replace("Z", " UTC")
    merging = sum(seconds for _, seconds in record.parts)
    yield "merging", time(merging)
    if record.scoring:
        yield "scoring", time(sum(seconds for _, seconds in record.scoring))
    if record.cpu_seconds is not None:
        yield "processor time of merging", time(record.cpu_seconds)
    if record.peak_bytes is not None:
        yield "most memory", size(record.peak_bytes)
    if record.bytes_read is not None and merging > 0:
        yield "read", f"{size(record.bytes_read)}, {size(record.bytes_read / merging)}/s"
    if record.threads is not None:
        yield "threads", f"{record.threads:.0f}"
    if record.device is not None:
        yield "device", record.device
    if record.kept:
        yield "tensors kept from a run that was cut off", f"{record.kept:,}"


def tokenizers(transplants: Sequence[Transplanted]) -> Iterator[Child]:
    """Give what transplants did, by stage."""
    for one in transplants:
        if len(transplants) > 1:
            yield tag("h3", one.name)
        yield facts(
            (
                ("method", tag("code", one.method)),
                ("model", one.model),
                ("tokenizer of", one.tokenizer),
                ("tokens", f"{one.tokens:,}"),
            )
        )
        matches = [(kind, float(count), f"{count:,}") for kind, count in one.matches]
        drawn = bars("tokens by how they were matched", matches)
        yield grid([card(tag("b", "Tokens by how they were matched"), drawn)])
        yield from _tables(one.tables)
        if one.note:
            yield note(one.note)


def _tables(tables: Sequence[Table]) -> Iterator[Child]:
    rows = [
        (
            tag("code", one.tensor),
            ", ".join(f"{count:,} {kind}" for kind, count in one.rows),
            _place(one.residual),
            ", ".join(f"{kind} {norm:.3f}" for kind, norm in one.norms),
        )
        for one in tables
    ]
    yield table(("tensor", "rows", "median residual", "median norms"), rows, kind="wrap")
    worst = [line for one in tables[:1] for line in one.worst]
    if worst:
        lines = [(tag("code", token), _place(r), _place(norm)) for token, r, norm in worst]
        inside = table(("token", "residual", "norm"), lines, kind="numbers")
        has_residuals = any(residual is not None for _, residual, _ in worst)
        yield fold("Tokens made worst" if has_residuals else "Tokens of the longest rows", inside)


def _place(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def warnings(contents: Contents) -> Iterator[Child]:
    """Give what the run warned of."""
    yield tag("ul", (tag("li", one) for one in contents.warnings))


def again(contents: Contents) -> Iterator[Child]:
    """Give the recipe, and how to make the same bytes from it."""
    if contents.again:
        yield tag("pre", "\n".join(contents.again))
    if contents.recipe:
        yield tag("h3", "The recipe")
        yield tag("pre", contents.recipe)
    yield tag(
        "p",
        "The same recipe over the same inputs by the same versions gives the same bytes.",
        class_="small",
    )
