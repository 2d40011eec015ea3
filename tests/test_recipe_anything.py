"""Anything at all in place of a recipe: an input error at worst, and soon."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from recipe_texts import (
    LONG,
    changed,
    paths,
    read,
)

from mergepipe.errors import InputError, Problems
from mergepipe.recipe import override, parse

anything = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MARKS = st.sampled_from(
    [*":-?,[]{}#&*!|>'\"%@`\n\t ~<=0.", "<<: ", "!!", "&a ", "*a ", "---\n", "\\U"]
)
TOKENS = st.sampled_from(sorted(set(LONG.split())))


def survives(folder: Path, text: str | bytes) -> None:
    began = time.monotonic()
    problems = Problems()
    with suppress(InputError):
        recipe = parse(read(folder, text), problems)
        problems.raise_any()
        assert recipe is not None
    assert time.monotonic() - began < 5


@anything
@given(st.text() | st.lists(MARKS | TOKENS, max_size=60).map("".join))
@example('"\\UFFFFFFFF"')
@example("%YAML " + "9" * 5000 + ".0\n---\na: 1")
@example("? [a]\n: b")
def test_no_text_at_all_raises_anything_but_an_input_error(tmp_path, text):
    survives(tmp_path, text)


@anything
@given(st.binary())
def test_no_bytes_at_all_raise_anything_but_an_input_error(tmp_path, raw):
    survives(tmp_path, raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | TOKENS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TOKENS, inner, max_size=3),
    max_leaves=6,
)


@anything
@given(st.sampled_from(paths(yaml.safe_load(LONG))), values)
def test_no_value_in_any_field_raises_anything_but_an_input_error(tmp_path, path, value):
    survives(tmp_path, json.dumps(changed(LONG, path, value)))


@anything
@given(st.text(max_size=20), st.text(max_size=20) | values.map(json.dumps))
def test_no_option_raises_anything_but_an_input_error(tmp_path, name, value):
    document = read(tmp_path, LONG)
    for option in (f"{name}={value}", f"merge.where.{name}={value}"):
        with suppress(InputError):
            parse(override(document, [option]), Problems())
