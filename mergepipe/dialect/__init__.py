"""mergekit's YAML, read as the recipe that it means."""

from mergepipe.dialect.convert import convert, is_mergekit
from mergepipe.dialect.methods import METHODS

__all__ = ["METHODS", "convert", "is_mergekit"]
