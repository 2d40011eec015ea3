"""mergekit's merge methods (0.1.5) in terms of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from mergepipe.method import load_method, method_names

__all__ = [
    "IGNORED",
    "METHODS",
    "ON_TASK_VECTORS",
    "REQUIRED",
    "Counterpart",
    "Meaning",
    "counterpart",
]

REQUIRED: Any = object()
IGNORED = frozenset({"int8_mask"})  # changes the memory that mergekit uses, never the result

Change: TypeAlias = Literal["none", "rescale", "fraction"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a parameter is called here, mergekit's default, and how its values change."""

    name: str
    default: Any
    change: Change = "none"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """One of our methods, and how mergekit's parameters become its own.

    Every parameter is given in full, since defaults differ. With `weighs_base` a base that is
    listed is an input like the others.
    """

    name: str
    base: Literal["required", "optional", "unused"]
    each: Mapping[str, Meaning] = field(default_factory=dict)
    shared: Mapping[str, Meaning] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()  # taken by mergekit's method, without effect

    @property
    def weighs_base(self) -> bool:
        """Whether the base is an input like the others."""
        return self.base == "unused"


_WEIGHT = Meaning("weight", REQUIRED)
_DENSITY = Meaning("density", 1.0, "fraction")
_LAMBDA = Meaning("lambda", 1.0)
_AS_MERGEKIT = {"elect": "mergekit"}


def _task_vectors(
    name: str,
    *,
    normalize: bool,
    rescale: bool,
    each: Mapping[str, Meaning] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Counterpart:
    """Give a method of mergekit's generalized task arithmetic that sparsifies."""
    return Counterpart(
        name,
        "required",
        {"weight": _WEIGHT, "density": _DENSITY, **(each or {})},
        {
            "normalize": Meaning("normalize", normalize),
            "rescale": Meaning("rescale", rescale, "rescale"),
            "lambda": _LAMBDA,
        },
        fixed or {},
    )


_GAMMA = {"gamma": Meaning("gamma", 0.01, "fraction")}
_EPSILON = {"epsilon": Meaning("epsilon", 0.15)}

METHODS: Mapping[str, Counterpart] = {
    "linear": Counterpart(
        "linear", "unused", {"weight": _WEIGHT}, {"normalize": Meaning("normalize", True)}
    ),
    "slerp": Counterpart("slerp", "required", {}, {"t": Meaning("t", REQUIRED)}),
    "nuslerp": Counterpart(
        "nuslerp",
        "optional",
        {"weight": _WEIGHT},
        {
            "nuslerp_flatten": Meaning("flatten", True),
            "nuslerp_row_wise": Meaning("row_wise", False),
        },
    ),
    "multislerp": Counterpart(
        "multislerp",
        "optional",
        {"weight": _WEIGHT},
        {
            "normalize_weights": Meaning("normalize_weights", True),
            "eps": Meaning("eps", 1e-8),
        },
    ),
    "karcher": Counterpart(
        "karcher",
        "unused",
        {},
        {"max_iter": Meaning("max_iter", 10), "tol": Meaning("tol", 1e-5)},
    ),
    "passthrough": Counterpart("passthrough", "unused", {"scale": Meaning("scale", 1.0)}),
    "task_arithmetic": Counterpart(
        "task_arithmetic",
        "required",
        {"weight": _WEIGHT},
        {"normalize": Meaning("normalize", False), "lambda": _LAMBDA},
        unused=frozenset({"density", "rescale"}),
    ),
    "ties": _task_vectors(
        "ties", normalize=True, rescale=False, fixed={"scope": "tensor", **_AS_MERGEKIT}
    ),
    "dare_linear": _task_vectors("dare_linear", normalize=False, rescale=True),
    "dare_ties": _task_vectors("dare_ties", normalize=False, rescale=True, fixed=_AS_MERGEKIT),
    "breadcrumbs": _task_vectors("breadcrumbs", normalize=False, rescale=False, each=_GAMMA),
    "breadcrumbs_ties": _task_vectors(
        "breadcrumbs_ties", normalize=False, rescale=False, each=_GAMMA, fixed=_AS_MERGEKIT
    ),
    "della": _task_vectors(
        "della", normalize=True, rescale=True, each=_EPSILON, fixed=_AS_MERGEKIT
    ),
    "della_linear": _task_vectors("della_linear", normalize=False, rescale=True, each=_EPSILON),
    "model_stock": Counterpart(
        "model_stock",
        "required",
        {},
        {"filter_wise": Meaning("filter_wise", False)},
        {"compat": "mergekit"},
    ),
    "sce": Counterpart(
        "sce",
        "required",
        {},
        {"select_topk": Meaning("select_topk", 1.0, "fraction")},
        {"compat": "mergekit"},
    ),
    "nearswap": Counterpart("nearswap", "required", {}, {"t": Meaning("t", REQUIRED)}),
    "arcee_fusion": Counterpart("arcee_fusion", "required"),
    "ram": Counterpart("ram", "required", {}, {"epsilon": Meaning("epsilon", 1e-5)}),
    "ramplus_tl": Counterpart(
        "ram_plus",
        "required",
        {},
        {
            "epsilon": Meaning("epsilon", 1e-5),
            "r": Meaning("r", 0.1),
            "alpha": Meaning("alpha", 0.2),
        },
        {"scope": "tensor"},
    ),
}

# Those that mergekit 0.1.4 gives the differences of models and base.
ON_TASK_VECTORS = frozenset(
    one.name
    for one in METHODS.values()
    if one.base == "required" and (one.each.keys() >= {"weight"} or one.name == "sce")
)


def counterpart(name: str) -> Counterpart | None:
    """Give the method of ours that a name of mergekit's, or of a plugin, stands for."""
    if name in METHODS or name not in method_names():
        return METHODS.get(name)
    method = load_method(name)
    base: Literal["required", "optional", "unused"] = "unused"
    if method.uses_base(named=True):
        base = "required" if method.needs_base else "optional"
    each, shared = (
        {
            key: Meaning(key, REQUIRED if one.is_required() else one.default)
            for key, one in parameters.model_fields.items()
        }
        for parameters in (method.each, method.shared)
    )
    return Counterpart(name, base, each, shared)
