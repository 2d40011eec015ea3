"""One block of a step, merged: by the method's fused kernel, or by its definition in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergepipe.checkpoint import DTYPES, read_range, torch_dtype
from mergepipe.execute.finite import bad_result, finite_bytes
from mergepipe.execute.worker import Worker
from mergepipe.kernels.fused import weighted_sum
from mergepipe.kernels.packed import Out, Packed
from mergepipe.kernels.tiles import BF16, F16, F32, KINDS
from mergepipe.method import Block, load_method
from mergepipe.plan import Input, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Maker", "maker_for"]

_TORCH_VIEWS = {
    BF16: (np.int16, "bfloat16"),
    F16: (np.int16, "float16"),
    F32: (np.int32, "float32"),
}


def maker_for(step: Step, device: torch.device | None) -> Maker:
    """Choose: without a device the kernel of a method that has one, else torch on the CPU."""
    assert step.method is not None, "copies are not made"
    if device is None and (step.then or load_method(step.method).kernel_for(step.shared) is None):
        import torch

        device = torch.device("cpu")
    return Maker(step, device)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the blocks of one step; without a device, by kernels."""

    step: Step
    device: torch.device | None

    def block(self, start: int, packed: Packed, seed: int) -> Block[Any, Any]:
        """Give a run of the step's inputs as the method takes it."""
        step = self.step
        assert step.shared is not None, "a step with a method has parameters"
        values = [] if self.device is None else self._tensors(packed)
        return Block(
            target=step.target,
            start=start,
            base=values.pop(0) if values and packed.based else None,
            models=tuple(values),
            labels=tuple(one.label for one in step.inputs),
            each=step.each,
            shared=step.shared,
            seed=seed,
            packed=packed if self.device is None else None,  # what it holds is what runs
        )

    def _tensors(self, packed: Packed) -> list[Tensor]:
        """Copy rows to the device as stored, and widen them there."""
        import torch

        found = []
        for row, kind in zip(packed.data, packed.kinds, strict=True):
            bits, name = _TORCH_VIEWS[int(kind)]
            run = row.view(bits)[packed.first : packed.first + packed.count]
            stored = torch.from_numpy(run).view(getattr(torch, name))
            found.append(stored.to(self.device, non_blocking=True).to(torch.float32))
        return found

    def merged(self, block: Block[Any, Any], found: Sequence[Any]) -> Block[Any, Any]:
        """Give the block after as many calls as there are findings, as the next one sees it."""
        calls = self.step.calls
        for call, knowledge in zip(calls, found, strict=False):
            block = replace(block, each=call.each, shared=call.shared)
            block = replace(block, merged=call.method.merge(block, knowledge))
        call = calls[min(len(found), len(calls) - 1)]
        return replace(block, each=call.each, shared=call.shared) if found else block

    def make(
        self, worker: Worker, block: Block[Any, Any], found: Sequence[Any]
    ) -> NDArray[np.uint8]:
        """Merge a block; the bytes of the result, in the output's dtype.

        Raises
        ------
        NonFiniteError
            if a value does not fit that dtype.

        """
        assert self.step.method is not None, "copies are not made"
        method = load_method(self.step.method)
        if self.device is not None:
            merged = self.merged(block, found).merged
            assert merged is not None, "all calls were made"
            exact = merged.contiguous()
            data = _as_bytes(exact, self.step.dtype)
            return self._checked(worker, data, lambda: exact.cpu().numpy())
        assert block.packed is not None, "kernels take packed blocks"
        kernel, count = method.kernel_for(self.step.shared), block.packed.count
        assert kernel is not None, "a step without a device has a kernel"
        out = worker.out(count, KINDS.get(self.step.dtype, F32))
        kernel(block, found[0], out)

        def exact_values() -> NDArray[np.float32]:
            wide = Out(np.empty(4 * count, np.uint8), F32)
            kernel(block, found[0], wide)
            return wide.data.view(np.float32)

        return self._checked(worker, self._narrowed(out), exact_values)

    def first(self, worker: Worker, packed: Packed) -> NDArray[np.uint8]:
        """Give the first row, the base's or the only one, in the output's dtype."""
        one = Packed(
            packed.data[:1], packed.kinds[:1], packed.count, based=False, first=packed.first
        )
        out = worker.out(packed.count, KINDS.get(self.step.dtype, F32))
        weighted_sum(one, [1.0], None, out)

        def exact_values() -> NDArray[np.float32]:
            wide = Out(np.empty(4 * packed.count, np.uint8), F32)
            weighted_sum(one, [1.0], None, wide)
            return wide.data.view(np.float32)

        return self._checked(worker, self._narrowed(out), exact_values)

    def _narrowed(self, out: Out) -> NDArray[np.uint8]:
        """Round to a dtype that kernels do not write."""
        if self.step.dtype in KINDS:
            return out.data
        import torch

        return _as_bytes(torch.from_numpy(out.data.view(np.float32)), self.step.dtype)

    def _checked(self, worker: Worker, data: NDArray[np.uint8], exact: Any) -> NDArray[np.uint8]:
        if not worker.allow and not finite_bytes(data, self.step.dtype):
            raise bad_result(self.step, exact())
        return data

    @staticmethod
    def exact(one: Input, start: int, stop: int) -> NDArray[np.float32]:
        """Read values of a tensor that is copied, to say what is wrong with them."""
        values: NDArray[np.float32] = read_range(one.stored, start, stop).float().numpy()
        return values


def _as_bytes(values: Tensor, dtype: str) -> NDArray[np.uint8]:
    import torch

    narrow = values.to(torch_dtype(dtype)).view(torch.uint8)
    data: NDArray[np.uint8] = narrow.cpu().numpy()
    assert data.size == values.numel() * DTYPES[dtype].itemsize, "one run of bytes"
    return data
