"""A recipe: what to merge and how. YAML text in, frozen values or a list of problems out."""

from mergepipe.recipe.document import Document, read_document
from mergepipe.recipe.fields import as_bytes
from mergepipe.recipe.options import override
from mergepipe.recipe.parse import parse, parse_evaluations
from mergepipe.recipe.schema import json_schema
from mergepipe.recipe.settings import (
    Gradient,
    Place,
    Setting,
    Settings,
    at_depth,
    field_names,
    matches,
    value_at,
)
from mergepipe.recipe.sources import parse_models
from mergepipe.recipe.spec import (
    EvaluationSpec,
    MergeSpec,
    NanPolicy,
    OutputSpec,
    Recipe,
    Rule,
    Slice,
)

__all__ = [
    "Document",
    "EvaluationSpec",
    "Gradient",
    "MergeSpec",
    "NanPolicy",
    "OutputSpec",
    "Place",
    "Recipe",
    "Rule",
    "Setting",
    "Settings",
    "Slice",
    "as_bytes",
    "at_depth",
    "field_names",
    "json_schema",
    "matches",
    "override",
    "parse",
    "parse_evaluations",
    "parse_models",
    "read_document",
    "value_at",
]
