"""A plan on the terminal: how tensors are made, which, and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from mergepipe.cli.console import results, size
from mergepipe.cli.vocabulary_table import vocabulary_json, vocabulary_lines
from mergepipe.errors import printable
from mergepipe.pipeline import Prepared, planned_search
from mergepipe.plan import Group, Plan, as_json, groups
from mergepipe.search.space import Choice, Gene, Value

__all__ = ["show"]

_MOST_NAMES = 40


def show(prepared: Prepared, *, json_only: bool) -> None:
    """Print the plan of every stage, for people or as JSON."""
    if json_only:
        print(json.dumps(_json(prepared), indent=2))  # noqa: T201
        return
    for plan in prepared.plans:
        for line in (*_plan_lines(plan), ""):
            _print(line)
    if prepared.united is not None:
        for line in (*vocabulary_lines(prepared.united.union), ""):
            _print(line)
    totals = _totals(prepared) if prepared.plans else _place(prepared)
    for name, line in totals.items():
        _print(f"{name:8} {line}")
    for line in _search_lines(prepared):
        _print(line)


def _print(line: str) -> None:
    results.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _json(prepared: Prepared) -> dict[str, object]:
    return {
        "output": str(prepared.target) if prepared.target else None,
        "peak_bytes": prepared.peak_bytes if prepared.plans else 0,
        "disk_bytes": prepared.disk_bytes,
        "threads": prepared.threads,
        "warnings": list(prepared.warnings),
        **(
            {}
            if prepared.united is None
            else {"vocabulary": vocabulary_json(prepared.united.union)}
        ),
        "stages": [as_json(plan, prepared.threads) for plan in prepared.plans],
        **_search_json(prepared),
    }


def _search_json(prepared: Prepared) -> dict[str, object]:
    planned, spec = planned_search(prepared), prepared.recipe.search
    if planned is None or spec is None:
        return {}
    genes, batch = planned
    fields = {"optimizer": spec.fields.optimizer, "budget": spec.fields.budget, "batch": batch}
    searched = [asdict(gene) for gene in genes]
    return {"search": {**fields, "evaluations": list(spec.weights), "genes": searched}}


def _search_lines(prepared: Prepared) -> Iterator[str]:
    planned, spec = planned_search(prepared), prepared.recipe.search
    if planned is None or spec is None:
        return
    genes, batch = planned
    yield (
        f"search   {spec.fields.budget} candidates of {len(genes)} values by "
        f"{spec.fields.optimizer}, {batch} at a time, scored on {', '.join(spec.weights)}"
    )
    for gene in genes[:_MOST_NAMES]:
        yield f"      · {gene.name}: {_range(gene)}, from {_shown(gene.start)}"
    if len(genes) > _MOST_NAMES:
        yield f"      · and {len(genes) - _MOST_NAMES} more (--json lists all)"


def _range(gene: Gene) -> str:
    if isinstance(gene, Choice):
        return " or ".join(map(str, gene.values))
    return f"{gene.low:g} to {gene.high:g}"


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _place(prepared: Prepared) -> dict[str, str]:
    """Say where a merge is made of which there is no plan here."""
    made = prepared.compositions
    if made is not None:
        url, folder = made.server.base.location["base_url"], made.server.folder
        said = f"{url} loads merges of {', '.join(made.adapters)} from {folder} and scores them"
        return {"server": f"{said}; the base's weights do not come here"}
    if prepared.service is None:
        return {}
    url = prepared.service.address.base_url
    models = ", ".join(prepared.service.labels)
    return {"service": f"{url} merges and scores candidates of {models}; no weights come here"}


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.name}: {plan.spec.method}, output like {plan.donor.label}"
    for group in groups(plan):
        yield from _group_lines(group)
    counts = Counter((one.label, one.reason) for one in plan.dropped)
    for (label, reason), count in counts.items():
        first = next(d.name for d in plan.dropped if (d.label, d.reason) == (label, reason))
        more = f" and {count - 1} more" if count > 1 else ""
        yield f"  not used, from {label}: {first}{more} ({reason})"


def _group_lines(group: Group) -> Iterator[str]:
    count = sum(group.names.values())
    how = f"{group.method or 'copy'} {' + '.join(group.inputs)}"
    why = "" if group.reason == "merge" else f" ({group.reason})"
    dtypes = " → ".join(group.dtypes)
    needs = f", {group.needs} at once" if group.needs else ""
    yield f"  {how}: {count} tensors, {group.numel:,} elements, {dtypes}{needs}{why}"
    values = [
        f"{name}={value.shown}{'' if value.origin == 'default' else f' [{value.origin}]'}"
        for name, value in group.parameters.items()
    ]
    if values:
        yield f"      {', '.join(values)}"
    if group.then:
        yield f"      then {', '.join(group.then)}"
    for name, repeats in list(group.names.items())[:_MOST_NAMES]:
        yield f"      · {name}{f' ×{repeats}' if repeats > 1 else ''}"
    if len(group.names) > _MOST_NAMES:
        yield f"      · and {len(group.names) - _MOST_NAMES} more names (--json lists all)"


def _totals(prepared: Prepared) -> dict[str, str]:
    last = prepared.plans[-1]
    elements = sum(step.numel for step in last.steps)
    passes = max(step.sweeps for plan in prepared.plans for step in plan.steps)
    read = size(sum(plan.bytes_read for plan in prepared.plans))
    return {
        "output": f"{prepared.target or 'none given'}: {len(last.steps)} tensors, "
        f"{elements:,} parameters, {len(last.layout.shards)} file(s)",
        "reads": f"at most {read}, in up to {passes} pass(es)",
        "disk": f"{size(prepared.disk_bytes)} written",
        "memory": f"about {size(prepared.peak_bytes)} for {prepared.threads} workers, "
        f"{size(prepared.budget.workers * prepared.budget.share)} allowed",
    }
