"""YAML text -> plain data that remembers its lines.

A recipe may come from anyone, so it is data and stays small: no tags that construct objects, one
document, bounded size, depth and alias expansion, no key twice. Plain scalars follow YAML 1.2's
core schema: `5e-1` is a number, `yes` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mergepipe.errors import InputError, Problem, Problems, printable

__all__ = [
    "MAX_DEPTH",
    "Document",
    "FieldPath",
    "has_several",
    "read_document",
    "read_documents",
    "read_text",
]

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
_NEXT_DOCUMENT = re.compile(r"^---(?:[ \t].*)?$", re.MULTILINE)
_CONTENT = re.compile(r"^[^#%\s]", re.MULTILINE)
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
    faults: tuple[Problem, ...] = ()  # of the text, to be reported beside those of its meaning
    # Where the data was made of a file in another language: a field's path -> its path there.
    origins: Mapping[FieldPath, FieldPath] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """What relative paths in the file are relative to."""
        return self.file.parent

    def where(self, path: FieldPath) -> str:
        """`recipe.yaml:14:9: merge.models.math.density`, or the option that set the field."""
        path = self._origin(path)
        name = ".".join(str(part) for part in path)
        if any(path[: len(set_path)] == set_path for set_path in self.overridden):
            return f"--set {name}"
        known = path
        while known not in self.lines:
            known = known[:-1]
        line, column = self.lines[known]
        place = f"{self.file.name}:{line}:{column}"
        return f"{place}: {name}" if name else place

    def _origin(self, path: FieldPath) -> FieldPath:
        """Follow a field back to the file that it was made of."""
        for size in range(len(path), -1, -1):
            if path[:size] in self.origins:
                # What stands below has the same name there, or another that nobody wrote.
                below = (*self.origins[path[:size]], *path[size:])
                return below if below in self.lines else self.origins[path[:size]]
        return path


def read_documents(file: Path) -> Document:
    """Read a file of several YAML documents: the data is their list. Else as `read_document`."""
    text = _read_file(file)
    nodes = _compose(text, file.name, several=True)
    builder = _Builder(file.name)
    data = [builder.build(node, (i,)) for i, node in enumerate(nodes)]
    builder.lines[()] = (1, 1)
    return Document(file, data, builder.lines, faults=tuple(builder.problems.found))


def read_document(file: Path) -> Document:
    """Read a recipe. Duplicate keys and the like become its `faults`.

    Raises
    ------
    InputError
        naming the file, the line and what is wrong: unreadable, not UTF-8, not YAML, empty, too
        large or deep, a forbidden tag, an alias that recurs or explodes.

    """
    data, lines, problems = read_text(_read_file(file), file.name)
    if not lines:
        raise InputError(
            Problem(file.name, "the recipe is empty", "`mergepipe init` writes one to start from")
        )
    return Document(file, data, lines, faults=tuple(problems.found))


def read_text(text: str, name: str) -> tuple[Any, Mapping[FieldPath, tuple[int, int]], Problems]:
    """Give data, lines and faults of the text of a file or option `name`; no lines if it is empty.

    Raises
    ------
    InputError
        as `read_document`.

    """
    nodes = _compose(text, name)
    builder = _Builder(name)
    data = builder.build(nodes[0], ()) if nodes else None
    return data, builder.lines, builder.problems


def _read_file(file: Path) -> str:
    try:
        raw = file.read_bytes() if file.is_file() else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(Problem(str(file), f"cannot be read: {reason}")) from error
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


def _compose(text: str, name: str, *, several: bool = False) -> list[yaml.Node]:
    try:
        _check_events(text, name, several=several)
        return list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError(_syntax_problem(error, name)) from error
    except (ValueError, OverflowError) as error:  # PyYAML hands escapes to chr() as they are
        raise InputError(Problem(name, f"not valid YAML: {error}")) from error


def has_several(file: Path) -> bool:
    """Tell whether a file looks like several YAML documents; False where it cannot be read."""
    try:
        text = _read_file(file)
    except InputError:
        return False
    return any(_CONTENT.search(part) for part in _NEXT_DOCUMENT.split(text)[:-1])


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    mark: yaml.Mark | None = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    if mark is None:
        return Problem(name, f"not valid YAML: {printable(what, 200)}")
    fix = "indent with spaces, not tabs" if "\\t" in what else ""
    place = f"{name}:{mark.line + 1}:{mark.column + 1}"
    return Problem(place, f"not valid YAML on line {mark.line + 1}: {printable(what, 200)}", fix)


def _check_events(text: str, name: str, *, several: bool) -> None:
    """Refuse size, depth, foreign tags and further documents before anything recurses."""
    depth = documents = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None, "the parser marks every event"
        place = f"{name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1 and not several:
            raise InputError(
                Problem(place, "a second YAML document", "one recipe per file; use `stages:`")
            )
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > MAX_NODES:
            raise InputError(Problem(place, f"too large: over {MAX_NODES} values"))
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(Problem(place, f"nested deeper than {MAX_DEPTH} levels"))
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS | _COLLECTION_TAGS:
            raise InputError(
                Problem(place, f"the tag '{printable(tag, 80)}' is not allowed: recipes are data")
            )


class _Builder:
    """Walks the node tree once; counts nodes as expanded, so that aliases cannot explode."""

    def __init__(self, name: str) -> None:
        self.name = name
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
        # Merge keys first, so that the lines of the mapping's own keys stand.
        for key_node, value_node in node.value:
            for source in self._merge_sources(key_node, value_node, path):
                merged = {**source, **merged}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            inner: FieldPath = (*path, str(key))
            if key is None:
                self.problems.add(self._place(key_node), "a key must be a word")
            elif key in own:
                self.problems.add(
                    f"{self._place(key_node)}: {'.'.join(map(str, inner))}",
                    "duplicate key: it is given twice",
                    "keep one",
                )
            else:
                self.lines[inner] = _mark(key_node)
                own[key] = self.build(value_node, inner)
        return {**merged, **own}

    def _merge_sources(
        self, key: yaml.Node, node: yaml.Node, path: FieldPath
    ) -> Iterator[dict[str, Any]]:
        if key.tag != _TAG + "merge":
            return
        for source in node.value if isinstance(node, yaml.SequenceNode) else (node,):
            built = self.build(source, path)
            if isinstance(built, dict):
                yield built
            else:
                self.problems.add(self._place(source), "`<<` takes a mapping")

    def _place(self, node: yaml.Node) -> str:
        line, column = _mark(node)
        return f"{self.name}:{line}:{column}"


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
