"""One transplant as the command line names it: a recipe of one stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergepipe.checkpoint.folder import is_weight_file
from mergepipe.errors import Problems
from mergepipe.execute import Resources
from mergepipe.pipeline.preparing import Options, Prepared, prepare_merge
from mergepipe.recipe import Document, override

__all__ = ["prepare_transplant"]

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_RESERVED = {"merged", "transplant"}


def prepare_transplant(
    model: str,
    tokenizer: str,
    method: str,
    settings: Sequence[str] = (),
    *,
    out: Path,
    seed: int = 0,
    text: Path | None = None,
    resources: Resources | None = None,
) -> Prepared:
    """Plan to give a model the tokenizer of another model, or one that is alone in a folder.

    `settings` are `field=value`: parameters of the method, and options of `transplant:`. With a
    `text`, a JSON Lines file, models and result are to be scored by their bits per byte on it; the
    method `auto` is judged by its beginning.

    Raises
    ------
    InputError
        with every fault at once.

    """
    labels = _labels(model, tokenizer)
    alone = _is_tokenizer_alone(Path(tokenizer).expanduser())
    data: dict[str, Any] = {
        "mergepipe": 1,
        "models": dict(list(zip(labels, (model, tokenizer), strict=True))[: 1 if alone else 2]),
        "transplant": {
            "model": labels[0],
            "tokenizer": tokenizer if alone else labels[1],
            "method": method,
        },
        "seed": seed,
    }
    if text is not None:
        if method == "auto":
            data["transplant"]["text"] = str(text)
        data["evaluate"] = [{"use": "bits_per_byte", "data": str(text)}]
    document = Document(Path("command line"), data, {(): (1, 1)})
    document = override(document, [f"transplant.{one}" for one in settings])
    return prepare_merge(document, Problems(), Options(out, resources or Resources()))


def _labels(*places: str) -> list[str]:
    """Call models by their folders, where that tells them apart."""
    names = [Path(place).expanduser().name.partition("@")[0] for place in places]
    fine = all(_LABEL.fullmatch(name) and name not in _RESERVED for name in names)
    return names if fine and len(set(names)) == len(names) else ["model", "donor"]


def _is_tokenizer_alone(folder: Path) -> bool:
    """Tell a folder without weights, or without a configuration that says what they are."""
    if not folder.is_dir():
        return False
    has_weights = any(is_weight_file(path) for path in folder.iterdir())
    return not (has_weights and (folder / "config.json").is_file())
