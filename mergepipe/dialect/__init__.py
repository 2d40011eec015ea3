"""Other tools' words: mergekit's YAML as the recipe that it means, and presets of searches."""

from mergepipe.dialect.convert import convert, is_mergekit
from mergepipe.dialect.evolve import convert_evolve, is_evolve
from mergepipe.dialect.methods import METHODS, ON_TASK_VECTORS
from mergepipe.dialect.presets import with_preset

__all__ = [
    "METHODS",
    "ON_TASK_VECTORS",
    "convert",
    "convert_evolve",
    "is_evolve",
    "is_mergekit",
    "with_preset",
]
