"""Models that the user names, scored without a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from mergepipe.checkpoint import ModelSource, open_checkpoint
from mergepipe.errors import InputError, Problem, Problems
from mergepipe.evaluate import Evaluation
from mergepipe.execute import Resources
from mergepipe.model import Model
from mergepipe.pipeline.addressed import PREFIX, Addressed, api_model_of, read_address
from mergepipe.pipeline.ensembles import Members, prepare_ensemble
from mergepipe.pipeline.late import LateModel
from mergepipe.pipeline.preparing import Options, Prepared, find_evaluations
from mergepipe.recipe import EvaluateFields, evaluation_spec, read_document
from mergepipe.recipe.ensembles import is_ensemble

__all__ = ["NamedModel", "ask_models", "name_models", "read_uses"]

_LABELLED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?")
_PAIR = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model of the command line, not loaded.

    It is a folder, a server and the model's name there, or the recipe of an ensemble.
    """

    label: str
    folder: Path | None = None
    server: Addressed | None = None
    ensemble: Prepared | None = None


def name_models(texts: Sequence[str], *, local_files_only: bool = False) -> tuple[NamedModel, ...]:
    """Read `folder`, `org/name@revision`, `api:URL?option=value#MODEL` or `ensemble.yaml`.

    Each may stand after `label=`. A model on the hub is fetched into its cache.

    Raises
    ------
    InputError
        naming each that cannot be used, and models of one label.

    """
    problems = Problems()
    found: dict[str, NamedModel] = {}
    for text in texts:
        named = _LABELLED.fullmatch(text)
        label, place = named.groups() if named else ("", text)
        model = _api(label, place, problems) if place.startswith(PREFIX) else None
        if not place.startswith(PREFIX):
            model = _folder(label, place, problems, local_only=local_files_only)
        if model is not None and model.label in found:
            what = f"two models are named '{model.label}'"
            problems.add(text, what, f"give it a label: other={place}")
        elif model is not None:
            found[model.label] = model
    problems.raise_any()
    return tuple(found.values())


def _api(label: str, text: str, problems: Problems) -> NamedModel | None:
    server = read_address(text, problems)
    if server is None:
        return None
    return NamedModel(label or server.model.rpartition("/")[2], server=server)


def _folder(label: str, text: str, problems: Problems, *, local_only: bool) -> NamedModel | None:
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (which never raises)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return _ensemble(label or path.stem, path, problems, local_only=local_only)
    hub = None if path.exists() else _HUB_NAME.fullmatch(text)
    name = label or (hub[1].rpartition("/")[2] if hub else path.resolve().name)
    at, revision = (None, None) if hub is None else (hub[1], hub[2])
    source = ModelSource(name, path if hub is None else None, at, revision, None)
    checkpoint = open_checkpoint(source, problems, local_files_only=local_only)
    if checkpoint is None:
        return None
    if checkpoint.is_bare:
        problems.add(text, "weights alone, without configuration and tokenizer, cannot be asked")
        return None
    return NamedModel(name, checkpoint.folder)


def _ensemble(label: str, file: Path, problems: Problems, *, local_only: bool) -> NamedModel | None:
    document = read_document(file)
    if not is_ensemble(document):
        what = "is no model: of recipes, only those of ensembles can be asked"
        problems.add(str(file), what, "`mergepipe run` it, and name the folder")
        return None
    prepared = prepare_ensemble(document, problems, Options(local_files_only=local_only))
    return NamedModel(label, ensemble=prepared)


def ask_models(
    models: Sequence[NamedModel],
    *,
    dtype: str,
    device: str,
    notice: Callable[[str], None],
) -> Iterator[Model]:
    """Give the models one after the other; only one is in memory.

    Raises
    ------
    InputError
        before the first is given, if a server's address is refused.

    """
    asked = [_model(model, dtype, device) for model in models]  # nothing is loaded or sent yet
    while asked:
        model = asked.pop(0)
        notice(model.name)
        yield model
        del model


def _model(model: NamedModel, dtype: str, device: str) -> Model:
    if model.folder is not None:
        return LateModel(model.folder, model.label, dtype=dtype, device=device)
    if model.ensemble is not None:
        prepared = replace(model.ensemble, resources=Resources(device=device, score_dtype=dtype))
        assert prepared.ensemble is not None, "the recipe of an ensemble"
        return Members(prepared, None).mixture(prepared.ensemble, model.label)
    assert model.server is not None, "a folder, a server or an ensemble"
    return api_model_of(model.server, model.label)


def read_uses(texts: Sequence[str], folder: Path) -> tuple[Evaluation, ...]:
    """Read evaluations of the form `NAME` or `NAME:parameter=value,parameter=value`.

    Values are as in recipes: `limit=50`, `stop=[a, "b,c"]`; paths are relative to `folder`.

    Raises
    ------
    InputError
        naming each that is wrong.

    """
    problems = Problems()
    specs = []
    for text in texts:
        place = f"--use {text}"
        name, _, rest = text.partition(":")
        try:
            fields = EvaluateFields.model_validate({"use": name, **_parameters(rest)})
        except ValidationError as error:
            for item in error.errors(include_url=False):
                problems.add(place, f"{'.'.join(map(str, item['loc']))}: {item['msg']}")
        except InputError as error:
            problems.add(place, str(error))
        else:
            specs.append(evaluation_spec(fields, place))
    found = find_evaluations(specs, folder, problems)
    problems.raise_any()
    twice = [one.name for at, one in enumerate(found) if one.name in {f.name for f in found[:at]}]
    if twice:
        fix = f"give each its own name: --use {twice[0]}:name=first,..."
        raise InputError(Problem("--use", f"two evaluations are named '{twice[0]}'", fix))
    return found


def _parameters(text: str) -> Mapping[str, object]:
    found = {}
    for part in _parts(text):
        pair = _PAIR.fullmatch(part)
        if pair is None:
            raise InputError(f"'{part}' is not parameter=value")
        if pair[1] in found:
            raise InputError(f"'{pair[1]}' is given twice")
        try:
            found[pair[1]] = yaml.safe_load(pair[2])
        except yaml.YAMLError as error:
            raise InputError(f"'{part}' has no value that YAML can read") from error
    return found


def _parts(text: str) -> list[str]:
    """Cut at commas that are not inside brackets or quotes.

    >>> _parts('a=1,b=[x, "y,z"]')
    ['a=1', 'b=[x, "y,z"]']
    """
    parts, open_, start = [], "", 0
    for at, char in enumerate(text):
        if open_ and char == _CLOSING[open_[-1]]:
            open_ = open_[:-1]
        elif char in _CLOSING and open_[-1:] not in {'"', "'"}:
            open_ += char
        elif char == "," and not open_:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text else []
