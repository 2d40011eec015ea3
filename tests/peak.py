"""The most memory that a program had, as the kernel counts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A forked process begins with its parent's peak, so the program is started from a small one.
_LAUNCH = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_EXECUTE = """
import json, sys
from pathlib import Path
from mergepipe.execute import execute
from mergepipe.pipeline import prepare
recipe, options = Path(sys.argv[1]), json.loads(sys.argv[2])
class Dropped:
    def write(self, step, start, data): pass
    def finish(self, step, inputs, note): pass
for plan in prepare(recipe).plans:
    execute(plan, Dropped(), **options)
"""


def peak_bytes(program: Sequence[str]) -> int:
    """Run a Python program to its end; its largest resident set."""
    small = [sys.executable, "-S", "-c", _LAUNCH, sys.executable, *program]
    done = subprocess.run(small, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def peak_of_merge(recipe: Path, *, threads: int, max_memory: int) -> int:
    """The peak of a process that makes the tensors of a recipe and forgets them."""
    options = json.dumps({"threads": threads, "max_memory": max_memory})
    return peak_bytes(["-c", _EXECUTE, str(recipe), options])
