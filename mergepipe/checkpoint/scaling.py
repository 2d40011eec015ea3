"""The rank and scale that a PEFT adapter config gives to each module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", int, float)

# Patterns come from strangers. Quantified groups, or many quantifiers, can take exponential time.
_SLOW_PATTERN = re.compile(r"\)\s*[*+{]|(?:[*+{].*){4}|\\\d", re.DOTALL)
_LONGEST_PATTERN = 300


@dataclass(frozen=True, slots=True)
class Scaling:
    """LoRA ranks and alphas: one for all modules, and exceptions by module name pattern."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    def rank_of(self, module: str) -> int:
        """Give the rank of `module`'s update."""
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Give the factor of `module`'s update: alpha/r, or alpha/√r (rsLoRA, arXiv:2312.03732)."""
        rank = self.rank_of(module)
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def scaling_of(config: Mapping[str, Any]) -> tuple[Scaling | None, list[str]]:
    """Read the scaling an `adapter_config.json` describes, or what is wrong with it."""
    scaling = Scaling(
        config.get("r", 8),
        config.get("lora_alpha", 8),
        config.get("rank_pattern") or {},
        config.get("alpha_pattern") or {},
        bool(config.get("use_rslora")),
    )
    faults = [
        *_number_faults({"r": scaling.rank, "lora_alpha": scaling.alpha}),
        *_pattern_faults("rank_pattern", scaling.rank_pattern),
        *_pattern_faults("alpha_pattern", scaling.alpha_pattern),
    ]
    return (None if faults else scaling), faults


def _number_faults(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{field} is {value!r}: a {'whole ' if field == 'r' else ''}number above 0 is needed"
        for field, value in values.items()
        if not _is_number(value, whole=field == "r")
    ]


def _is_number(value: Any, *, whole: bool) -> bool:
    kinds = {int} if whole else {int, float}
    return type(value) in kinds and math.isfinite(value) and value > 0


def _pattern_faults(field: str, patterns: Any) -> list[str]:
    if not isinstance(patterns, dict):
        return [f"{field} is not a JSON object"]
    faults = [
        f"{field} '{pattern}' is {value!r}: a number above 0 is needed"
        for pattern, value in patterns.items()
        if not _is_number(value, whole=field == "rank_pattern")
    ]
    return faults + [f"{field} '{p}' is no usable pattern" for p in patterns if not _is_usable(p)]


def _is_usable(pattern: str) -> bool:
    if len(pattern) > _LONGEST_PATTERN or _SLOW_PATTERN.search(pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _matching(patterns: Mapping[str, T], module: str, otherwise: T) -> T:
    """Give the value of the first pattern that matches the end of `module`, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
