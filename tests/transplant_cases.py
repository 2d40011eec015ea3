"""Transplants to be tried: small Unigram tokenizers with tables in memory, and glassllm's pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import write_json
from material import package, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor

from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.matching import match
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.tokenizer.vocabulary import Vocabulary
from mergepipe.transplant import Approximation, Task, load_transplant


class Rows:
    """A table in memory."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.rows, self.columns = values.shape

    def __getitem__(self, ids: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(np.asarray(ids))].float()


def unigram(folder: Path, pieces: Mapping[str, float]) -> Vocabulary:
    """Write and read a Unigram tokenizer: `<unk>`, then these pieces with their scores."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces.items()], unk_id=0))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Replace("▁", " ")
    made.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"unk_token": "<unk>"})
    return read_vocabulary(folder, folder.name)


def words(folder: Path, texts: Sequence[str]) -> Vocabulary:
    """The same, the first pieces the likeliest."""
    return unigram(folder, {text: -1.0 - number for number, text in enumerate(texts)})


def make_task(base: Vocabulary, donor: Vocabulary, table: Tensor, **more: Any) -> Task:
    """The transplant of `donor` to `base`, whose table is `table`."""
    found = match(base, donor)
    ordinary = [(d, b) for d, b in sorted(found.ids.items()) if donor.tokens[d].kind != "special"]
    theirs = more.pop("donor_table", None)
    settings = {"side": "input", "seed": 0, "device": torch.device("cpu")} | more
    settings.setdefault("segment", segmenter(base))
    return Task(
        match=found,
        base=Rows(table),
        donor=None if theirs is None else Rows(theirs),
        anchors=np.array(ordinary, np.int64).reshape(-1, 2),
        missing=np.array([d for d in found.missing if donor.tokens[d].kind != "special"], np.int64),
        **settings,
    )


def segmenter(base: Vocabulary) -> Callable[[bytes], list[int]]:
    """Spell bytes by the base's tokenizer; nothing for what is no text."""
    made = encoder(base)

    def segment(text: bytes) -> list[int]:
        try:
            ids = made.encode(text.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            return []
        return [number for number in ids if base.tokens[number].kind != "special"]

    return segment


def make(name: str, task: Task, *, base_dir: Path | None = None, **settings: Any) -> Approximation:
    """Make all missing rows by a method."""
    method = load_transplant(name)
    parameters = method.parameters.model_validate(settings, context={"base_dir": base_dir or "."})
    return method.fit(task, parameters)(np.arange(len(task.missing)))


def row_of(task: Task, made: Approximation, text: str) -> Tensor:
    """The row made for the donor's token `text`."""
    number = task.match.donor.ids[text]
    return made.rows[int(np.flatnonzero(task.missing == number)[0])]


def weights_of(task: Task, made: Approximation, text: str) -> dict[str, float]:
    """The weights told for it, by the base's tokens."""
    place = int(np.flatnonzero(task.missing == task.match.donor.ids[text])[0])
    assert made.ids is not None
    assert made.weights is not None
    base = task.match.base.tokens
    pairs = zip(made.ids[place].tolist(), made.weights[place].tolist(), strict=True)
    return {base[number].text: weight for number, weight in pairs if number >= 0}


def glass_task(**more: Any) -> Task:
    """glassllm's Portuguese tokenizer for its English model, with both real tables."""
    base, donor = (read_vocabulary(tokenizer(f"glass_{one}"), one) for one in ("en", "pt"))
    return make_task(base, donor, glass_table("en"), donor_table=glass_table("pt"), **more)


def glass_table(language: str) -> Tensor:
    """The real table of embeddings, [1024, 128]."""
    stored = np.load(package("glassllm") / "glassllm" / "weights" / f"{language}.npz")
    return torch.from_numpy(stored["E"].astype(np.float32))


def write_vectors(path: Path, vectors: Mapping[str, Sequence[float]]) -> Path:
    """Write word vectors as word2vec's text."""
    size = len(next(iter(vectors.values())))
    lines = [f"{len(vectors)} {size}"]
    lines += [f"{word} {' '.join(map(str, row))}" for word, row in vectors.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
