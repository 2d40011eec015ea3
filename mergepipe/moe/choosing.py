"""Which architecture a mixture of some models becomes."""

from __future__ import annotations

from collections.abc import Mapping

from mergepipe.checkpoint import Checkpoint, family
from mergepipe.errors import Problems
from mergepipe.moe.config import RANDOM, Mixture
from mergepipe.moe.targets import TARGETS, Target

__all__ = ["choose"]


def choose(
    mixture: Mixture, checkpoints: Mapping[str, Checkpoint], problems: Problems
) -> Target | None:
    """Give the first architecture that fits, of those that `architecture` names."""
    asked = (mixture.architecture or "").lower()
    where = mixture.document.where(("architecture",))
    named = [one for one in TARGETS if one.name.lower().startswith(asked)]
    if "deepseek moe".startswith(asked) and asked:
        what = "DeepSeek MoE is custom code (trust_remote_code), which is never run"
        problems.add(where, what, "mixtral, qwen or qwen3")
        return None
    if not named:
        names = ", ".join(one.name for one in TARGETS)
        problems.add(where, f"'{mixture.architecture}' is the beginning of no known one: {names}")
        return None
    kinds = {label: family(one.config)[0] for label, one in checkpoints.items()}
    unfit = {one.name: _unfit(one, mixture, kinds) for one in named}
    for one in named:
        if unfit[one.name] is None:
            return one
    reasons = "; ".join(f"{name} {why}" for name, why in unfit.items())
    problems.add(where, f"no architecture fits: {reasons}")
    return None


def _unfit(target: Target, mixture: Mixture, kinds: Mapping[str, str]) -> str | None:
    """Say why a mixture cannot become of an architecture; None if it can."""
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{label} is {kind}" for label, kind in kinds.items())
        return f"needs models of one family, but {shown}"
    kind = next(iter(kinds.values()))
    if kind not in target.dense:
        return f"is made of {' or '.join(target.dense)} models, not {kind}"
    count = len(mixture.shared)
    if count != target.shared:
        return f"has {target.shared or 'no'} shared expert, but there are {count}"
    if mixture.gate_mode not in RANDOM and not all(one.positive_prompts for one in mixture.shared):
        return "needs positive_prompts for its shared expert"
    return None
