"""`transplant:` of a recipe or a stage -> a model that is to get another's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergepipe.errors import InputError, did_you_mean, printable
from mergepipe.recipe.document import FieldPath
from mergepipe.recipe.fields import RecipeFields, TransplantFields
from mergepipe.recipe.merges import MergeReader
from mergepipe.recipe.sources import folder_path
from mergepipe.recipe.spec import MergeSpec, TransplantSpec
from mergepipe.transplant import Parameters, load_transplant, transplant_names
from mergepipe.transplant.options import Options
from mergepipe.transplant.texts import read_translations

__all__ = ["read_transplants", "transplant_result"]


def read_transplants(fields: RecipeFields, reader: MergeReader) -> dict[str, TransplantSpec]:
    """Give the transplants of a recipe by stage; what is wrong goes to the reader's list."""
    found: dict[str, TransplantSpec] = {}
    if fields.transplant is not None:
        found["transplant"] = _spec(fields.transplant, ("transplant",), reader)
    for name, stage in (fields.stages or {}).items():
        if stage.transplant is not None:
            found[name] = _spec(stage.transplant, ("stages", name, "transplant"), reader)
    if found and fields.tokenizer is not None:
        what = "models that were given a tokenizer by `transplant` have it: none is to be chosen"
        reader.problems.add(reader.document.where(("tokenizer",)), what, "leave `tokenizer` out")
    return found


def transplant_result(spec: TransplantSpec) -> MergeSpec:
    """Give the last stage that writes what a transplant made: everything is copied."""
    return MergeSpec(
        place=spec.place,
        method=spec.method,
        base=None,
        models=(spec.model,),
        each={spec.model: {}},
        shared={},
        rules=(),
    )


def _spec(fields: TransplantFields, path: FieldPath, reader: MergeReader) -> TransplantSpec:
    reader.check_label(fields.model, (*path, "model"), reader.stage_names)
    label, folder = _donor(fields.tokenizer, (*path, "tokenizer"), reader)
    if label == fields.model:
        where = reader.document.where((*path, "tokenizer"))
        reader.problems.add(where, f"'{label}' has this tokenizer already")
    return TransplantSpec(
        place=reader.document.where(path),
        model=fields.model,
        donor=label,
        folder=folder,
        method=fields.method,
        parameters=_parameters(fields.method, fields.model_extra or {}, path, reader),
        options=Options(
            roles=fields.roles,
            byte=fields.byte,
            fuzzy=fields.fuzzy,
            prefix=fields.prefix,
            special_fallback=fields.special_fallback,
            junk=fields.junk,
            multiple=fields.pad_to_multiple_of,
            strict=fields.strict,
        ),
        translations=_translations(fields.translations, (*path, "translations"), reader),
    )


def _donor(text: str, path: FieldPath, reader: MergeReader) -> tuple[str | None, Path | None]:
    """Tell a model's label from the folder of a tokenizer."""
    if text in reader.labels:
        return text, None
    where = reader.document.where(path)
    folder = folder_path(text, reader.document, path, reader.problems)
    if text in reader.stage_names:
        reader.problems.add(where, f"'{text}' is a stage", "name the model it has its tokenizer of")
    elif folder is not None and not folder.is_dir():
        what = f"'{printable(text, 80)}' is neither a model nor a folder"
        reader.problems.add(where, f"{what}{did_you_mean(text, reader.labels)}")
    return None, folder


def _translations(
    named: Mapping[str, str], path: FieldPath, reader: MergeReader
) -> dict[str, Path]:
    """Give the files by language, once they have been read and are as long as each other."""
    document, problems = reader.document, reader.problems
    found = {
        language: folder_path(text, document, (*path, language), problems)
        for language, text in named.items()
    }
    files = {language: file for language, file in found.items() if file is not None}
    if files and len(files) == len(named):
        try:
            read_translations(files, document.where(path))
        except InputError as error:
            problems.found.extend(error.problems)
    return files


def _parameters(
    name: str, values: Mapping[str, Any], path: FieldPath, reader: MergeReader
) -> Parameters | None:
    """Check a method's parameters."""
    where = reader.document.where
    if name not in transplant_names():
        what = f"unknown transplant method '{printable(name, 80)}'"
        reader.problems.add(
            where((*path, "method")), f"{what}{did_you_mean(name, transplant_names())}"
        )
        return None
    kind = load_transplant(name).parameters
    try:
        found: Parameters = kind.model_validate(
            dict(values), context={"base_dir": reader.document.folder}
        )
    except ValidationError as error:
        for item in error.errors(include_url=False):
            field = str(item["loc"][0]) if item["loc"] else ""
            reader.problems.add(where((*path, field)), _fault(name, field, item, kind))
        return None
    return found


def _fault(name: str, field: str, item: Any, kind: type[Parameters]) -> str:
    known = (*kind.model_fields, *TransplantFields.model_fields)
    if item["type"] == "extra_forbidden":
        return f"{name} has no parameter '{printable(field, 80)}'{did_you_mean(field, known)}"
    if item["type"] == "missing":
        return f"{name} needs `{field}`: {kind.model_fields[field].description or 'give it'}"
    said = item["msg"].replace("Input should be", "must be").replace("Value error, ", "")
    return f"{said}, got {printable(item['input'], 60)}"
