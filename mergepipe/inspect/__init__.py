"""Looking before merging: how far models are from their base, and from each other."""

from mergepipe.inspect.advice import THRESHOLDS, Advice, Case, advise
from mergepipe.inspect.document import as_json
from mergepipe.inspect.drawing import draw, plot_file
from mergepipe.inspect.inputs import Inputs, open_inputs
from mergepipe.inspect.matching import Difference
from mergepipe.inspect.report import Report, Reporter, inspect
from mergepipe.inspect.sums import Sums, model_numbers, pair_numbers

__all__ = [
    "THRESHOLDS",
    "Advice",
    "Case",
    "Difference",
    "Inputs",
    "Report",
    "Reporter",
    "Sums",
    "advise",
    "as_json",
    "draw",
    "inspect",
    "model_numbers",
    "open_inputs",
    "pair_numbers",
    "plot_file",
]
