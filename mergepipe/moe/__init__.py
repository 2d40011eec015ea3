"""A mixture of experts from dense models: mergekit-moe's configuration, its gates, its plan."""

from mergepipe.moe.choosing import choose
from mergepipe.moe.config import Expert, Mixture, is_moe, read_mixture
from mergepipe.moe.gates import Router
from mergepipe.moe.plan import plan_mixture

__all__ = ["Expert", "Mixture", "Router", "choose", "is_moe", "plan_mixture", "read_mixture"]
