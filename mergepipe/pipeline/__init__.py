"""From a recipe to a checkpoint and its scores: the only place that knows every stage."""

from mergepipe.pipeline.comparing import compare
from mergepipe.pipeline.evaluating import NamedModel, ask_models, name_models, read_uses
from mergepipe.pipeline.live import LiveModels, live_model
from mergepipe.pipeline.merging import Outcome, merge
from mergepipe.pipeline.mixing import check_file, is_mixture, prepare_file, prepare_moe
from mergepipe.pipeline.preparing import Prepared, prepare, read_recipe
from mergepipe.pipeline.remote import prepare_search
from mergepipe.pipeline.scoring import evaluate_result, reference_of
from mergepipe.pipeline.searching import Searched, Searching, search, search_folder
from mergepipe.pipeline.transplant_recipe import prepare_transplant
from mergepipe.pipeline.transplanting import REPORT_FILE

__all__ = [
    "REPORT_FILE",
    "LiveModels",
    "NamedModel",
    "Outcome",
    "Prepared",
    "Searched",
    "Searching",
    "ask_models",
    "check_file",
    "compare",
    "evaluate_result",
    "is_mixture",
    "live_model",
    "merge",
    "name_models",
    "prepare",
    "prepare_file",
    "prepare_moe",
    "prepare_search",
    "prepare_transplant",
    "read_recipe",
    "read_uses",
    "reference_of",
    "search",
    "search_folder",
]
