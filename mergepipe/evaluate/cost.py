"""What scores have cost, where others are asked for them: requests, tokens and money."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergepipe.evaluate.score import ScoreRow
from mergepipe.model import Usage

__all__ = ["cost_lines", "costs"]


def costs(rows: Sequence[ScoreRow]) -> Mapping[str, Usage]:
    """Add up what each model, and its judges, have cost by now; kept results cost nothing more."""
    found: dict[str, Usage] = {}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.cached or (row.model, row.evaluation) in seen:
            continue
        seen.add((row.model, row.evaluation))
        found[row.model] = found.get(row.model, Usage()) + row.usage
        if row.judges is not None:
            name = f"judges of {row.model}"
            found[name] = found.get(name, Usage()) + row.judges
    return found


def cost_lines(rows: Sequence[ScoreRow]) -> Iterator[str]:
    """Say what was paid, or may have been: to judges, and to servers whose prices are known."""
    for name, usage in costs(rows).items():
        if usage.usd or name.startswith("judges of "):
            read, written = usage.prompt_tokens, usage.generated_tokens
            money = f", ${usage.usd:.4f}" if usage.usd else ""
            yield f"{name}: {usage.requests:,} requests, {read:,} + {written:,} tokens{money}"
