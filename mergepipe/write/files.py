"""What a checkpoint holds beside its weights: configuration, tokenizer, chat template.

Files are copied byte for byte. Only `config.json` is rewritten, for the dtype, and what names
someone's disk or carries a credential is left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergepipe.errors import Problems, has_secret

__all__ = ["CHAT_TEMPLATES", "TOKENIZER_FILES", "write_companions"]

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


def write_companions(
    folder: Path,
    *,
    config: Path,
    tokenizer: Path,
    chat_template: Path,
    dtype: str | None,
    problems: Problems,
) -> None:
    """Write configuration from `config`'s folder, tokenizer and chat template from theirs.

    `dtype` is the torch name that `config.json` shall give, None to leave what it says.
    """
    settings = json.loads((config / "config.json").read_bytes())
    text = json.dumps(_public(settings, dtype, problems), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    _copy(config, folder, _BASE_FILES)
    _copy_code(settings, config, folder, problems)
    _copy(tokenizer, folder, TOKENIZER_FILES)
    if not (tokenizer / "tokenizer_config.json").exists() and not any(
        (folder / name).exists() for name in TOKENIZER_FILES
    ):
        problems.warn(tokenizer.name, "has no tokenizer files; the result has none either")
    _copy(chat_template, folder, CHAT_TEMPLATES)
    if chat_template != tokenizer:
        _move_template(chat_template, folder)


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _copy_code(settings: Mapping[str, Any], config: Path, folder: Path, problems: Problems) -> None:
    """Copy the modules of a model that brings its own code, so that the result loads as it did."""
    if "auto_map" not in settings:
        return
    names = tuple(path.name for path in sorted(config.glob("*.py")) if path.is_file())
    _copy(config, folder, names)
    problems.warn(
        "config.json",
        "names custom code (auto_map): it was copied, not run; "
        "whoever loads the result decides on trust_remote_code",
    )


def _move_template(source: Path, folder: Path) -> None:
    """Use the chat template of another model's tokenizer_config.json than the tokenizer's."""
    own = folder / "tokenizer_config.json"
    if own.exists():
        settings = json.loads(own.read_bytes())
        if settings.pop("chat_template", None) is not None:
            own.write_text(
                json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    theirs = source / "tokenizer_config.json"
    if not (folder / "chat_template.jinja").exists() and theirs.is_file():
        template = json.loads(theirs.read_bytes()).get("chat_template")
        if isinstance(template, str):
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _public(settings: Mapping[str, Any], dtype: str | None, problems: Problems) -> dict[str, Any]:
    """Leave out what the merge made untrue, and what must not travel; set the dtype."""
    kept = {}
    for name, value in settings.items():
        if has_secret(json.dumps(value)):
            problems.warn("config.json", f"'{name}' looks like a credential and was left out")
        elif name != "_name_or_path":
            kept[name] = value
    if dtype is None:
        return kept
    return {"dtype": dtype, **_with_dtype(kept, dtype)}


def _with_dtype(settings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Set every dtype in a configuration, also those of its parts (text_config, ...)."""
    found = {}
    for name, value in settings.items():
        inner = _with_dtype(value, dtype) if isinstance(value, dict) else value
        found[name] = dtype if name in ("dtype", "torch_dtype") else inner
    return found
