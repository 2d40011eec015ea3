"""A checkpoint's tensors, converted block by block of rows, into one GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergepipe.checkpoint import Checkpoint, ModelSource, Stored, open_checkpoint, read_values
from mergepipe.errors import EnvironmentFault, InputError, Problem, Problems
from mergepipe.gguf.architecture import (
    Architecture,
    add_settings,
    architecture_of,
    rope_factors,
)
from mergepipe.gguf.vocabulary import TokenTable, add_tokens, token_table

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

__all__ = ["KINDS", "check_gguf", "digest_in", "write_gguf"]

# How matrices are stored -> gguf's name of the file type. Vectors are always fp32.
KINDS: Mapping[str, str] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_0": "MOSTLY_Q5_0",
    "q4_0": "MOSTLY_Q4_0",
}
_DIGEST = "mergepipe.manifest"  # a field of ours: which checkpoint the file was made of
_ROWS_BYTES = 64 << 20  # of fp32 values that are converted at once
_ENDS = ("model.embed_tokens.weight", "lm_head.weight")  # suffer most from few bits


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as it will stand in the file; `heads` where rows of queries or keys are moved."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    source: Stored | None
    heads: int = 0
    values: NDArray[np.float32] | None = None


def check_gguf(folder: Path) -> None:
    """Find what would stop `write_gguf`, without reading a tensor.

    Raises
    ------
    InputError
        if the architecture or the tokenizer has no name in GGUF, or a tensor has none.
    EnvironmentFault
        if the package `gguf` is missing.

    """
    _library()
    checkpoint = _opened(folder)
    _tensors(checkpoint, architecture_of(checkpoint.config, str(folder / "config.json")), "f32")
    _table(checkpoint)


def write_gguf(
    folder: Path, file: Path, kind: str, digest: str, tell: Callable[[str], None]
) -> None:
    """Convert the checkpoint in `folder`; `kind` is one of `KINDS`.

    `digest` is written into the file, so that `digest_in` can tell what it was made of. The file
    is written beside its place and renamed when it is whole. Memory: a few blocks of rows.

    Raises
    ------
    InputError
        if the architecture or the tokenizer has no name in GGUF, or a tensor has none.
    EnvironmentFault
        if the package `gguf` is missing, or the disk fails.

    """
    gguf = _library()
    checkpoint = _opened(folder)
    architecture = architecture_of(checkpoint.config, str(folder / "config.json"))
    tensors = _tensors(checkpoint, architecture, kind)
    partial = file.with_name(f".{file.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture.name)
    try:
        _describe(writer, checkpoint, kind, digest)
        for one in tensors:
            writer.add_tensor_info(
                one.name, one.shape, np.dtype(np.float32), _bytes(one), raw_dtype=one.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, checkpoint, tensors, tell)
        writer.close()
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise EnvironmentFault(
            Problem(str(file), f"cannot be written: {error.strerror}")
        ) from error
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        fix = "pip install 'mergepipe[gguf]'"
        raise EnvironmentFault(Problem("gguf", "the package gguf is not installed", fix)) from error
    return gguf


def _opened(folder: Path) -> Checkpoint:
    problems = Problems()
    checkpoint = open_checkpoint(ModelSource(folder.name, folder, None, None, None), problems)
    problems.raise_any()
    assert checkpoint is not None, "a checkpoint without problems"
    return checkpoint


def digest_in(file: Path) -> tuple[str, str]:
    """Give the digest and the kind of a file that `write_gguf` wrote; empty texts of others."""
    gguf = _library()
    try:
        fields = gguf.GGUFReader(file).fields
    except (ValueError, OSError, KeyError, IndexError):
        return "", ""
    digest, kind = fields.get(_DIGEST), fields.get("general.file_type")
    if digest is None or kind is None:
        return "", ""
    named = {getattr(gguf.LlamaFileType, value): name for name, value in KINDS.items()}
    return str(digest.contents()), named.get(gguf.LlamaFileType(kind.contents()), "")


def _describe(writer: GGUFWriter, checkpoint: Checkpoint, kind: str, digest: str) -> None:
    from gguf import LlamaFileType

    writer.add_type("model")
    writer.add_name(checkpoint.folder.resolve().name)
    add_settings(writer, checkpoint.config, _vocabulary_size(checkpoint))
    writer.add_file_type(getattr(LlamaFileType, KINDS[kind]))
    writer.add_quantization_version(2)
    writer.add_string(_DIGEST, digest)
    add_tokens(writer, _table(checkpoint))


def _vocabulary_size(checkpoint: Checkpoint) -> int:
    return checkpoint.tensors[_ENDS[0]].shape[0]


def _table(checkpoint: Checkpoint) -> TokenTable:
    from mergepipe.tokenizer import read_vocabulary

    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.label)
    template = _template(checkpoint.folder, vocabulary)
    return token_table(vocabulary, _vocabulary_size(checkpoint), template)


def _template(folder: Path, vocabulary: Any) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = vocabulary.settings.get("chat_template")
    return found if isinstance(found, str) else None


def _tensors(checkpoint: Checkpoint, architecture: Architecture, kind: str) -> list[_Tensor]:
    """Give all tensors by GGUF's names, in the order of the checkpoint."""
    import gguf

    config = checkpoint.config
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, int(config["num_hidden_layers"]))
    heads = int(config["num_attention_heads"])
    groups = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    found, unknown = [], []
    for name, stored in checkpoint.tensors.items():
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            unknown.append(name)
            continue
        turned = groups.get(name.split(".")[-2], 0) if architecture.interleaves else 0
        found.append(_Tensor(to, stored.shape, _kind(stored, kind), stored, turned))
    if unknown:
        what = f"{len(unknown)} tensors have no name in GGUF's {architecture.name}: {unknown[0]}"
        raise InputError(Problem(str(checkpoint.folder), what))
    factors = rope_factors(config)
    if factors is not None:
        plain = gguf.GGMLQuantizationType.F32
        found.append(_Tensor("rope_freqs.weight", factors.shape, plain, None, values=factors))
    return found


def _kind(stored: Stored, kind: str) -> GGMLQuantizationType:
    """Give how a tensor is stored: rows that groups of 32 do not fill are kept in fp16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(stored.shape) < 2:  # noqa: PLR2004 (vectors)
        return GGMLQuantizationType.F32
    few_bits = kind in {"q4_0", "q5_0"} and stored.name in _ENDS
    wanted = GGMLQuantizationType["Q8_0" if few_bits else kind.upper()]
    fits = stored.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else GGMLQuantizationType.F16


def _bytes(tensor: _Tensor) -> int:
    from gguf import GGML_QUANT_SIZES

    group, size = GGML_QUANT_SIZES[tensor.kind]
    return int(np.prod(tensor.shape)) // group * size


def _write_tensors(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    tensors: list[_Tensor],
    tell: Callable[[str], None],
) -> None:
    from gguf.quants import quantize

    assert writer.fout is not None, "the header was written"
    stream = writer.fout[0]
    writer.write_padding(stream, stream.tell())
    total = len(tensors)
    for done, tensor in enumerate(tensors, 1):
        for rows in _rows(checkpoint, tensor):
            quantize(rows, tensor.kind).tofile(stream)
        writer.write_padding(stream, _bytes(tensor))
        if done * 10 // total > (done - 1) * 10 // total:
            tell(f"{done} of {total} tensors")


def _rows(checkpoint: Checkpoint, tensor: _Tensor) -> Iterator[NDArray[np.float32]]:
    """Give the rows of a tensor in fp32, a few at a time; those of queries and keys all at once."""
    if tensor.source is None:
        assert tensor.values is not None, "a tensor is stored or made"
        yield tensor.values
        return
    columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    count = max(_ROWS_BYTES // (4 * max(columns, 1)), 1) * columns
    step = tensor.source.numel if tensor.heads else count
    for start in range(0, tensor.source.numel, max(step, 1)):
        stop = min(start + step, tensor.source.numel)
        values = read_values(checkpoint, tensor.source.name, start, stop).numpy()
        rows = values.reshape(-1, *tensor.shape[1:]) if len(tensor.shape) > 1 else values
        yield _interleaved(rows, tensor.heads) if tensor.heads else rows


def _interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put row i and row i + half of each head beside each other."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
