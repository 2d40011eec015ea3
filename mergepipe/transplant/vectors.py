"""Word vectors: files that give words their places in a space."""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mergepipe.errors import EnvironmentFault, InputError, Problem, Problems
from mergepipe.transplant.embedder import Embed, load_embedder

__all__ = ["Words", "gensim_models", "read_pairs", "read_vectors"]

_MAX_FAULTS = 10


@dataclass(frozen=True)
class Words:
    """Words and their vectors, fp32 [words, dimensions]; `counts` say how often each occurs.

    `embed` gives a vector to any text, where the file knows how: by its subwords, or because it is
    an embedder, which knows no words.
    """

    words: tuple[str, ...]
    table: Tensor
    counts: Tensor
    embed: Embed | None = None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in reversed(list(enumerate(self.words)))}

    def of(self, word: str) -> Tensor | None:
        """Give the vector of a word; None if it has none, or only zeros."""
        if self.words:
            return self.table[self.ids[word]] if word in self.ids else None
        found = self.embed([word])[0] if self.embed else None
        return found if found is not None and bool(found.any()) else None


def read_vectors(path: Path, device: torch.device, limit: int | None = None) -> Words:
    """Read vectors, the first `limit` words of a file.

    A folder is an embedder (`mergepipe.transplant.embedder`). A file is, by its ending: `.bin`, a
    fastText model, which has vectors for unseen words by their n-grams (needs gensim); `.npz`, with
    `words` [n], `vectors` [n, d] and, if it likes, `counts` [n]; else a text (also `.gz`) with one
    word and its numbers a line, after a line `n d` or not: word2vec's, GloVe's, fastText's `.vec`.

    Raises
    ------
    InputError
        naming the line, or the array, that is wrong.
    EnvironmentFault
        if gensim is needed and not installed.

    """
    if path.is_dir():
        empty = torch.zeros(0)
        return Words((), empty, empty, load_embedder(path, device))
    found = {".bin": _read_fasttext, ".npz": _read_npz}.get(path.suffix, _read_text)(path, limit)
    if not found.words:
        raise InputError(Problem(str(path), "holds no words"))
    return found


def gensim_models() -> Any:
    """Import gensim's models.

    Raises
    ------
    EnvironmentFault
        if it is not installed.

    """
    try:
        return importlib.import_module("gensim.models")
    except ImportError as error:
        fix = "pip install 'mergepipe[vectors]'"
        raise EnvironmentFault(Problem("", "fastText models need gensim", fix)) from error


def read_pairs(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Give the lines of a UTF-8 file of columns separated by tabs, with their numbers.

    Raises
    ------
    InputError
        naming the lines that have another number of columns.

    """
    problems = Problems()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), "is not UTF-8")) from error
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if len(fields) == columns:
            yield number, fields
        elif line.strip():
            what = f"{len(fields)} columns, separated by tabs, not {columns}"
            problems.add(f"{path}:{number}", what)
            if len(problems.found) == _MAX_FAULTS:
                break
    problems.raise_any()


def _read_fasttext(path: Path, limit: int | None) -> Words:
    facebook = gensim_models().fasttext
    try:
        vectors = facebook.load_facebook_vectors(str(path))
    except (ValueError, AssertionError, NotImplementedError, EOFError) as error:
        what = f"no fastText model: {error}"
        raise InputError(Problem(str(path), what, "word2vec vectors: as text, or .npz")) from error
    words = tuple(vectors.index_to_key[:limit])
    counts = torch.tensor([float(vectors.get_vecattr(word, "count")) for word in words])

    def embed(texts: Any) -> Tensor:
        rows = [vectors.get_vector(t) if t else np.zeros(vectors.vector_size) for t in texts]
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, vectors.vector_size))

    return Words(words, torch.from_numpy(vectors.vectors[: len(words)].copy()), counts, embed)


def _read_npz(path: Path, limit: int | None) -> Words:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name][:limit] for name in stored.files}
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}")) from error
    words, table = arrays.get("words"), arrays.get("vectors")
    if words is None or table is None or table.ndim != 2 or words.shape != table.shape[:1]:  # noqa: PLR2004 - a matrix
        what = "needs arrays `words` [n] and `vectors` [n, dimensions]"
        raise InputError(Problem(str(path), what))
    counts = arrays.get("counts", np.ones(len(words)))
    if counts.shape != words.shape or not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise InputError(Problem(str(path), "`counts` must be a number, 0 or more, for each word"))
    return _words(path, [str(word) for word in words], table, counts)


def _read_text(path: Path, limit: int | None) -> Words:
    words: list[str] = []
    rows: list[np.ndarray[Any, Any]] = []
    problems = Problems()
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            header = number == 1 and len(fields) == 2  # noqa: PLR2004 - words, dimensions
            if header or not fields:
                continue
            size = len(rows[0]) if rows else len(fields) - 1
            try:
                word, *numbers = line.strip().rsplit(maxsplit=size)
                row = np.array(numbers, np.float32)
                if len(row) != size or not size:
                    raise ValueError("a word, then as many numbers as in the first line")  # noqa: TRY301 - one place for faulty lines
                words.append(word.decode())
            except ValueError as error:
                problems.add(f"{path}:{number}", f"no word with its vector: {error}")
                if len(problems.found) == _MAX_FAULTS:
                    break
                continue
            rows.append(row)
            if len(words) == limit:
                break
    problems.raise_any()
    table = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
    return _words(path, words, table, np.ones(len(words)))


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _words(path: Path, words: list[str], table: Any, counts: Any) -> Words:
    wide = np.ascontiguousarray(table, np.float32)
    if not np.isfinite(wide).all():
        raise InputError(Problem(str(path), "holds NaN or infinite numbers"))
    return Words(tuple(words), torch.from_numpy(wide), torch.from_numpy(counts.astype(np.float32)))
