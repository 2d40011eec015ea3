"""A recipe: what to merge and how. YAML text in, frozen values or a list of problems out."""

from mergepipe.recipe.document import Document, override, read_document
from mergepipe.recipe.parse import (
    EvaluationSpec,
    MergeSpec,
    OutputSpec,
    Recipe,
    Rule,
    parse,
    parse_models,
)
from mergepipe.recipe.schema import json_schema
from mergepipe.recipe.settings import Setting, Settings, at_depth, field_names

__all__ = [
    "Document",
    "EvaluationSpec",
    "MergeSpec",
    "OutputSpec",
    "Recipe",
    "Rule",
    "Setting",
    "Settings",
    "at_depth",
    "field_names",
    "json_schema",
    "override",
    "parse",
    "parse_models",
    "read_document",
]
