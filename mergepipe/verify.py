"""A checkpoint held against its manifest: every byte read again, every difference named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergepipe.checkpoint.files import Place
from mergepipe.checkpoint.folder import read_file
from mergepipe.checkpoint.tensors import Stored
from mergepipe.digest import Span, digest_header, digest_spans
from mergepipe.errors import Problem, Problems
from mergepipe.manifest import (
    BESIDE_FILES,
    MANIFEST_FILE,
    RESULTS_FILE,
    Manifest,
    Part,
    read_manifest,
)

__all__ = ["Verdict", "verify"]

_WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth")
_DAMAGED = "its bytes are not those that were written"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checkpoint is beside what its manifest says."""

    tensors: int
    bytes_read: int
    differences: tuple[Problem, ...]
    extra: tuple[str, ...]  # files that the manifest does not name, and that no loader takes


def verify(folder: Path, *, threads: int = 1) -> Verdict:
    """Read a checkpoint again, and give all its differences from its manifest.

    Raises
    ------
    InputError
        if there is no manifest, or it cannot be read.

    """
    manifest = read_manifest(folder)
    work = _Work(folder, manifest, threads, Problems())
    if not manifest.is_sealed:
        work.found.add(MANIFEST_FILE, "it was edited or damaged after it was written")
    files = dict(manifest.files)
    if manifest.results is not None:
        files[RESULTS_FILE] = manifest.results
    spans = {name: Span(folder / name, 0, part.size) for name, part in work.whole(files)}
    work.compare(spans, {name: part.digest for name, part in files.items()})
    spans = dict(work.tensor_spans())
    work.compare(spans, {name: digest for name, (_, digest) in manifest.tensors.items()})
    return Verdict(
        tensors=len(manifest.tensors),
        bytes_read=sum(part.size for part in (*files.values(), *manifest.shards.values())),
        extra=work.extra(),
        differences=tuple(work.found.found),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    folder: Path
    manifest: Manifest
    threads: int
    found: Problems

    def whole(self, parts: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
        """Give the files that are there in full length; the others are differences."""
        for name, part in parts.items():
            fault = self._fault(name, part.size)
            if fault:
                self.found.add(name, fault)
            else:
                yield name, part

    def _fault(self, name: str, size: int) -> str:
        path = self.folder
        for step in name.split("/"):
            path /= step
            if path.is_symlink():
                return "is a symbolic link, which may lead outside; it was not followed"
        if not path.is_file():
            return "is missing"
        actual = path.stat().st_size
        how = "truncated" if actual < size else "longer than it was"
        return "" if actual == size else f"{how}: {actual:,} bytes, not {size:,}"

    def compare(self, spans: Mapping[str, Span], expected: Mapping[str, str]) -> None:
        """Add what does not have the digest it should have; `spans` by file or tensor."""
        actual = digest_spans(list(spans.values()), self.threads)
        for (name, span), digest in zip(spans.items(), actual, strict=True):
            file = str(span.file.relative_to(self.folder))
            where = file if file == name else f"{file}: tensor '{name}'"
            if isinstance(digest, OSError):
                self.found.add(where, f"cannot be read: {digest.strerror}")
            elif digest != expected[name]:
                self.found.add(where, _DAMAGED)

    def tensor_spans(self) -> Iterator[tuple[str, Span]]:
        """Give where the tensors of sound shards are."""
        listed: defaultdict[str, set[str]] = defaultdict(set)
        for name, (shard, _) in self.manifest.tensors.items():
            listed[shard].add(name)
        for shard, part in self.whole(self.manifest.shards):
            stored = self._header(shard, part)
            if stored is None:
                continue
            for name in sorted(listed[shard] ^ stored.keys()):
                where = "the manifest" if name in stored else "the file"
                self.found.add(shard, f"tensor '{name}' is not in {where}")
            for name, one in stored.items():
                if name in listed[shard]:
                    yield name, Span(one.file, one.start, one.stop)

    def _header(self, shard: str, part: Part) -> dict[str, Stored] | None:
        """Give a shard's tensors; None if its header is not what was written."""
        try:
            digest = digest_header(self.folder / shard)
        except OSError as error:
            self.found.add(shard, f"cannot be read: {error.strerror}")
            return None
        if digest != part.digest:
            self.found.add(shard, f"header: {_DAMAGED}; its tensors were not checked")
            return None
        problems = Problems()
        weights = read_file(Place(shard, self.folder, ""), shard, problems)
        self.found.found.extend(problems.found)
        return dict(weights.tensors) if weights else None

    def extra(self) -> tuple[str, ...]:
        """Give the files that the manifest does not name; weights among them are differences."""
        known = {*self.manifest.files, *self.manifest.shards, MANIFEST_FILE, *BESIDE_FILES}
        paths = (path for path in self.folder.rglob("*") if path.is_symlink() or path.is_file())
        names = sorted(str(path.relative_to(self.folder)) for path in paths)
        others = [name for name in names if name not in known]
        weights = [name for name in others if name.endswith(_WEIGHTS)]
        for name in weights:
            self.found.add(name, "not in the manifest: loaders may take it for weights")
        return tuple(name for name in others if name not in weights)
