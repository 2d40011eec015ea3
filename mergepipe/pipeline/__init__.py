"""From a recipe to a checkpoint and its scores: the only place that knows every stage."""

from mergepipe.pipeline.adapter_serving import write_composition
from mergepipe.pipeline.carding import card_of, write_card
from mergepipe.pipeline.comparing import compare, compared_with
from mergepipe.pipeline.evaluating import NamedModel, ask_models, name_models, read_uses
from mergepipe.pipeline.kinds import check_file, prepare
from mergepipe.pipeline.live import LiveModels, live_model
from mergepipe.pipeline.merging import Outcome, merge
from mergepipe.pipeline.mixing import is_mixture
from mergepipe.pipeline.preparing import Prepared, read_recipe
from mergepipe.pipeline.publishing import check_targets, publish
from mergepipe.pipeline.reproducing import Again, Reproduced, ScorePair, reproduce
from mergepipe.pipeline.scoring import evaluate_result, reference_of
from mergepipe.pipeline.sealing import sign, verify_signed
from mergepipe.pipeline.search_space import planned_search
from mergepipe.pipeline.searching import (
    Searched,
    Searching,
    search,
    search_folder,
)
from mergepipe.pipeline.transplant_recipe import prepare_transplant
from mergepipe.pipeline.transplanting import REPORT_FILE

__all__ = [
    "REPORT_FILE",
    "Again",
    "LiveModels",
    "NamedModel",
    "Outcome",
    "Prepared",
    "Reproduced",
    "ScorePair",
    "Searched",
    "Searching",
    "ask_models",
    "card_of",
    "check_file",
    "check_targets",
    "compare",
    "compared_with",
    "evaluate_result",
    "is_mixture",
    "live_model",
    "merge",
    "name_models",
    "planned_search",
    "prepare",
    "prepare_transplant",
    "publish",
    "read_recipe",
    "read_uses",
    "reference_of",
    "reproduce",
    "search",
    "search_folder",
    "sign",
    "verify_signed",
    "write_card",
    "write_composition",
]
