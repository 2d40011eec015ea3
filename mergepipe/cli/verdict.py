"""What `verify` found, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path

from mergepipe.cli.console import print_warnings, results, size
from mergepipe.errors import printable
from mergepipe.verify import Verdict

__all__ = ["show"]


def show(folder: Path, found: Verdict, *, json_only: bool, is_signed: bool = False) -> None:
    """Print a verdict; of differences, only as JSON, as they are errors."""
    if json_only:
        print(json.dumps(_json(folder, found), indent=2))  # noqa: T201
        return
    print_warnings(printable(f"{name}: not in the manifest") for name in found.extra)
    if not found.differences:
        how = "as it was written and signed" if is_signed else "as it was written"
        line = f"{folder}: {how}: {found.tensors} tensors, {size(found.bytes_read)}"
        results.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _json(folder: Path, found: Verdict) -> dict[str, object]:
    return {
        "folder": str(folder),
        "same": not found.differences,
        "tensors": found.tensors,
        "bytes": found.bytes_read,
        "differences": [{"where": one.where, "what": one.what} for one in found.differences],
        "extra": list(found.extra),
    }
