"""One GGUF file, as llama.cpp and what is built on it load: made of the checkpoint, and quantised.

Written `gguf:FILE.gguf`, or `gguf:FILE.gguf?type=q8_0`; f32, f16, bf16 (the default), q8_0, q5_0
and q4_0 are there. Llama, Mistral, Qwen 2 and Qwen 3 are known; others are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergepipe.digest import digest_file
from mergepipe.errors import InputError, Problem
from mergepipe.gguf import KINDS, check_gguf, digest_in, write_gguf
from mergepipe.manifest import MANIFEST_FILE
from mergepipe.publish.item import Parcel, check_unchanged
from mergepipe.publish.target import Options, State, Target

__all__ = ["TARGET"]

_DEFAULT = "bf16"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file that need not exist yet."""

    file: Path
    kind: str

    @property
    def shown(self) -> str:
        """Its path and how matrices are stored in it."""
        return f"{self.file} ({self.kind})"

    def look(self, parcel: Parcel) -> State:
        """Say whether it was made of this checkpoint already, and find what would stop that.

        Raises
        ------
        InputError
            if it is a folder, its folder does not exist, or the model cannot be converted.
        EnvironmentFault
            if the package `gguf` is missing.

        """
        if self.file.is_dir() or not self.file.resolve().parent.is_dir():
            raise InputError(Problem(str(self.file), "cannot be a file there", "create its folder"))
        is_there = self.file.exists()
        same = is_there and digest_in(self.file) == (_digest(parcel), self.kind)
        if not same:
            check_gguf(parcel.folder)
        return State(
            is_new=not is_there,
            same=parcel.names if same else frozenset(),
            replaced=(self.file.name,) if is_there and not same else (),
            removed=(),
        )

    def send(self, parcel: Parcel, _state: State, tell: Callable[[str], None]) -> str:
        """Convert the checkpoint."""
        write_gguf(parcel.folder, self.file, self.kind, _digest(parcel), tell)
        check_unchanged(parcel.items)
        return str(self.file)


def _digest(parcel: Parcel) -> str:
    return digest_file(parcel.folder / MANIFEST_FILE)


def _open(address: str, _options: Options) -> GgufFile:
    path, _, option = address.partition("?")
    name, _, kind = option.partition("=")
    text = f"gguf:{address}"
    if not path.endswith(".gguf") or "\0" in path:
        raise InputError(Problem(text, "is not the name of a GGUF file", "gguf:./model.gguf"))
    if option and (name != "type" or kind not in KINDS):
        what = f"'{option}' is not type=KIND"
        raise InputError(Problem(text, what, f"one of {', '.join(KINDS)}"))
    return GgufFile(Path(path).expanduser(), kind or _DEFAULT)


TARGET = Target("gguf:./model.gguf?type=q8_0", _open)
