"""YAML text -> plain data that remembers its lines.

A recipe may come from anyone, so it is data and stays small: no tags that construct objects, one
document, bounded size, depth and alias expansion, no key twice. Plain scalars follow YAML 1.2's
core schema: `5e-1` is a number, `yes` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mergepipe.errors import InputError, Problem, Problems, printable

__all__ = ["Document", "FieldPath", "override", "read_document"]

FieldPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 50_000

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {
    _TAG + name for name in ("bool", "float", "int", "null", "str", "timestamp", "value")
}
_COLLECTION_TAGS = {_TAG + "map", _TAG + "seq"}
_WORDS: Mapping[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its data, and the line and column (1-based) of every field."""

    file: Path
    data: Any
    lines: Mapping[FieldPath, tuple[int, int]]
    overridden: tuple[FieldPath, ...] = ()

    @property
    def folder(self) -> Path:
        """What relative paths in the file are relative to."""
        return self.file.parent

    def where(self, path: FieldPath) -> str:
        """`recipe.yaml:14:9: merge.models.math.density`, or the option that set the field."""
        name = ".".join(str(part) for part in path)
        if any(path[: len(set_path)] == set_path for set_path in self.overridden):
            return f"--set {name}"
        known = path
        while known not in self.lines:
            known = known[:-1]
        line, column = self.lines[known]
        place = f"{self.file.name}:{line}:{column}"
        return f"{place}: {name}" if name else place


def read_document(file: Path) -> Document:
    """Read a recipe.

    Raises
    ------
    InputError
        naming the file, the line and what is wrong: unreadable, not UTF-8, not YAML, empty, too
        large or deep, a duplicate key, a forbidden tag, an alias that recurs or explodes.

    """
    text = _read_text(file)
    try:
        _check_events(text, file)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(_syntax_problem(error, file)) from error
    if node is None:
        raise InputError(
            Problem(file.name, "the recipe is empty", "`mergepipe init` writes one to start from")
        )
    builder = _Builder(file)
    data = builder.build(node, ())
    builder.problems.raise_any()
    return Document(file, data, builder.lines)


def _read_text(file: Path) -> str:
    try:
        raw = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise InputError(Problem(file.name, f"cannot be read: {error.strerror}")) from error
    if raw is None:
        raise InputError(Problem(str(file), "no such recipe file"))
    if len(raw) > MAX_BYTES:
        raise InputError(Problem(file.name, f"too large: {len(raw)} bytes, at most {MAX_BYTES}"))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            Problem(
                f"{file.name}:{line}",
                f"not UTF-8: cannot decode byte 0x{raw[error.start]:02x}",
                "save the file as UTF-8",
            )
        ) from error


def _syntax_problem(error: yaml.YAMLError, file: Path) -> Problem:
    mark: yaml.Mark | None = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    if mark is None:
        return Problem(file.name, f"not valid YAML: {printable(what, 200)}")
    fix = "indent with spaces, not tabs" if "\\t" in what else ""
    place = f"{file.name}:{mark.line + 1}:{mark.column + 1}"
    return Problem(place, f"not valid YAML on line {mark.line + 1}: {printable(what, 200)}", fix)


def _check_events(text: str, file: Path) -> None:
    """Refuse depth, foreign tags and further documents before anything recurses."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None, "the parser marks every event"
        place = f"{file.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise InputError(
                    Problem(place, "a second YAML document", "one recipe per file; use `stages:`")
                )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(Problem(place, f"nested deeper than {MAX_DEPTH} levels"))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS | _COLLECTION_TAGS:
            raise InputError(
                Problem(place, f"the tag '{printable(tag, 80)}' is not allowed: recipes are data")
            )


class _Builder:
    """Walks the node tree once; counts nodes as expanded, so that aliases cannot explode."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: dict[FieldPath, tuple[int, int]] = {}
        self.problems = Problems()
        self._nodes = 0
        self._open: list[int] = []

    def build(self, node: yaml.Node, path: FieldPath) -> Any:
        self.lines.setdefault(path, _mark(node))
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InputError(
                Problem(self._place(node), f"too large: aliases expand to over {MAX_NODES} values")
            )
        if id(node) in self._open:
            raise InputError(Problem(self._place(node), "this anchor contains an alias of itself"))
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.Node, path: FieldPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                for source in self._merge_sources(value_node, path):
                    merged = {**source, **merged}
                continue
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.problems.add(self._place(key_node), "a key must be a word")
            elif key in own:
                self.problems.add(
                    f"{self._place(key_node)}: {'.'.join(map(str, (*path, key)))}",
                    "duplicate key: it is given twice",
                    "keep one",
                )
            else:
                self.lines[(*path, key)] = _mark(key_node)
                own[key] = self.build(value_node, (*path, key))
        return {**merged, **own}

    def _merge_sources(self, node: yaml.Node, path: FieldPath) -> Iterator[dict[str, Any]]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else (node,):
            built = self.build(source, path)
            if isinstance(built, dict):
                yield built
            else:
                self.problems.add(self._place(source), "`<<` takes a mapping")

    def _place(self, node: yaml.Node) -> str:
        line, column = _mark(node)
        return f"{self.file.name}:{line}:{column}"


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: yaml.ScalarNode) -> object:
    text = str(node.value)
    return text if node.style is not None else _plain(text)


def _plain(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) < 4000:  # noqa: PLR2004 (Python's own limit on int)
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def override(document: Document, settings: Sequence[str]) -> Document:
    """Apply `--set path.to.field=value` options; values are read as YAML.

    Raises
    ------
    InputError
        if an option has no `=`, names no place in the recipe, or its value is not YAML.

    """
    data = document.data
    paths = []
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise InputError(
                Problem(f"--set {printable(setting, 80)}", "no value", "write field=value")
            )
        path: FieldPath = tuple(int(p) if p.isdigit() else p for p in name.strip().split("."))
        data = _replaced(data, path, _option_value(name, text), name)
        paths.append(path)
    return replace(document, data=data, overridden=(*document.overridden, *paths))


def _option_value(name: str, text: str) -> Any:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(_syntax_problem(error, Path(f"--set {name}"))) from error
    return None if node is None else _Builder(Path(f"--set {name}")).build(node, ())


def _replaced(data: Any, path: FieldPath, value: Any, name: str) -> Any:
    """`data` with the field at `path` set; mappings on the way are made where missing."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not isinstance(head, int) or head >= len(data):
            raise InputError(Problem(f"--set {name}", f"the list has {len(data)} items, no {head}"))
        return [_replaced(x, rest, value, name) if i == head else x for i, x in enumerate(data)]
    if data is not None and not isinstance(data, dict):
        raise InputError(Problem(f"--set {name}", f"'{head}' would go inside a plain value"))
    fields = dict(data or {})
    fields[str(head)] = _replaced(fields.get(str(head)), rest, value, name)
    return fields
