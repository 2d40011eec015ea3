"""The prompts of experts as token ids, by the base's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mergepipe.checkpoint import Checkpoint
from mergepipe.errors import Problems
from mergepipe.moe.config import Mixture
from mergepipe.moe.states import EMBEDDING

__all__ = ["Prompts", "tokenized"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one expert."""

    positive: tuple[tuple[int, ...], ...]
    negative: tuple[tuple[int, ...], ...]


def tokenized(mixture: Mixture, base: Checkpoint, problems: Problems) -> tuple[Prompts, ...]:
    """Give the prompts of every expert, each after the token that begins a text."""
    read = _reader(base, problems)
    if read is None or EMBEDDING not in base.tensors:
        return ()
    return tuple(
        Prompts(
            *(
                _texts(texts or (), read, base, mixture.where(at), problems)
                for texts in (expert.positive_prompts, expert.negative_prompts)
            )
        )
        for at, expert in enumerate(mixture.gated)
    )


def _reader(base: Checkpoint, problems: Problems) -> Any:
    """Give what makes ids of a text; None if the base has no tokenizer that can be used."""
    import transformers

    auto: Any = transformers.AutoTokenizer
    try:
        with _quiet(transformers):
            tokenizer = auto.from_pretrained(
                base.folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # noqa: BLE001 (tokenizers raises the bare class)
        what = f"has no usable tokenizer to read prompts with: {' '.join(str(error).split())[:300]}"
        problems.add(base.label, what, "fetch its tokenizer, or use gate_mode random")
        return None
    begin = tokenizer.bos_token or ""
    return lambda text: tuple(tokenizer(begin + text, add_special_tokens=False)["input_ids"])


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)


def _texts(
    texts: Sequence[str], read: Any, base: Checkpoint, where: str, problems: Problems
) -> tuple[tuple[int, ...], ...]:
    rows = base.tensors[EMBEDDING].shape[0]
    most = base.config.get("max_position_embeddings")
    found = []
    for text in texts:
        ids = read(text)
        if not ids:
            problems.add(where, "a prompt is empty", "write some text, or leave it out")
        elif max(ids) >= rows:
            what = f"the tokenizer gives token {max(ids)}, but the embedding has {rows} rows"
            problems.add(base.label, what, "fetch the tokenizer of this model again")
        elif isinstance(most, int) and len(ids) > most:
            problems.warn(where, f"a prompt has {len(ids)} tokens, but {base.label} reads {most}")
        found.append(ids)
    return tuple(found)
