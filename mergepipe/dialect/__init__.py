"""mergekit's YAML, read as the recipe that it means."""

from mergepipe.dialect.convert import convert, is_mergekit
from mergepipe.dialect.evolve import convert_evolve, is_evolve
from mergepipe.dialect.methods import METHODS, ON_TASK_VECTORS

__all__ = [
    "METHODS",
    "ON_TASK_VECTORS",
    "convert",
    "convert_evolve",
    "is_evolve",
    "is_mergekit",
]
