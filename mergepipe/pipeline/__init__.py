"""From a recipe to a checkpoint and its scores: the only place that knows every stage."""

from mergepipe.pipeline.comparing import compare
from mergepipe.pipeline.merging import Outcome, merge
from mergepipe.pipeline.mixing import check_file, is_mixture, prepare_file, prepare_moe
from mergepipe.pipeline.preparing import Prepared, prepare, read_recipe
from mergepipe.pipeline.scoring import evaluate_result

__all__ = [
    "Outcome",
    "Prepared",
    "check_file",
    "compare",
    "evaluate_result",
    "is_mixture",
    "merge",
    "prepare",
    "prepare_file",
    "prepare_moe",
    "read_recipe",
]
