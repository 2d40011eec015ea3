"""What is searched: every `{search: ...}` of a recipe becomes one gene or several.

A candidate is the recipe with a value in each of these places, so that it can be read, run and
published like any other recipe.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mergepipe.errors import Problems, printable
from mergepipe.recipe import Document, FieldPath

__all__ = ["Choice", "Gene", "Number", "Space", "Value", "read_gene", "read_space", "untuned"]

Value: TypeAlias = float | int | bool | str
_KEY = "search"
_SEARCHABLE = ("merge", "stages", "ensemble", "seed")
_MOST_GENES = 10_000
_MODULES = ("*attn*", "*attention*", "*mlp*", "*experts*", "*feed_forward*")


@dataclass(frozen=True, slots=True)
class Number:
    """A number between `low` and `high`, on a logarithmic scale or whole where that is said.

    `sigma` is the size of a first step, None for a sixth of the range. What is clipped has no
    bounds for the optimiser: values outside are moved to the nearest bound, and where `low` is not
    negative their sizes are taken first.
    """

    name: str  # merge.models.french.weight, or merge.t.3 for the fourth anchor of a gradient
    low: float
    high: float
    start: float
    is_log: bool = False
    is_int: bool = False
    sigma: float | None = None
    is_clipped: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values, in no order."""

    name: str
    values: tuple[Value, ...]
    start: Value


Gene: TypeAlias = Number | Choice


def read_gene(found: Mapping[str, Any]) -> Gene:
    """Give the gene of which `dataclasses.asdict` gave the fields."""
    if "values" in found:
        return Choice(**{**found, "values": tuple(found["values"])})
    return Number(**found)


@dataclass(frozen=True)
class Space:
    """All genes of a recipe, and the recipe without them."""

    genes: tuple[Gene, ...]
    document: Document
    places: tuple[tuple[FieldPath, _Shape], ...]

    def filled(self, values: Sequence[Value]) -> Document:
        """Give the recipe with `values` for the genes, in their order."""
        assert len(values) == len(self.genes), "one value for each gene"
        data = copy.deepcopy(self.document.data)
        data.pop(_KEY, None)
        rest = iter(values)
        for path, shape in self.places:
            _set(data, path, shape.laid_out([next(rest) for _ in range(shape.count)]))
        return replace(self.document, data=data)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the values of one place stand in the recipe."""

    kind: Literal["one", "gradient", "blocks", "modules"]
    count: int
    layers: int = 0
    globs: tuple[str, ...] = ()
    size: int | None = None  # layers of a block; the last one may have fewer

    def laid_out(self, values: list[Value]) -> Any:
        if self.kind == "one":
            return values[0]
        if self.kind == "gradient":
            return values
        if self.kind == "blocks":  # a value for every layer: those of one block are the same
            if self.size is not None:
                return [values[layer // self.size] for layer in range(self.layers)]
            return [values[layer * self.count // self.layers] for layer in range(self.layers)]
        cases = [{"tensors": g, "value": v} for g, v in zip(self.globs, values, strict=False)]
        return [*cases, {"value": values[-1]}]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _Choices(_Fields):
    choice: Annotated[list[bool | int | float | str], Field(min_length=2)]


class _Search(_Fields):
    """A searched place."""

    search: Annotated[list[float], Field(min_length=2, max_length=2)] | _Choices
    init: bool | float | str | None = None
    log: bool = False
    whole: bool = Field(False, alias="int")
    sigma: Annotated[float, Field(gt=0)] | None = None  # of a first step
    clip: bool = False  # what lies outside, in place of reflecting it
    points: Annotated[int, Field(ge=2, le=64)] | None = None
    per: Literal["layer", "group", "module"] | None = None
    groups: Annotated[int, Field(ge=2)] = 4
    size: Annotated[int, Field(ge=1)] | None = None  # layers of a group, in place of `groups`
    smooth: bool = False  # a gradient through the groups' values, not steps
    modules: Annotated[list[str], Field(min_length=1)] = list(_MODULES)

    @model_validator(mode="after")
    def _consistent(self) -> _Search:
        if self.points is not None and self.per is not None:
            raise ValueError("give `points` or `per`, not both")
        if isinstance(self.search, _Choices):
            if self.log or self.whole or self.clip or self.sigma is not None:
                raise ValueError("`log`, `int`, `sigma` and `clip` are not for a choice")
            if self.init is not None and self.init not in self.search.choice:
                raise ValueError(f"`init` is none of {self.search.choice}")
            return self
        low, high = self.search
        if not low < high:
            raise ValueError(f"[{low}, {high}] is empty: give the smaller number first")
        if self.log and low <= 0:
            raise ValueError("a logarithmic scale needs numbers above 0")
        if self.log and (self.clip or self.sigma is not None):
            raise ValueError("`sigma` and `clip` are not for a logarithmic scale")
        if self.init is not None and (
            isinstance(self.init, bool | str) or not low <= self.init <= high
        ):
            raise ValueError(f"`init` must lie in [{low}, {high}]")
        if self.whole and not (low.is_integer() and high.is_integer()):
            raise ValueError("whole numbers lie between whole numbers")
        return self


def untuned(document: Document, problems: Problems) -> Document:
    """Give the recipe from which a search starts, with the `search:` section if it has one.

    What is wrong with searched places goes to `problems`; these then keep what they hold.
    """
    data = copy.deepcopy(document.data)
    section = isinstance(data, dict) and data.get(_KEY) is not None
    places = list(_searched(document.data, ()))
    for path, found in places:
        if not section:
            what = "is searched, but the recipe has no `search:` section"
            problems.add(document.where(path), what, "add one, or give a value")
        fields = _read(document, path, found, problems)
        if fields is not None:
            (gene, *_) = _genes("", fields, _Shape("one", 1))
            _set(data, path, gene.start)
        else:
            _set(data, path, 0.0)
    if section and not places:
        what = "nothing is searched"
        fix = "write {search: [0, 1]} in place of a number"
        problems.add(document.where((_KEY,)), what, fix)
    return replace(document, data=data)


def read_space(document: Document, layers: int | None, problems: Problems) -> Space:
    """Find every searched place of a recipe; `layers` is how many the models have.

    What is wrong goes to `problems`, with the line where it stands.
    """
    genes: list[Gene] = []
    places: list[tuple[FieldPath, _Shape]] = []
    for path, found in _searched(document.data, ()):
        fields = _read(document, path, found, problems)
        if fields is None:
            continue
        if fields.per in ("layer", "group") and not layers:
            what = f"`per: {fields.per}` needs models whose number of layers is known"
            problems.add(document.where(path), what, "use `points:`")
            continue
        shape = _shape(fields, layers or 0)
        if len(genes) + shape.count > _MOST_GENES:
            what = f"over {_MOST_GENES} numbers are searched"
            problems.add(document.where(path), what, "use `points:` or `per: group`")
            break
        places.append((path, shape))
        genes += _genes(".".join(map(str, path)), fields, shape)
    return Space(tuple(genes), document, tuple(places))


def _read(
    document: Document, path: FieldPath, found: dict[str, Any], problems: Problems
) -> _Search | None:
    if path[0] not in _SEARCHABLE:
        what = "only what stands in `merge`, `stages`, `ensemble` or `seed` is searched"
        problems.add(document.where(path), what)
        return None
    try:
        return _Search.model_validate(found)
    except ValidationError as error:
        for fault in dict.fromkeys(_faults(error)):
            problems.add(document.where(path), fault, "as in {search: [0, 1]}")
    return None


def _searched(data: Any, path: FieldPath) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    """Give what holds a `search` key, but for the recipe's own section of that name."""
    if isinstance(data, dict):
        if _KEY in data and path:
            yield path, data
            return
        for key, value in data.items():
            if path or key not in (_KEY, "evaluate", "output", "publish", "models"):
                yield from _searched(value, (*path, key))
    elif isinstance(data, list):
        for at, value in enumerate(data):
            yield from _searched(value, (*path, at))


def _shape(fields: _Search, layers: int) -> _Shape:
    if fields.points is not None:
        return _Shape("gradient", fields.points)
    if fields.per == "layer":
        return _Shape("blocks", layers, layers)
    if fields.per == "group":
        return _groups(fields, layers)
    if fields.per == "module":
        return _Shape("modules", len(fields.modules) + 1, globs=tuple(fields.modules))
    return _Shape("one", 1)


def _groups(fields: _Search, layers: int) -> _Shape:
    count = min(fields.groups if fields.size is None else -(-layers // fields.size), layers)
    if count == 1:
        return _Shape("one", 1)
    if fields.smooth:
        return _Shape("gradient", count)
    return _Shape("blocks", count, layers, size=fields.size)


def _genes(name: str, fields: _Search, shape: _Shape) -> Iterator[Gene]:
    parts = [""] if shape.kind == "one" else [f".{i}" for i in range(shape.count)]
    if shape.kind == "modules":
        parts = [*(f".{glob}" for glob in shape.globs), ".rest"]
    for part in parts:
        if isinstance(fields.search, _Choices):
            values = tuple(fields.search.choice)
            start = values[0] if fields.init is None else fields.init
            yield Choice(name + part, values, start)
            continue
        low, high = fields.search
        middle = math.sqrt(low * high) if fields.log else (low + high) / 2
        start = middle if fields.init is None else float(fields.init)
        start = round(start) if fields.whole else start
        yield Number(
            name + part, low, high, start, fields.log, fields.whole, fields.sigma, fields.clip
        )


def _faults(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"] if not str(part).startswith("_"))
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        got = "" if item["type"] == "value_error" else f", got {printable(item['input'], 60)}"
        yield f"{field}: {message}{got}" if field else f"{message}{got}"


def _set(data: Any, path: FieldPath, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value
