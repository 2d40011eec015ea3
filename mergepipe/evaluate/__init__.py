"""Evaluators: what one is, how it is found, the scores of models, and what they tell."""

from mergepipe.evaluate.cache import Cache, cache_file, open_cache
from mergepipe.evaluate.context import PARTS, Context, Part, Split
from mergepipe.evaluate.data import DataFile, read_jsonl
from mergepipe.evaluate.difference import Difference, differences
from mergepipe.evaluate.evaluation import (
    MAX_ERROR_RATE,
    Evaluation,
    parse_evaluation,
    refuse_unallowed,
)
from mergepipe.evaluate.evaluator import (
    Evaluator,
    evaluator_names,
    find_evaluator,
    install_evaluator,
    is_evaluator,
)
from mergepipe.evaluate.league import league
from mergepipe.evaluate.located import Located
from mergepipe.evaluate.lossy import lossy_items
from mergepipe.evaluate.page import page
from mergepipe.evaluate.records import read_results, results_json, results_jsonl
from mergepipe.evaluate.result import (
    Formula,
    Item,
    Metric,
    Result,
    Unscored,
    interval,
    mean,
    ratio,
)
from mergepipe.evaluate.running import Failure, ItemFault, Progress, Settings
from mergepipe.evaluate.score import ScoreRow, Scores, score
from mergepipe.evaluate.table import markdown, table

__all__ = [
    "MAX_ERROR_RATE",
    "PARTS",
    "Cache",
    "Context",
    "DataFile",
    "Difference",
    "Evaluation",
    "Evaluator",
    "Failure",
    "Formula",
    "Item",
    "ItemFault",
    "Located",
    "Metric",
    "Part",
    "Progress",
    "Result",
    "ScoreRow",
    "Scores",
    "Settings",
    "Split",
    "Unscored",
    "cache_file",
    "differences",
    "evaluator_names",
    "find_evaluator",
    "install_evaluator",
    "interval",
    "is_evaluator",
    "league",
    "lossy_items",
    "markdown",
    "mean",
    "open_cache",
    "page",
    "parse_evaluation",
    "ratio",
    "read_jsonl",
    "read_results",
    "refuse_unallowed",
    "results_json",
    "results_jsonl",
    "score",
    "table",
]
