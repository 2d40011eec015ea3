"""A mixture of experts as a plan: copies of tensors under new names, and gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mergepipe.checkpoint import DTYPES, Checkpoint, Held, Stored, torch_dtype
from mergepipe.errors import Problems, printable
from mergepipe.kernels.random import stream_key
from mergepipe.method import load_method
from mergepipe.moe.config import Expert, Mixture
from mergepipe.moe.gates import Gate, Router
from mergepipe.moe.noise import Noise
from mergepipe.moe.states import EMBEDDING
from mergepipe.moe.targets import MATRICES, Target, complete
from mergepipe.plan import Dropped, Input, Plan, Step, arrange
from mergepipe.plan.align import align, is_buffer, role_of, shown_names
from mergepipe.recipe import MergeSpec

__all__ = ["plan_mixture"]

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_MADE = "router"  # label of tensors that come from no model


def plan_mixture(
    mixture: Mixture,
    target: Target,
    checkpoints: Mapping[str, Checkpoint],
    router: Router,
    problems: Problems,
) -> Plan:
    """Plan a mixture; what does not fit together goes to `problems`."""
    planner = _Planner(mixture, target, checkpoints, router, problems)
    steps = tuple(planner.steps())
    planner.report()
    donor = planner.base
    config = target.config(donor.config, len(mixture.experts), mixture.experts_per_token)
    labels = (mixture.base, *dict.fromkeys(mixture.labels))
    return Plan(
        name=mixture.recipe.result,
        spec=MergeSpec(
            place=mixture.document.where(()),
            method=target.model_type,
            base=mixture.base,
            models=labels,
            each={label: {} for label in (*labels, _MADE)},
            shared={},
            rules=(),
        ),
        seed=mixture.recipe.seed,
        donor=replace(donor, config=config),
        steps=steps,
        dropped=_dropped(checkpoints, mixture.base, steps),
        layout=arrange(
            [(one.name, one.dtype, one.shape) for one in steps],
            mixture.recipe.output.max_shard_bytes,
        ),
        nan_policy=mixture.recipe.nan_policy,
    )


class _Planner:
    """Decides tensor by tensor; holds what every decision needs."""

    def __init__(
        self,
        mixture: Mixture,
        target: Target,
        checkpoints: Mapping[str, Checkpoint],
        router: Router,
        problems: Problems,
    ) -> None:
        self.mixture, self.target, self.router, self.problems = mixture, target, router, problems
        self.base = checkpoints[mixture.base]
        self.checkpoints = checkpoints
        settings = complete(self.base.config)
        self.layers: int = settings["num_hidden_layers"]
        self.dtype = _DTYPES.get(_output_dtype(mixture, self.base))
        aligned = align(self.base, self.base, problems)
        assert aligned is not None, "a model is like itself"
        self.tied = aligned.copies
        self.made: dict[str, Stored] = {}
        self.source = Checkpoint(_MADE, self.base.folder, {}, self.made, {}, {}, self.base.source)
        self.names = {label: self._names(label) for label in dict.fromkeys(mixture.labels)}
        self.missing: dict[str, list[str]] = {}
        self.mismatched: dict[str, list[str]] = {}

    def _names(self, label: str) -> Mapping[str, str]:
        """Give an expert's names of the base's tensors; none if it is another architecture."""
        expert = self.checkpoints[label]
        found = align(self.base, expert, self.problems)
        ours, theirs = (one.config.get("hidden_act", "silu") for one in (self.base, expert))
        if ours != theirs:
            what = f"its activation is {theirs}, but {self.base.label}'s is {ours}"
            self.problems.add(f"{label}/config.json", what, "mix models with the same hidden_act")
        return {} if found is None else found.names

    def steps(self) -> Iterator[Step]:
        """Decide every tensor of the result, layer by layer."""
        for name in self.target.dense_names(self.layers):
            yield from self._dense(name)
            layer = name.removesuffix("post_attention_layernorm.weight")
            if layer != name:
                yield from self._mixed(int(layer.split(".")[2]))
        self._refuse_extra()

    def _dense(self, name: str) -> Iterator[Step]:
        """Copy a tensor that is the base's."""
        if name in self.tied or (self.target.may_lack(name) and name not in self.base.tensors):
            return
        if name in self.base.tensors:
            one = Input(self.base.label, self.base, name)
            yield self._copy(name, one, "all but the MLPs")
        elif self.target.is_zero(name):
            import torch

            weight = self.base.tensors.get(name.replace(".bias", ".weight"))
            rows = weight.shape[0] if weight else 0
            dtype = self.dtype or (_native(weight.dtype) if weight else "F32")
            zeros = self._made(
                name, (rows,), dtype, "zero", torch.zeros(rows).to(torch_dtype(dtype))
            )
            yield self._copy(name, zeros, f"{self.base.label} has none: zero")
        else:
            self.missing.setdefault(self.base.label, []).append(name)

    def _mixed(self, layer: int) -> Iterator[Step]:
        """Make what takes the place of a layer's MLP."""
        target, routed = self.target, len(self.mixture.experts)
        yield self._gate(target.gate(layer), layer, slice(0, routed))
        for at, expert in enumerate(self.mixture.gated):
            label, shared = self.mixture.labels[at], at >= routed
            why = "shared expert" if shared else f"expert {at}"
            for matrix in MATRICES:
                name = (
                    target.shared_expert(layer, matrix)
                    if shared
                    else target.expert(layer, at, matrix)
                )
                dense = f"model.layers.{layer}.mlp.{matrix}.weight"
                source = self._of_expert(label, dense)
                if source is not None:
                    yield self._expert(name, source, expert, matrix, why)
        if self.mixture.shared:
            rows = slice(routed, routed + 1)
            yield self._gate(target.shared_gate(layer), layer, rows)

    def _of_expert(self, label: str, name: str) -> Input | None:
        """Find the tensor of an expert that the base calls `name`, of the base's shape."""
        if not self.names[label]:
            return None
        like, other = self.base.tensors.get(name), self.names[label].get(name)
        if like is None or other is None:
            lacks = self.base.label if like is None else label
            self.missing.setdefault(lacks, []).append(name)
            return None
        one = Input(label, self.checkpoints[label], other)
        if one.stored.shape != like.shape or not one.stored.is_float:
            found = f"{one.stored.dtype} {list(one.stored.shape)}"
            self.mismatched.setdefault(label, []).append(
                f"{printable(other, 200)} {found} (not {like.dtype} {list(like.shape)})"
            )
            return None
        return one

    def _expert(self, name: str, source: Input, expert: Expert, matrix: str, why: str) -> Step:
        """Copy a matrix, or add noise to it and scale it."""
        copy = self._copy(name, source, why)
        last = expert.residual_scale if matrix == "down_proj" else None
        scale = 1.0 if last is None else last
        if not expert.noise_scale and last is None:
            return copy
        linear = load_method("linear")
        inputs, weights = [source], [scale]
        if expert.noise_scale:
            key = stream_key(self.mixture.recipe.seed, "noise", name)
            inputs.append(self._made(f"noise of {name}", copy.shape, "F32", f"{key}", Noise(key)))
            weights.append(scale * expert.noise_scale)
        return replace(
            copy,
            method="linear",
            inputs=tuple(inputs),
            each=tuple(linear.each(weight=weight) for weight in weights),
            shared=linear.shared(normalize=False),
        )

    def _gate(self, name: str, layer: int, rows: slice) -> Step:
        width = complete(self.base.config)["hidden_size"]
        like = self.base.tensors.get(EMBEDDING)
        dtype = self.dtype or (_native(like.dtype) if like else "F32")
        gate = Gate(self.router, layer, rows, dtype)
        shape = (rows.stop - rows.start, width)
        one = self._made(name, shape, dtype, self.router.digest, gate)
        return self._copy(name, one, f"gate_mode {self.router.mode}")

    def _made(
        self, name: str, shape: tuple[int, ...], dtype: str, cause: str, values: Held
    ) -> Input:
        """Take a tensor that is in no file; `cause` stands for one where plans are compared."""
        size = DTYPES[dtype].itemsize
        for extent in shape:
            size *= extent
        self.made[name] = Stored(name, dtype, shape, Path(cause), 0, size, values)
        return Input(_MADE, self.source, name)

    def _copy(self, name: str, one: Input, reason: str) -> Step:
        stored = one.stored
        return Step(
            name=name,
            dtype=self.dtype or _native(stored.dtype),
            shape=stored.shape,
            method=None,
            base=None,
            inputs=(one,),
            each=(),
            shared=None,
            rule=None,
            depth=0.0,
            reason=reason,
            role=role_of(name, stored.shape),
        )

    def _refuse_extra(self) -> None:
        """Refuse weights of the base that the result has no place for, such as biases."""
        known = {*self.target.dense_names(self.layers), *self.tied}
        extra = [
            name
            for name, stored in self.base.tensors.items()
            if name not in known and stored.is_float and not _left_out(name)
        ]
        if extra:
            what = f"{self.target.name} has no place for {len(extra)} of its tensors"
            fix = "the result would not compute what this model does; use another base"
            self.problems.add(self.base.label, f"{what}: {shown_names(extra)}", fix)

    def report(self) -> None:
        """Turn what the models lacked into one problem each."""
        for label, names in self.missing.items():
            what = f"{len(names)} tensors are missing: {shown_names(names)}"
            fix = "mix dense models of the llama, mistral, qwen2 or qwen3 architecture"
            self.problems.add(label, what, fix)
        for label, shapes in self.mismatched.items():
            what = f"{len(shapes)} tensors have another shape or dtype than in {self.base.label}"
            fix = "all experts must be of the base's size"
            self.problems.add(label, f"{what}: {shown_names(shapes)}", fix)


def _native(dtype: str) -> str:
    return "BF16" if dtype.startswith("F8") else dtype


def _output_dtype(mixture: Mixture, base: Checkpoint) -> str:
    """Give the dtype of the result: as asked for, else as the base's configuration says."""
    said = base.config.get("dtype") or base.config.get("torch_dtype")
    return mixture.recipe.output.dtype or str(said or "").removeprefix("torch.")


def _left_out(name: str) -> bool:
    """Tell MLPs, whose place the experts take, and what loaders work out themselves."""
    dense = any(name.endswith(f".mlp.{matrix}.weight") for matrix in MATRICES)
    return dense or is_buffer(name)


def _dropped(
    checkpoints: Mapping[str, Checkpoint], base: str, steps: tuple[Step, ...]
) -> tuple[Dropped, ...]:
    used = {(one.label, one.name) for step in steps for one in step.inputs}
    reasons = dict.fromkeys(checkpoints, "not used: only the MLPs of experts are")
    reasons[base] = "not used: experts take the place of its MLPs"
    return tuple(
        Dropped(label, name, reasons[label])
        for label, one in checkpoints.items()
        for name in one.tensors
        if (label, name) not in used
    )
