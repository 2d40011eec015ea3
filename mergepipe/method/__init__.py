"""What a merge method is, and how one is found.

A method is one file in `mergepipe/methods/`: a docstring (authors, formula, a worked example), two
parameter models, and a pure function over same-named tensors. It sees *blocks*: a run of elements
of one tensor, fp32, flattened, the same run of the base and of every model that has the tensor.
A tensor larger than `BLOCK` elements comes as several blocks, at fixed boundaries, so that results
never depend on memory or threads.

Some formulas need numbers of the whole tensor, or of the whole model, first: a norm, the k-th
largest magnitude. Such a method has a *survey*, a generator. It yields what to measure in one
block; measurements are arrays that add up; it is sent their sum over its scope; what it returns is
handed to `merge`::

    def survey(scope):
        norms = yield squared_norm       # {label: sum over all blocks}
        return {label: math.sqrt(norms[label]) for label in scope.each}
"""

from mergepipe.method.applying import apply
from mergepipe.method.blocks import (
    BLOCK,
    Block,
    Cut,
    Measure,
    Parameters,
    Role,
    Sampled,
    Scope,
    Statistics,
    Survey,
    Target,
    add_statistics,
    block_ranges,
    measure_blocks,
    run_survey,
    strictest,
)
from mergepipe.method.kinds import (
    Kernel,
    Method,
    install,
    load_method,
    load_post_step,
    method_names,
    post_step_names,
)

__all__ = [
    "BLOCK",
    "Block",
    "Cut",
    "Kernel",
    "Measure",
    "Method",
    "Parameters",
    "Role",
    "Sampled",
    "Scope",
    "Statistics",
    "Survey",
    "Target",
    "add_statistics",
    "apply",
    "block_ranges",
    "install",
    "load_method",
    "load_post_step",
    "measure_blocks",
    "method_names",
    "post_step_names",
    "run_survey",
    "strictest",
]
