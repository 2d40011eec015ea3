"""From a recipe to a checkpoint and its scores: the only place that knows every stage."""

from mergepipe.pipeline.merging import Outcome, merge
from mergepipe.pipeline.preparing import Prepared, prepare
from mergepipe.pipeline.scoring import evaluate_result

__all__ = ["Outcome", "Prepared", "evaluate_result", "merge", "prepare"]
