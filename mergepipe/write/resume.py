"""Which tensors of an unfinished output can stay: those whose bytes are what the journal says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergepipe.checkpoint import DTYPES
from mergepipe.digest import Span, digest_spans
from mergepipe.plan import Plan
from mergepipe.write.journal import Record

__all__ = ["sound_records"]


def sound_records(
    plan: Plan, folder: Path, records: Sequence[Record], threads: int
) -> list[Record]:
    """Give those of a plan's records whose tensors are in `folder` as they were written."""
    sizes = {step.name: step.numel * DTYPES[step.dtype].itemsize for step in plan.steps}
    known = [record for record in records if record.tensor in sizes]
    spans = [_span(plan, folder, one.tensor, sizes[one.tensor]) for one in known]
    found = digest_spans(spans, threads)
    return [one for one, digest in zip(known, found, strict=True) if one.digest == digest]


def _span(plan: Plan, folder: Path, tensor: str, count: int) -> Span:
    shard, start = plan.layout.place[tensor]
    return Span(folder / plan.layout.shards[shard].file, start, start + count)
