"""NaN and infinity, in what is read and in what is written, named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergepipe.checkpoint import DTYPES
from mergepipe.errors import NonFiniteError, Problem
from mergepipe.kernels.packed import Packed
from mergepipe.kernels.tiles import KINDS, is_finite
from mergepipe.plan import Input, Step

__all__ = ["bad_input", "bad_result", "finite_bytes", "finite_row"]


def finite_row(packed: Packed, row: int) -> bool:
    """Tell whether all elements of a packed block's row are finite."""
    return bool(is_finite(packed.data[row], packed.kinds[row], packed.first, packed.count))


def finite_bytes(data: NDArray[np.uint8], dtype: str) -> bool:
    """Tell whether all elements of a run in this dtype are finite; integers are."""
    if not DTYPES[dtype].is_float or data.size == 0:
        return True
    if dtype in KINDS:
        return bool(is_finite(data, KINDS[dtype], 0, data.size // DTYPES[dtype].itemsize))
    import torch

    values = torch.from_numpy(data).view(getattr(torch, DTYPES[dtype].torch_name))
    return bool(values.double().isfinite().all())


def bad_input(
    one: Input, values: NDArray[np.float32], *, replaceable: bool = False
) -> NonFiniteError:
    """Say which tensor of which model holds what, given the run in which it was found.

    `replaceable` says that the base's tensor could take its place.
    """
    bad = int(np.count_nonzero(~np.isfinite(values)))
    kind = "nan" if np.isnan(values).any() else "inf"
    return NonFiniteError(
        Problem(
            f"{one.label} ({one.checkpoint.folder.name}/{one.stored.file.name}): {one.name}",
            f"holds {kind}: {bad} values are not finite",
            "the model is broken; use another, or `take` this tensor from one that is whole"
            + (", or say `nan_policy: base`" if replaceable else ""),
        )
    )


def bad_result(step: Step, exact: NDArray[np.float32]) -> NonFiniteError:
    """Say that a merged value does not fit the output's dtype."""
    largest = float(np.abs(exact).max())
    return NonFiniteError(
        Problem(
            step.name,
            f"a merged value of {largest:.3g} does not fit {step.dtype}",
            "write `output: {dtype: bfloat16}` or float32, or lower the weights",
        )
    )
