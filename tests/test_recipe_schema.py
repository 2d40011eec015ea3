"""The JSON Schema of recipes, and the recipes that are shipped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from command_line import HEALTHY
from recipe_texts import (
    FORMS,
    LONG,
    MERGE,
    RULES,
    SHIPPED,
    STAGED,
    changed,
    parsed,
)

from mergepipe.cli.init import TEMPLATE
from mergepipe.errors import Problems
from mergepipe.method import load_method, method_names
from mergepipe.recipe import json_schema, parse, read_document
from mergepipe.recipe.adapter_server import has_adapter_server, read_adapter_server, rest_of
from mergepipe.recipe.ensembles import as_models, is_ensemble
from mergepipe.search.remote import local_form
from mergepipe.search.space import untuned


def test_the_template_is_a_recipe(tmp_path):
    recipe = parsed(tmp_path, TEMPLATE)
    assert recipe.merges["merge"].method == "ties"
    assert recipe.output.path == tmp_path / "merged"


def test_the_comments_of_the_template_are_fields_too(tmp_path):
    fields = ("# tokenizer:", "# seed:", "# dtype:", "# max_shard_size:", "# chat:", "# - {tensors")
    text = TEMPLATE
    for field in fields:
        assert field in text
        text = text.replace(field, field[2:])
    assert parsed(tmp_path, text).output.max_shard_bytes == 5_000_000_000


def validator() -> Any:
    """A validator of the schema; jsonschema is not a dependency, so the test may be skipped."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_the_recipes_that_are_shipped_are_recipes():
    assert SHIPPED
    for file in SHIPPED:
        document, problems = read_document(file), Problems()
        if is_ensemble(document):
            plain = as_models(untuned(document, problems))
        elif has_adapter_server(document):
            plain = rest_of(untuned(document, problems))
            assert read_adapter_server(untuned(document, problems), problems) is not None
        else:
            plain = untuned(local_form(document), problems)
        assert parse(plain, problems) is not None
        problems.raise_any()


@pytest.mark.parametrize(
    "text",
    [
        TEMPLATE,
        HEALTHY,
        FORMS + MERGE,
        STAGED,
        RULES,
        LONG,
        *(file.read_text() for file in SHIPPED),
    ],
)
def test_the_schema_accepts_recipes(text):
    assert list(validator().iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dtpye",), 1),
        (("output", "pth"), "x"),
        (("merge", "method"), "tie"),
        (("merge", "lamda"), 1),
        (("merge", "lambda"), "x"),
        (("merge", "models", "math", "densty"), 1),
        (("merge", "models", "math", "density"), 1.5),
        (("merge", "models", "math", "weight"), []),
        (("merge", "where", 0, "tensors"), []),
        (("merge", "where", 0, "method"), "tie"),
        (("models", "math", "adaptor"), "x"),
        (("models", "math"), 5),
        (("seed",), -1),
    ],
)
def test_the_schema_refuses_a_typo(path, value):
    assert not validator().is_valid(changed(LONG, path, value))


def test_the_schema_knows_every_method_and_parameter():
    merge = json_schema()["$defs"]["MergeFields"]
    assert merge["properties"]["method"]["enum"] == list(method_names())
    for rule, name in zip(merge["allOf"], method_names(), strict=True):
        shared = load_method(name).shared.model_json_schema()["properties"]
        assert rule["if"] == {"properties": {"method": {"const": name}}}
        assert set(rule["then"]["properties"]) == {*shared, "models"}


def test_the_schema_is_plain_json_of_draft_2020_12():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["mergepipe"]
    kinds = ("models", "service", "ensemble")
    assert schema["oneOf"] == [{"required": [kind]} for kind in kinds]
