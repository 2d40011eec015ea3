"""A recipe: what to merge and how. YAML text in, frozen values or a list of problems out."""

from mergepipe.recipe.beside import RetentionSpec, ServedSpec
from mergepipe.recipe.document import (
    Document,
    FieldPath,
    has_several,
    read_document,
    read_documents,
)
from mergepipe.recipe.fields import EvaluateFields, as_bytes
from mergepipe.recipe.options import override
from mergepipe.recipe.parse import evaluation_spec, parse, parse_evaluations
from mergepipe.recipe.publish import PublishSpec
from mergepipe.recipe.schema import json_schema
from mergepipe.recipe.search import GenomeFields, SearchFields, SearchSpec
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
    TransplantSpec,
)

__all__ = [
    "Document",
    "EvaluateFields",
    "EvaluationSpec",
    "FieldPath",
    "GenomeFields",
    "Gradient",
    "MergeSpec",
    "NanPolicy",
    "OutputSpec",
    "Place",
    "PublishSpec",
    "Recipe",
    "RetentionSpec",
    "Rule",
    "SearchFields",
    "SearchSpec",
    "ServedSpec",
    "Setting",
    "Settings",
    "Slice",
    "TransplantSpec",
    "as_bytes",
    "at_depth",
    "evaluation_spec",
    "field_names",
    "has_several",
    "json_schema",
    "matches",
    "override",
    "parse",
    "parse_evaluations",
    "parse_models",
    "read_document",
    "read_documents",
    "value_at",
]
