"""A recipe: what to merge and how. YAML text in, frozen values or a list of problems out."""

from mergepipe.recipe.document import Document, read_document
from mergepipe.recipe.fields import as_bytes
from mergepipe.recipe.options import override
from mergepipe.recipe.parse import parse, parse_evaluations
from mergepipe.recipe.schema import json_schema
from mergepipe.recipe.settings import Setting, Settings, at_depth, field_names
from mergepipe.recipe.sources import parse_models
from mergepipe.recipe.spec import EvaluationSpec, MergeSpec, NanPolicy, OutputSpec, Recipe, Rule

__all__ = [
    "Document",
    "EvaluationSpec",
    "MergeSpec",
    "NanPolicy",
    "OutputSpec",
    "Recipe",
    "Rule",
    "Setting",
    "Settings",
    "as_bytes",
    "at_depth",
    "field_names",
    "json_schema",
    "override",
    "parse",
    "parse_evaluations",
    "parse_models",
    "read_document",
]
