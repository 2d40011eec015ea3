"""A transplant on the terminal: what is shared, what was made, how well."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mergepipe.cli.console import print_warnings, results, size
from mergepipe.errors import printable
from mergepipe.pipeline import Prepared
from mergepipe.transplant.planning import Transplant

__all__ = ["plan_lines", "run", "show_plan"]

_SHOWN = 8
_WORDS = {
    "role": "by role",
    "special": "special, by content",
    "exact": "same bytes",
    "byte": "same byte",
    "fuzzy": "but for case and space",
    "prefix": "by what it begins with",
    "approximated": "approximated",
    "special_fallback": "special, without a match",
    "junk": "of no token",
    "copied": "copied",
    "mean": "mean",
}

_MEASURES = {
    "bytes_per_token": "bytes/token",
    "fertility": "tokens/word",
    "renyi_efficiency": "Rényi efficiency",
}


def show_plan(prepared: Prepared, *, json_only: bool) -> None:
    """Print what a transplant would do."""
    (found,) = prepared.transplants.values()
    if json_only:
        print(json.dumps(_plan_json(prepared, found), indent=2))  # noqa: T201
        return
    for line in plan_lines(found):
        _print(line)
    _print(f"  disk {size(prepared.disk_bytes)}, {size(found.bytes_written)} of it made rows")
    _print(f"  memory {size(_peak_bytes(prepared, found))} at most, beside the program's own")


def _peak_bytes(prepared: Prepared, found: Transplant) -> int:
    return max(prepared.peak_bytes, found.peak_bytes)


def plan_lines(transplant: Transplant) -> Iterator[str]:
    """Say what two tokenizers share, for people."""
    found, donor = transplant.match, transplant.donor.label
    values = transplant.choice.parameters.model_dump(mode="json")
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    yield f"{transplant.base.label} with {donor}'s tokenizer: {transplant.choice.method} ({given})"
    yield f"  {len(found.donor):,} tokens, {transplant.rows:,} rows"
    for how, count in found.counts.items():
        if count and how in _WORDS:
            yield f"  {count:>8,} {_WORDS[how]}: the model's rows are kept"
    missing = found.counts["missing"] + found.counts["out_of_range"]
    yield f"  {missing:>8,} that the model lacks ({missing / max(1, len(found.donor)):.0%})"
    ours, theirs = transplant.digits
    yield f"  numbers: {ours} in the model, {theirs} in the tokenizer"
    for made in transplant.tensors:
        columns = f"[{transplant.rows:,}, {made.columns:,}]"
        yield f"  · {made.name} {columns} {made.stored.dtype}, by {made.donor or 'no table'}"


def _plan_json(prepared: Prepared, found: Transplant) -> dict[str, Any]:
    from mergepipe.transplant.report import as_json

    return {
        **as_json(found, ()),
        "tensors": {one.name: list(one.stored.shape) for one in found.tensors},
        "disk_bytes": prepared.disk_bytes,
        "peak_bytes": _peak_bytes(prepared, found),
        "warnings": list(prepared.warnings),
    }


def run(prepared: Prepared, *, overwrite: bool, json_only: bool) -> None:
    """Make it, score it if asked, and print the report."""
    from mergepipe import pipeline
    from mergepipe.cli import progress, scoring
    from mergepipe.evaluate import Scores

    with progress.shown() as report:
        outcome = pipeline.merge(prepared, overwrite=overwrite, report=report, tell=progress.tell)
    print_warnings(outcome.warnings)
    (said,) = json.loads((outcome.folder / pipeline.REPORT_FILE).read_bytes()).values()
    if not json_only:
        for line in report_lines(said):
            _print(line)
    progress.print_outcome(outcome)
    scores = Scores(())
    if prepared.evaluations:
        with (
            scoring.opened(prepared.evaluations, frozenset(), cached=True) as settings,
            scoring.progress(settings) as (notice, told),
        ):
            scores = pipeline.evaluate_result(prepared, outcome, notice=notice, settings=told)
    warnings = (*prepared.warnings, *outcome.warnings)
    scoring.show(
        scores,
        scoring.Shown(json=json_only, errors=False),
        reference=pipeline.reference_of(prepared),
        beside={**progress.as_json(outcome, warnings), "transplant": said},
    )


def report_lines(said: Mapping[str, Any]) -> Iterator[str]:
    """Say how every table came out, for people."""
    yield f"{said['model']} with {said['tokenizer']}'s tokenizer: {said['method']}"
    for table in said["tables"]:
        counts = ", ".join(f"{n:,} {_WORDS[how]}" for how, n in table["rows"].items() if n)
        yield f"  {table['tensor']} ({table['side']}): {counts}"
        if said["method"] == "auto" and table["notes"]:
            yield f"    {table['notes'][-1]}"
        if table["residuals"]:
            yield f"    not explained of donor rows: {_spread(table['residuals'])}"
        for name, norms in table["norms"].items():
            if norms:
                yield f"    norms, {name}: {_spread(norms)}"
        worst = (printable(repr(one["token"]), 30) for one in table["worst"][:_SHOWN])
        if table["worst"]:
            yield f"    worst: {', '.join(worst)}"
    yield from _quality_lines(said["quality"])


def _quality_lines(quality: Mapping[str, Any]) -> Iterator[str]:
    lost = quality["unreachable"]
    yield f"  unreachable tokens: {lost['model']:,} before, {lost['tokenizer']:,} after"
    for name, one in quality["texts"].items():
        yield f"  {name}:"
        for field, label in _MEASURES.items():
            before, after = (one[side][field] for side in ("model", "tokenizer"))
            if before is not None and after is not None:
                yield f"    {label}: {before:.3f} before, {after:.3f} after"
    yield from _parity_lines(quality["parity"])


def _parity_lines(parity: Mapping[str, Any]) -> Iterator[str]:
    first, *others = parity["model"] or [""]
    for language in others:
        pairs = (parity[side][language] for side in ("model", "tokenizer"))
        before, after = (f"{pair[0]:.3f}" if pair else "too much unknown" for pair in pairs)
        yield f"  tokens of {language} for one of {first}: {before} before, {after} after"


def _spread(values: Mapping[str, float]) -> str:
    return f"median {values['0.5']:.3g}, 1% to 99% {values['0.01']:.3g} to {values['0.99']:.3g}"


def _print(line: str) -> None:
    results.print(printable(line), markup=False, highlight=False, soft_wrap=True)
