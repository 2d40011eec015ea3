"""Evaluators: what one is, how it is found, the scores of models and their table."""

from mergepipe.evaluate.data import DataFile, read_jsonl
from mergepipe.evaluate.evaluator import (
    Evaluator,
    Item,
    Metric,
    Result,
    evaluator_names,
    find_evaluator,
)
from mergepipe.evaluate.league import league
from mergepipe.evaluate.score import (
    Evaluation,
    ScoreRow,
    parse_evaluation,
    results_jsonl,
    score,
)
from mergepipe.evaluate.table import markdown, table

__all__ = [
    "DataFile",
    "Evaluation",
    "Evaluator",
    "Item",
    "Metric",
    "Result",
    "ScoreRow",
    "evaluator_names",
    "find_evaluator",
    "league",
    "markdown",
    "parse_evaluation",
    "read_jsonl",
    "results_jsonl",
    "score",
    "table",
]
