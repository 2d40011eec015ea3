"""`@kernel`: a loop compiled for this machine's CPU once, and kept.

Compiled code is cached in a folder named by a digest of all kernel sources, so that a change in
one file never meets code compiled from another.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

__all__ = ["cache_folder", "is_cold", "kernel", "load_numba"]

_BLAS = "scipy.linalg.cython_blas"

P = ParamSpec("P")
R = TypeVar("R")


@cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, or a folder in the user's cache."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    digest = blake2b(digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "mergepipe" / f"kernels-{digest.hexdigest()}"


def is_cold() -> bool:
    """Tell whether kernels have yet to be compiled for this machine, or this version."""
    return next(cache_folder().rglob("*.nbi"), None) is None


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that holds no lock and allocates little: `nogil`, cached."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())  # numba looks at it when it decorates
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before
    return cast("Callable[P, R]", compiled)


def load_numba() -> None:
    """Load what numba calls compiled code with, before the first call does, and without scipy.

    numba imports scipy.linalg to see whether kernels may multiply matrices: 0.2 s, and none does.
    (For others in this process only its inner product in `np.cov` becomes a loop.)
    """
    if "numba.np.arraymath" in sys.modules or _BLAS in sys.modules:
        return
    sys.modules[_BLAS] = cast("Any", None)  # importing it is an ImportError
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[_BLAS]
