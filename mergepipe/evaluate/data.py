"""Data files of evaluators: where they are, and JSON Lines read with every fault named by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ValidationInfo

from mergepipe.errors import InputError, Problem, Problems, did_you_mean, printable

__all__ = ["DataFile", "read_jsonl"]

_MAX_FAULTS = 10
_KINDS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number", float: "a number"}


def _existing_file(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    path = Path((info.context or {}).get("base_dir", ".")) / Path(value).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


# A parameter that names a file, relative to the recipe's folder.
DataFile: TypeAlias = Annotated[Path, BeforeValidator(_existing_file)]


def read_jsonl(
    path: Path, fields: Mapping[str, type], limit: int | None = None
) -> dict[int, dict[str, Any]]:
    """Read the records of a JSON Lines file, at most `limit`, by line number.

    `fields` are those that every record must have, with their types. Blank lines are skipped.

    Raises
    ------
    InputError
        naming each faulty line, or if there is no record.

    """
    records: dict[int, dict[str, Any]] = {}
    problems = Problems()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if len(records) == limit or len(problems.found) == _MAX_FAULTS:
                break
            if line.strip():
                try:
                    records[number] = _record(line, fields)
                except _LineError as fault:
                    problems.add(f"{path}:{number}", str(fault))
    problems.raise_any()
    if not records:
        raise InputError(Problem(str(path), "empty: it needs one JSON object a line"))
    return records


class _LineError(ValueError):
    """What is wrong with one line."""


def _record(line: bytes, fields: Mapping[str, type]) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
        json.dumps(record, ensure_ascii=False).encode()  # a lone \ud800 is JSON, but no text
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise _LineError(f"not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise _LineError(f"not JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _LineError(f"not usable: {printable(error, 60)}") from error
    except RecursionError as error:
        raise _LineError("not usable: nested too deeply") from error
    if not isinstance(record, dict):
        shape = ", ".join(f'"{field}": ...' for field in fields)
        raise _LineError(f"not a JSON object, as in {{{shape}}}")
    for field, kind in fields.items():
        if field not in record:
            raise _LineError(f"no field '{field}'{did_you_mean(field, record)}")
        if not isinstance(record[field], kind):
            got = printable(json.dumps(record[field]), 60)
            raise _LineError(f"field '{field}' must be {_KINDS[kind]}, got {got}")
    return record
