"""What a checkpoint holds beside its weights: configuration, tokenizer, chat template.

Files are copied byte for byte: a tokenizer that is loaded and saved again may be another one.
Only `config.json` is rewritten, for the dtype and without what names someone's disk or carries a
credential, and `tokenizer_config.json` where the chat template is another model's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import with_layers, with_vocabulary
from mergepipe.errors import InputError, Problem, Problems, has_secret
from mergepipe.tokenizer import ResultTokenizer, check_samples, with_ids, with_rows
from mergepipe.write.faults import disk_faults

__all__ = [
    "CHAT_TEMPLATES",
    "TOKENIZER_FILES",
    "result_settings",
    "tokenizer_files",
    "write_companions",
    "write_tokenizer",
]

CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
)
_BASE_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_TEMPLATE_FOLDER = "additional_chat_templates"
# Of sentence encoders; `modules.json` lists the folders of further modules.
_MODULES = "modules.json"
_ENCODER_FILES = (_MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")


def write_companions(
    folder: Path,
    *,
    config: Path,
    tokenizer: Path,
    chat_template: Path,
    dtype: str | None,
    problems: Problems,
    settings: Mapping[str, Any] | None = None,
    layers: Sequence[int] | None = None,
    rows: int | None = None,
    jinja: str | None = None,
    made: ResultTokenizer | None = None,
) -> None:
    """Write configuration from `config`'s folder, tokenizer and chat template from theirs.

    `settings` are written in place of that folder's `config.json`, which others stand beside.
    `dtype` is the torch name that `config.json` shall give, None to leave what it says; `layers`
    are those of `config`'s model that the result's are like, None for the same; `rows` are those
    of the vocabulary, where it was cut. `jinja` is the text of a chat template in place of any
    model's. `made` is the tokenizer in place of the files of `tokenizer`; it is loaded and checked.

    Raises
    ------
    InputError
        if a file that must be understood is not JSON.
    EnvironmentFault
        if a file cannot be read or written.

    """
    with disk_faults(folder):
        settings = _read(config / "config.json") if settings is None else settings
        said = result_settings(settings, dtype, problems, layers=layers, rows=rows, made=made)
        _write(folder / "config.json", said)
        _copy(config, folder, _BASE_FILES)
        _copy_code(config, "config.json", settings, folder, problems)
        _copy_modules(config, folder, problems)
        if made is None:
            _copy_tokenizer(tokenizer, folder, problems)
        else:
            write_tokenizer(made, folder, problems)
            _set_generation_ids(made, folder)
        if jinja is not None:
            _set_template(jinja, folder)
        elif chat_template == tokenizer:
            _copy_templates(tokenizer, folder)
        else:
            _move_template(chat_template, folder, problems)


def result_settings(
    settings: Mapping[str, Any],
    dtype: str | None,
    problems: Problems,
    *,
    layers: Sequence[int] | None = None,
    rows: int | None = None,
    made: ResultTokenizer | None = None,
) -> dict[str, Any]:
    """Give what `config.json` of a result says, by the `settings` of the model that it is like."""
    resized = settings if layers is None else with_layers(settings, layers)
    if rows is not None:
        resized = with_vocabulary(resized, rows)
    if made is not None:
        resized = with_ids(with_rows(resized, made.rows), made.ids)
    return _public(resized, dtype, problems)


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no such file."""
    value = _parse(file) if file.is_file() else {}
    return value if isinstance(value, dict) else {}


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        where = f"{file.parent.name}/{file.name}"
        raise InputError(Problem(where, f"not JSON: {error}", "fetch the file again")) from error


def _write(file: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    with disk_faults(file):
        file.write_text(text + "\n", encoding="utf-8")


def _copy(source: Path, folder: Path, names: Iterable[str]) -> int:
    """Copy those of the named files that exist, and count them."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    return len(found)


def _copy_code(
    source: Path, file: str, settings: Mapping[str, Any], folder: Path, problems: Problems
) -> None:
    """Copy the modules that a configuration names, so that the result loads as its source did."""
    if "auto_map" not in settings:
        return
    _copy(source, folder, (path.name for path in sorted(source.glob("*.py"))))
    problems.warn(
        file,
        "names custom code (auto_map): it was copied, not run; "
        "whoever loads the result decides on trust_remote_code",
    )


def _copy_modules(source: Path, folder: Path, problems: Problems) -> None:
    """Copy a sentence encoder's list of modules and their folders (pooling, normalisation)."""
    if not (source / _MODULES).is_file():
        return
    listed = _parse(source / _MODULES)
    names = [one.get("path") for one in listed if isinstance(one, dict)]
    for part in sorted(path for path in source.iterdir() if path.is_dir() and path.name in names):
        shutil.copytree(part, folder / part.name)
        if any(part.glob("*.safetensors")) or any(part.glob("*.bin")):
            problems.warn(_MODULES, f"the weights in {part.name} were copied, not merged")
    _copy(source, folder, _ENCODER_FILES)


def tokenizer_files(source: Path) -> tuple[str, ...]:
    """Give the names of the files of a model's folder that are its tokenizer's."""
    names = (*TOKENIZER_FILES, *sorted(path.name for path in source.glob("*.tiktoken")))
    return tuple(name for name in names if (source / name).is_file())


def write_tokenizer(made: ResultTokenizer, folder: Path, problems: Problems) -> None:
    """Write the files of a tokenizer, and see that what was written is what it should be.

    Raises
    ------
    InputError
        if the saved tokenizer gives a text other ids.
    EnvironmentFault
        if a file cannot be read or written.

    """
    with disk_faults(folder):
        for name, content in made.files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        settings = _read(folder / "tokenizer_config.json")
        _copy_code(made.folder, "tokenizer_config.json", settings, folder, problems)
        check_samples(folder, made)


def _set_generation_ids(made: ResultTokenizer, folder: Path) -> None:
    """Set the ids in `generation_config.json`; write one where a list of ends stands only there."""
    file = folder / "generation_config.json"
    stated = any(value is not None for value in made.generation_ids.values())
    if made.generation_ids and (file.is_file() or stated):
        settings = {**_read(file), **made.generation_ids}
        _write(file, {key: one for key, one in settings.items() if one is not None})


def _copy_tokenizer(source: Path, folder: Path, problems: Problems) -> None:
    if not _copy(source, folder, tokenizer_files(source)):
        problems.warn(source.name, "has no tokenizer files; the result has none either")
    settings = _read(source / "tokenizer_config.json")
    _copy_code(source, "tokenizer_config.json", settings, folder, problems)


def _copy_templates(source: Path, folder: Path) -> int:
    """Copy the chat templates that are files of their own, and count them."""
    if (source / _TEMPLATE_FOLDER).is_dir():
        shutil.copytree(source / _TEMPLATE_FOLDER, folder / _TEMPLATE_FOLDER)
    return _copy(source, folder, CHAT_TEMPLATES)


def _set_template(jinja: str, folder: Path) -> None:
    name = "tokenizer_config.json"
    settings = _read(folder / name)
    if settings.pop("chat_template", None) is not None:
        _write(folder / name, settings)
    (folder / CHAT_TEMPLATES[0]).write_text(jinja, encoding="utf-8")


def _move_template(source: Path, folder: Path, problems: Problems) -> None:
    """Use the chat template of `source`, wherever it keeps it, and not the tokenizer's."""
    name = "tokenizer_config.json"
    settings, theirs = _read(folder / name), _read(source / name).get("chat_template")
    had = settings.pop("chat_template", None) is not None
    if not _copy_templates(source, folder):  # which loaders prefer
        if isinstance(theirs, str):
            with disk_faults(folder / CHAT_TEMPLATES[0]):
                (folder / CHAT_TEMPLATES[0]).write_text(theirs, encoding="utf-8")
        elif theirs:
            settings["chat_template"] = theirs  # several, by name
        else:
            problems.warn(source.name, "has no chat template; the result has none either")
    if had or "chat_template" in settings:
        _write(folder / name, settings)


def _public(settings: Mapping[str, Any], dtype: str | None, problems: Problems) -> dict[str, Any]:
    """Leave out what the merge made untrue, and what must not travel; set the dtype."""
    kept = {}
    for name, value in settings.items():
        if has_secret(json.dumps(value)):
            problems.warn("config.json", f"'{name}' looks like a credential and was left out")
        else:
            kept[name] = value
    return {**({"dtype": dtype} if dtype else {}), **_rewritten(kept, dtype)}


def _rewritten(settings: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Set every dtype in a configuration, also those of its parts (text_config, ...)."""
    found = {}
    for name, value in settings.items():
        if name == "_name_or_path":
            continue
        inner = _rewritten(value, dtype) if isinstance(value, dict) else value
        found[name] = dtype if dtype and name in ("dtype", "torch_dtype") else inner
    return found
