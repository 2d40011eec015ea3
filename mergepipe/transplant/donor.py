"""The model or folder whose tokenizer another model gets, and the files that it gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergepipe.checkpoint import Checkpoint
from mergepipe.tokenizer import ResultTokenizer
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.faults import stored_json
from mergepipe.tokenizer.matching import Match
from mergepipe.tokenizer.rewriting import SAMPLES

__all__ = ["Donor", "donor_tokenizer"]

_LANGUAGE = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Donor:
    """Whose tokenizer a model gets: a model's, or one that is alone in its folder.

    `files` are the names of the tokenizer's files.
    """

    label: str
    folder: Path
    model: Checkpoint | None
    files: Sequence[str]


def donor_tokenizer(
    base: Checkpoint,
    donor: Donor,
    found: Match,
    ids: Mapping[str, Any],
    generation_ids: Mapping[str, Any],
) -> ResultTokenizer:
    """Give the donor's files byte for byte; only a longer limit than the model's is cut down."""
    files: dict[str, bytes | Path] = {name: donor.folder / name for name in donor.files}
    settings = _settings(donor)
    limits = [base.config.get(part) for part in _LANGUAGE]
    stated = (x.get("max_position_embeddings") for x in (*limits, base.config) if x)
    limit = next((x for x in stated if type(x) is int), None)
    longest = settings.get("model_max_length")
    if limit is not None and isinstance(longest, int | float) and longest > limit:
        text = json.dumps({**settings, "model_max_length": limit}, indent=2, ensure_ascii=False)
        files["tokenizer_config.json"] = (text + "\n").encode(errors="surrogatepass")
    named = settings.get("tokenizer_class")
    if "tokenizer_class" in base.config:
        ids = {**ids, "tokenizer_class": named}
    encodings = encoder(found.donor).encode_batch(list(SAMPLES), add_special_tokens=False)
    return ResultTokenizer(
        label=donor.label,
        folder=donor.folder,
        files=files,
        rows=found.donor.rows,
        ids=ids,
        generation_ids=generation_ids,
        samples={text: tuple(one.ids) for text, one in zip(SAMPLES, encodings, strict=True)},
    )


def _settings(donor: Donor) -> dict[str, Any]:
    file = "tokenizer_config.json"
    if file not in donor.files:
        return {}
    found = stored_json(donor.folder, donor.label, file)
    return found if isinstance(found, dict) else {}
