"""Adapters made here, put where a server reads them, loaded there, asked, and unloaded.

The server has the routes of vLLM: POST /load_lora_adapter with `lora_name` and `lora_path`, and
POST /unload_lora_adapter with `lora_name`; a name is then a model's. Folders and names begin with
`mergepipe-` and a digest of who searches. So what a run that was killed left is known for what it
is, and nothing else is unloaded or deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.model.api_faults import Failure
from mergepipe.model.api_limits import Limits
from mergepipe.model.api_posts import posted
from mergepipe.write import disk_faults

if TYPE_CHECKING:
    from mergepipe.model.api import ApiModel

__all__ = ["AdapterServer", "Tell", "Write", "run_name"]

Tell = Callable[[str], None]
Write = Callable[[Path], None]
_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
_LOADING = Limits(read_seconds=120.0, total_seconds=120.0, attempts=4)
_REFUSED = frozenset({400, 413, 422})  # statuses that speak of the adapter
_FIXES = {
    401: "check the key",
    403: "is that the folder that it loads from? `seen_as` is its name for it",
    404: "does it see that folder (`seen_as`), and load adapters at run time? vLLM does with "
    "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
}


def run_name(owner: str) -> str:
    """Give what names of adapters begin with, for a search that `owner` tells from every other."""
    return f"mergepipe-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"


@dataclass(slots=True)
class AdapterServer:
    """A server, and the folder that it reads; `base` is its model without an adapter.

    At most `loaded` adapters of this process are loaded at a time, the latest that were asked.
    """

    base: ApiModel
    folder: Path
    seen_as: str
    run: str
    loaded: int = 2
    limits: Limits = _LOADING
    sleep: Callable[[float], None] = time.sleep
    _held: OrderedDict[str, Path] = field(default_factory=OrderedDict)

    def name(self, made_of: object) -> str:
        """Give the name of an adapter made of this, as JSON has it."""
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        return f"{self.run}-{os.getpid():x}-{digest}"

    def asked(self, name: str) -> ApiModel:
        """Give the model that an adapter of this name is, once it is loaded."""
        return replace(self.base, name="candidate", exchange=self.base.exchange.to(name))

    def load(self, name: str, write: Write) -> None:
        """Have an adapter loaded that `write` makes; those asked longest ago are unloaded.

        Raises
        ------
        InputError
            if it cannot be made, or the server refuses it.
        EnvironmentFault
            if the server refuses every adapter or gives no answer, or the disk fails.

        """
        if name in self._held:
            self._held.move_to_end(name)
            return
        while len(self._held) >= self.loaded:
            self.drop(next(iter(self._held)))
        place = self.folder / name
        write(place)
        self._held[name] = place
        body = {"lora_name": name, "lora_path": f"{self.seen_as.rstrip('/')}/{name}"}
        failure = self._post("load", body)
        if failure is not None and failure.status == 400 and "already" in failure.what:  # noqa: PLR2004
            self._unload(name)  # it was loaded though its answer was lost
            failure = self._post("load", body)
        if failure is not None:
            del self._held[name]
            _remove(place)
            raise self._error(failure, f"adapter {body['lora_path']}")

    def drop(self, name: str) -> None:
        """Unload an adapter and delete its folder.

        Raises
        ------
        EnvironmentFault
            if the server gives no answer; both are then left for `sweep`.

        """
        place = self._held.pop(name, None)
        self._unload(name)
        if place is not None:
            _remove(place)

    def forget(self, name: str) -> None:
        """Take note that the server has an adapter no longer."""
        place = self._held.pop(name, None)
        if place is not None:
            _remove(place)

    @contextmanager
    def session(self, tell: Tell | None = None) -> Iterator[None]:
        """Begin and end with none of this run's adapters on the server or in the folder.

        Raises
        ------
        InputError
            if the same search goes on elsewhere.
        EnvironmentFault
            if the server or the disk fails.

        """
        with disk_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f".{self.run}.lock"):
            left = self.sweep()
            if left and tell is not None:
                tell(f"{left} adapters of a run that was cut off are unloaded and deleted")
            try:
                yield
            finally:
                self._held.clear()
                self._swept_at_last(tell)

    def _swept_at_last(self, tell: Tell | None) -> None:
        """Clean up; that this cannot be done hides no other error."""
        try:
            self.sweep()
        except (EnvironmentFault, InputError) as error:
            if tell is not None:
                tell(f"warning: adapters are left on the server, until the next run: {error}")

    def sweep(self) -> int:
        """Unload and delete all adapters of this run; give how many there were.

        Raises
        ------
        EnvironmentFault
            if the server or the disk fails.

        """
        mine = re.compile(rf"(\.?){re.escape(self.run)}-[0-9a-f]+-[0-9a-f]{{16}}(\.[a-z]+)?")
        count = 0
        with disk_faults(self.folder):
            places = [one for one in sorted(self.folder.iterdir()) if mine.fullmatch(one.name)]
        for place in places:
            if not place.name.startswith("."):
                self._unload(place.name)
                count += 1
            _remove(place)
        return count

    def _unload(self, name: str) -> None:
        failure = self._post("unload", {"lora_name": name})
        if failure is not None and failure.status not in {400, 404}:
            raise self._error(failure, f"adapter {name}")

    def _post(self, what: str, body: dict[str, str]) -> Failure | None:
        # Not by content: a server that keeps answers must load anew what was unloaded.
        tag, address = uuid.uuid4().hex, self.base.exchange.address
        route = f"/{what}_lora_adapter"
        found = posted(
            address, route, body, tag, lambda _: "", limits=self.limits, sleep=self.sleep
        )
        return found if isinstance(found, Failure) else None

    def _error(self, failure: Failure, what: str) -> InputError | EnvironmentFault:
        """An adapter that is refused is a candidate's fault; all else is the server's."""
        url = self.base.exchange.address.base_url
        if failure.status in _REFUSED:
            return InputError(Problem(f"{url}: {what}", failure.what))
        fix = _FIXES.get(failure.status or 0, failure.fix)
        return EnvironmentFault(Problem(f"{url}: {what}", failure.what, fix))


def _remove(place: Path) -> None:
    """Delete what a candidate consists of; a folder that holds more is somebody's."""
    with disk_faults(place):
        if place.is_symlink() or not place.is_dir():
            place.unlink(missing_ok=True)
        elif {one.name for one in place.iterdir()} <= _FILES:
            for file in place.iterdir():
                file.unlink()
            place.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with disk_faults(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _taken(path, file):
            what = "the same search goes on elsewhere"
            raise InputError(Problem(str(path.parent), what, "wait for it"))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _taken(path: Path, file: int) -> bool:
    """Take the lock; False if another holds it, or has held it until just now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(file).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
