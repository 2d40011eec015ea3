"""Transplants: a model keeps its layers and gets another tokenizer."""

from mergepipe.transplant.kinds import (
    Parameters,
    TransplantMethod,
    load_transplant,
    transplant_names,
)
from mergepipe.transplant.task import Approximation, Fitted, Ids, Side, Table, Task

__all__ = [
    "Approximation",
    "Fitted",
    "Ids",
    "Parameters",
    "Side",
    "Table",
    "Task",
    "TransplantMethod",
    "load_transplant",
    "transplant_names",
]
