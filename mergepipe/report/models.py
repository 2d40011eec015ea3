"""What went in, how it was merged, and how far its changes are from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergepipe.report.charts.curves import curves
from mergepipe.report.charts.heat import Map, heat
from mergepipe.report.contents import Coefficients, Contents, Input, Maps, Pair, Stage
from mergepipe.report.markup import Child, Node, tag
from mergepipe.report.parts import card, facts, fold, grid, note, size, table

__all__ = ["inputs", "method", "vectors"]

_SHORT = 12  # characters of a digest
_MOST_PAIRS = 6  # whose maps are drawn; the others are in the table
_CHANCE = 0.5


def inputs(contents: Contents) -> Iterator[Child]:
    """Give the models that went in."""
    if not contents.inputs:
        yield note("The manifest names no inputs.")
        return
    has_licence = any(one.licence for one in contents.inputs)
    heads = ["model", "from", "size", "tensors read", "digest"]
    heads += ["licence"] if has_licence else []
    yield table(heads, [_input(one, has_licence=has_licence) for one in contents.inputs])
    yield tag(
        "p",
        "The digest is of the digests of all tensors that were read; it is the same wherever "
        "the same weights lie.",
        class_="small",
    )


def _input(one: Input, *, has_licence: bool) -> list[Child]:
    name: list[Child] = [one.label, tag("span", "base", class_="badge") if one.is_base else None]
    source = one.source + (f" + {one.adapter}" if one.adapter else "")
    row: list[Child] = [name, source, size(one.bytes), f"{one.tensors:,}" if one.tensors else "–"]
    row.append(tag("code", one.digest[:_SHORT]) if one.tensors else "–")
    return [*row, one.licence or "–"] if has_licence else row


def method(contents: Contents) -> Iterator[Child]:
    """Give every merge with its parameters, and those that change over depth or by module."""
    if not contents.stages:
        yield note("The recipe that the manifest holds is of a form that is not taken apart here.")
    for stage in contents.stages:
        if len(contents.stages) > 1:
            yield tag("h3", stage.name)
        yield from _stage(stage)


def _stage(stage: Stage) -> Iterator[Child]:
    yield tag("p", tag("code", stage.method), f" — {stage.sentence}" if stage.sentence else None)
    names = list(dict.fromkeys(name for values in stage.each.values() for name in values))
    rows: list[list[Child]] = [
        [label, *(values.get(name, "–") for name in names)] for label, values in stage.each.items()
    ]
    if stage.base is not None and stage.base not in stage.each:
        rows.insert(0, [[stage.base, tag("span", "base", class_="badge")], *([""] * len(names))])
    yield table(["model", *names], rows)
    if stage.shared:
        yield facts(stage.shared.items())
    if stage.rules:
        yield tag("p", "Rules for some tensors, the first that fits:", class_="small")
        yield tag("ul", (tag("li", tag("code", one)) for one in stage.rules))
    if stage.then:
        yield tag("p", "Then: ", ", ".join(stage.then), ".", class_="small")
    for one in stage.coefficients:
        yield from _coefficients(one)
    if stage.doc:
        yield fold("Source and formula", tag("pre", stage.doc))


def _coefficients(given: Coefficients) -> Iterator[Child]:
    moving = {kind: found for kind, found in given.curves.items() if _moves(found)}
    still = {kind: found for kind, found in given.curves.items() if kind not in moving}
    if moving:
        yield tag("h3", given.name, " over depth")
        yield grid(_depth(given.name, kinds, moving[kinds[0]]) for kinds in _alike(moving))
    if still:
        models = list(next(iter(still.values())))
        rows = list(still)
        values = [[still[kind][model][0][1] for model in models] for kind in rows]
        low, high = min(map(min, values)), max(map(max, values))
        drawn = heat(
            f"{given.name} by module", Map(rows, models, values, min(0.0, low), high, "size")
        )
        yield tag("h3", given.name, " by module")
        yield grid([card("modules down, models across", drawn)])


def _moves(found: Mapping[str, Sequence[tuple[int | None, float]]]) -> bool:
    return any(
        len({value for layer, value in points if layer is not None}) > 1
        for points in found.values()
    )


def _alike(moving: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """Put modules together whose curves are the same."""
    groups: list[list[str]] = []
    for kind, found in moving.items():
        same = next((one for one in groups if moving[one[0]] == found), None)
        if same is None:
            groups.append([kind])
        else:
            same.append(kind)
    return groups


def _depth(
    name: str, kinds: Sequence[str], found: Mapping[str, Sequence[tuple[int | None, float]]]
) -> Node:
    points = {
        model: [(float(layer), value) for layer, value in values if layer is not None]
        for model, values in found.items()
    }
    kind = ", ".join(kinds)
    return card(kind, curves(f"{name} of {kind} over depth", points, over="layer"))


def vectors(contents: Contents) -> Iterator[Child]:
    """Give how large the task vectors are, and where they pull against each other."""
    maps = contents.maps
    if maps is None:
        yield note(contents.no_maps or "Task vectors were not measured.")
        return
    yield tag(
        "p",
        f"A task vector is a model’s weights less those of {maps.base}. Its relative norm is its "
        "size by the base’s. Two of them conflict in an element if their signs differ there: "
        "of vectors that have nothing to do with each other, half of the elements do. "
        "Modules are rows, layers columns.",
    )
    yield tag("h3", "Relative norms")
    yield grid(_norms(maps))
    if maps.pairs:
        yield tag("h3", "Sign conflicts")
        yield grid(_conflicts(maps))
        yield fold("Cosines", grid(_cosines(maps)))
        yield fold("All pairs on the whole", _pairs(maps))


def _norms(maps: Maps) -> Iterator[Node]:
    """Draw the norms of all models on one scale, so that they can be compared."""
    highest = max(
        (x for one in maps.norms.values() for line in one for x in line if x is not None),
        default=1.0,
    )
    for label, values in maps.norms.items():
        given = Map(
            maps.kinds, maps.layers, values, 0.0, highest or 1.0, "size",
            means=maps.norms_by_kind[label], apart=_is_apart(maps),
        )  # fmt: skip
        total = maps.totals[label]
        said = "" if total is None else f", {total:.3f} on the whole"
        yield card([tag("b", label), said], heat(f"relative norm of {label}", given))


def _is_apart(maps: Maps) -> bool:
    return bool(maps.layers) and maps.layers[0] == "outside"


def _drawn_pairs(maps: Maps) -> list[Pair]:
    """Give the pairs that conflict most, if there are many."""
    if len(maps.pairs) <= _MOST_PAIRS:
        return list(maps.pairs)
    ranked = sorted(maps.pairs, key=lambda one: -(one.total_conflict or 0.0))
    return ranked[:_MOST_PAIRS]


def _conflicts(maps: Maps) -> Iterator[Node]:
    drawn = _drawn_pairs(maps)
    values = [x for one in drawn for line in one.conflict for x in line if x is not None]
    low, high = min(values, default=0.0), max(_CHANCE, *values, 0.0)
    for one in drawn:
        given = Map(
            maps.kinds, maps.layers, one.conflict, low, high, "conflict",
            means=one.conflict_by_kind, apart=_is_apart(maps),
        )  # fmt: skip
        name = " and ".join(one.models)
        said = (
            "" if one.total_conflict is None else f", {100 * one.total_conflict:.1f} % on the whole"
        )
        yield card([tag("b", name), said], heat(f"sign conflict of {name}", given))


def _cosines(maps: Maps) -> Iterator[Node]:
    for one in _drawn_pairs(maps):
        given = Map(maps.kinds, maps.layers, one.cosine, -1.0, 1.0, "sign", apart=_is_apart(maps))
        name = " and ".join(one.models)
        yield card(tag("b", name), heat(f"cosine of {name}", given))


def _pairs(maps: Maps) -> Node:
    rows = [
        (
            " and ".join(one.models),
            "–" if one.total_cosine is None else f"{one.total_cosine:.3f}",
            "–" if one.total_conflict is None else f"{100 * one.total_conflict:.1f} %",
        )
        for one in maps.pairs
    ]
    return table(("models", "cosine", "sign conflict"), rows, kind="numbers")
