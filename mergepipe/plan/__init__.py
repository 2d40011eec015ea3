"""Recipe + headers -> plan: every output tensor, where it comes from, where it goes."""

from mergepipe.plan.align import role_of
from mergepipe.plan.layout import Layout, Shard, arrange
from mergepipe.plan.make import Plan, make_plan
from mergepipe.plan.scopes import model_scopes, scope_of
from mergepipe.plan.steps import Dropped, Input, Step
from mergepipe.plan.summary import Group, Value, as_json, groups

__all__ = [
    "Dropped",
    "Group",
    "Input",
    "Layout",
    "Plan",
    "Shard",
    "Step",
    "Value",
    "arrange",
    "as_json",
    "groups",
    "make_plan",
    "model_scopes",
    "role_of",
    "scope_of",
]
