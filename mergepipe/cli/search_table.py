"""What a search shows: the best so far and the time left, and in the end whether it is real."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.table import Table
from rich.text import Text

from mergepipe.cli.console import messages, results
from mergepipe.cli.progress import tell
from mergepipe.errors import printable
from mergepipe.pipeline import Searched
from mergepipe.search.study import Trial
from mergepipe.search.verdict import Gain

__all__ = ["as_json", "progress", "show"]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress() -> Iterator[Callable[[Trial, int], None]]:
    """Give what is told every trial that is done, and how many there will be."""
    if not messages.is_terminal:
        yield _Progress(tell, _SECONDS_BETWEEN_LINES)
        return
    with messages.status("starting the search") as status:
        yield _Progress(lambda line: status.update(Text(line)), 0)


class _Progress:
    """Says how far the search is, not more often than every so many seconds."""

    def __init__(self, say: Callable[[str], None], seconds: float) -> None:
        self.say, self.seconds = say, seconds
        self.began: float | None = None
        self.spoke = float("-inf")
        self.done, self.failed = 0, 0
        self.best: tuple[float, ...] | None = None

    def __call__(self, trial: Trial, total: int) -> None:
        now = time.monotonic()
        self.began = now - trial.seconds if self.began is None else self.began
        self.done += 1
        if trial.state == "failed":
            self.failed += 1
            tell(f"trial {trial.number} failed: {printable(trial.reason, 300)}")
        elif trial.items is None and (self.best is None or trial.losses < self.best):
            self.best = trial.losses
        if now - self.spoke < self.seconds and trial.number + 1 < total:
            return
        self.spoke = now
        left = (now - self.began) / self.done * max(0, total - trial.number - 1)
        best = "" if self.best is None else f", best loss {self.best[0]:.5g}"
        failed = f", {self.failed} failed" if self.failed else ""
        self.say(f"trial {trial.number + 1} of {total}{best}{failed}, {left:.0f} s left")


def show(found: Searched) -> None:
    """Print the winner, its values, and what held-out items say of it."""
    winner, verdict = found.winner, found.verdict
    values = Table("searched", "start", "best", title=f"trial {winner.number}, the best")
    for gene, value in zip(found.genes, winner.values, strict=True):
        values.add_row(Text(printable(gene.name)), _number(gene.start), _number(value))
    results.print(values)
    items = "the items searched on" if verdict.part is None else f"{_items(found)} unseen items"
    gains = Table("over", "evaluation", "less loss", "95 %", "", title=f"gain on {items}")
    for gain in verdict.gains:
        evaluation = "all" if gain.evaluation is None else printable(gain.evaluation)
        gains.add_row(
            Text(printable(gain.over)), Text(evaluation), f"{gain.value:+.4f}", *_real(gain)
        )
    results.print(gains)
    for line in _remarks(found):
        results.print(line, markup=False, highlight=False, soft_wrap=True)


def _items(found: Searched) -> int:
    return max(gain.n for gain in found.verdict.gains)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(value, 60)


def _real(gain: Gain) -> tuple[str, str]:
    if gain.low is None or gain.high is None:
        return "unknown", ""
    word = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not beyond chance"
    return f"{gain.low:+.4f} to {gain.high:+.4f}", word


def _remarks(found: Searched) -> Iterator[str]:
    verdict, winner = found.verdict, found.winner
    if winner.number == 0:
        start = next((one.over for one in verdict.gains), "the start")
        yield f"no candidate was better than {start}"
    if verdict.gap is not None and verdict.is_overfit:
        value, low, high = verdict.gap
        yield (
            f"OVERFIT: the gain was {value:.4f} ({low:.4f} to {high:.4f}) larger on the items "
            "that were searched on; use more of them, or search fewer numbers"
        )
    if verdict.spread is not None:
        yield (
            f"an evaluation is not repeatable: losses moved by {verdict.spread:.2g} of their value "
            "when the best candidates were evaluated again"
        )
    if len(found.names) > 1:
        numbers = ", ".join(str(one.number) for one in found.finalists)
        yield f"the front: trials {numbers}, as recipes in {found.folder / 'front'}"


def as_json(found: Searched) -> dict[str, object]:
    """Give what was found as JSON has it."""
    values = zip(found.genes, found.winner.values, strict=True)
    return {
        "best": str(found.best),
        "trials": len(found.trials),
        "failed": sum(one.state == "failed" for one in found.trials),
        "values": {gene.name: value for gene, value in values},
        "losses": dict(zip(found.names, found.winner.losses, strict=True)),
        "scores": dict(found.winner.scores),
        **found.verdict.plain(),
    }
