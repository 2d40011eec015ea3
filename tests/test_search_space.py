"""What is searched in a recipe, and the recipes that candidates are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergepipe.errors import InputError, Problems
from mergepipe.recipe import parse, read_document
from mergepipe.search.space import Choice, Number, read_space, untuned

HEAD = """\
mergepipe: 1
models: {base: ./base, a: ./a, b: ./b}
evaluate: [{use: bits_per_byte, data: x.jsonl}]
search: {budget: 5}
merge:
  method: ties
  base: base
  models:
    a: {density: 0.5}
    b: {density: 0.5}
"""
LAYERS = 8


def document(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    return read_document(tmp_path / "recipe.yaml")


def space_of(tmp_path, value, *, layers=LAYERS):
    problems = Problems()
    found = read_space(document(tmp_path, HEAD + f"  lambda: {value}\n"), layers, problems)
    problems.raise_any()
    return found


def merge_of(document):
    """The parsed merge of a candidate: a recipe without faults."""
    problems = Problems()
    recipe = parse(document, problems)
    problems.raise_any()
    assert recipe is not None
    return recipe.merges["merge"]


@pytest.mark.parametrize(
    ("value", "genes"),
    [
        ("{search: [0, 1]}", [Number("merge.lambda", 0, 1, 0.5)]),
        ("{search: [0, 2], init: 0}", [Number("merge.lambda", 0, 2, 0)]),
        ("{search: [1.0e-4, 1], log: true}", [Number("merge.lambda", 1e-4, 1, 0.01, is_log=True)]),
        ("{search: [1, 9], int: true, init: 3}", [Number("merge.lambda", 1, 9, 3, is_int=True)]),
        ("{search: {choice: [0.2, 0.4]}}", [Choice("merge.lambda", (0.2, 0.4), 0.2)]),
        (
            "{search: {choice: [0.2, 0.4]}, init: 0.4}",
            [Choice("merge.lambda", (0.2, 0.4), 0.4)],
        ),
        (
            "{search: [0, 1], points: 2}",
            [Number(f"merge.lambda.{i}", 0, 1, 0.5) for i in range(2)],
        ),
    ],
)
def test_a_searched_place_is_a_gene_or_several(value, genes, tmp_path):
    assert list(space_of(tmp_path, value).genes) == genes


@pytest.mark.parametrize(
    ("value", "chosen", "written"),
    [
        ("{search: [0, 1]}", [0.25], 0.25),
        ("{search: [0, 1], points: 3}", [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ("{search: [0, 1], per: layer}", [i / 8 for i in range(8)], [i / 8 for i in range(8)]),
        (
            "{search: [0, 1], per: group, groups: 2}",
            [0.1, 0.9],
            [0.1] * 4 + [0.9] * 4,
        ),
        (
            "{search: [0, 1], per: module, modules: ['*mlp*']}",
            [0.1, 0.9],
            [{"tensors": "*mlp*", "value": 0.1}, {"value": 0.9}],
        ),
        ("{search: {choice: [0.2, 0.4]}}", [0.4], 0.4),
    ],
)
def test_a_candidate_is_a_recipe_with_the_values_in_their_places(value, chosen, written, tmp_path):
    space = space_of(tmp_path, value)
    candidate = space.filled(chosen)
    assert candidate.data["merge"]["lambda"] == written
    assert "search" not in candidate.data
    assert merge_of(candidate).shared
    assert space.document.data["merge"]["lambda"] != written


def test_methods_and_other_words_can_be_chosen_too(tmp_path):
    text = HEAD.replace("method: ties", "method: {search: {choice: [ties, dare_ties]}}")
    found = read_space(document(tmp_path, text), LAYERS, Problems())
    assert [gene.name for gene in found.genes] == ["merge.method"]
    assert merge_of(found.filled(["dare_ties"])).method == "dare_ties"


def test_genes_have_the_order_of_the_recipe(tmp_path):
    text = HEAD.replace("a: {density: 0.5}", "a: {density: {search: [0, 1]}}")
    found = read_space(document(tmp_path, text + "  lambda: {search: [0, 2]}\n"), None, Problems())
    names = [gene.name for gene in found.genes]
    assert names == ["merge.models.a.density", "merge.lambda"]
    candidate = found.filled([0.25, 1.5]).data["merge"]
    assert (candidate["models"]["a"]["density"], candidate["lambda"]) == (0.25, 1.5)


@given(st.lists(st.floats(0, 2), min_size=4, max_size=4))
def test_any_values_of_the_range_make_a_recipe_that_holds_them(values):
    with tempfile.TemporaryDirectory() as folder:
        space = space_of(Path(folder), "{search: [0, 2], points: 4}")
        assert space.filled(values).data["merge"]["lambda"] == values


def test_the_untuned_recipe_has_the_starts(tmp_path):
    text = HEAD.replace("a: {density: 0.5}", "a: {density: {search: [0, 1], per: layer}}")
    found = document(tmp_path, text + "  lambda: {search: [0, 2], init: 0.4}\n")
    problems = Problems()
    start = untuned(found, problems)
    problems.raise_any()
    assert start.data["merge"]["models"]["a"]["density"] == 0.5
    assert start.data["merge"]["lambda"] == 0.4
    assert start.data["search"] == {"budget": 5}


FAULTS = [
    ("{search: []}", "search"),
    ("{search: [1, 1]}", "empty"),
    ("{search: [2, 1]}", "empty"),
    ("{search: [.nan, 1]}", "finite"),
    ("{search: [0, .inf]}", "finite"),
    ("{search: [0, true]}", "number"),
    ("{search: [0, 1], log: true}", "above 0"),
    ("{search: [0, 1], init: 2}", "must lie in"),
    ("{search: [0.5, 1], init: 0}", "must lie in"),
    ("{search: [0, 1], init: x}", "must lie in"),
    ("{search: [0.5, 2], int: true}", "whole numbers"),
    ("{search: {choice: [1]}}", "at least 2"),
    ("{search: {choice: [1, 2]}, init: 3}", "none of"),
    ("{search: {choice: [1, 2]}, log: true}", "not for a choice"),
    ("{search: [0, 1], points: 1}", "points"),
    ("{search: [0, 1], points: 2, per: layer}", "not both"),
    ("{search: [0, 1], per: head}", "per"),
    ("{search: [0, 1], step: 1}", "step"),
]


@pytest.mark.parametrize(("value", "words"), FAULTS)
def test_a_range_that_is_none_is_refused_where_it_stands(value, words, tmp_path):
    with pytest.raises(InputError, match=r"recipe\.yaml:11:3: merge\.lambda") as caught:
        space_of(tmp_path, value)
    assert words in str(caught.value)


def test_layers_that_nobody_knows_cannot_be_searched(tmp_path):
    with pytest.raises(InputError, match="number of layers is known"):
        space_of(tmp_path, "{search: [0, 1], per: layer}", layers=None)


def test_a_space_without_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="over 10000 numbers"):
        space_of(tmp_path, "{search: [0, 1], per: layer}", layers=10**6)


def faults_of(tmp_path, text):
    problems = Problems()
    untuned(document(tmp_path, text), problems)
    return "\n".join(map(str, problems.found))


def test_without_a_search_section_nothing_is_searched(tmp_path):
    text = HEAD.replace("search: {budget: 5}\n", "") + "  lambda: {search: [0, 1]}\n"
    assert "recipe.yaml:10:3: merge.lambda: is searched, but" in faults_of(tmp_path, text)


def test_a_search_section_without_anything_searched_is_refused(tmp_path):
    assert "recipe.yaml:4:1: search: nothing is searched" in faults_of(tmp_path, HEAD)


def test_what_is_not_a_part_of_the_merge_is_not_searched(tmp_path):
    text = HEAD + "  lambda: {search: [0, 1]}\ntokenizer: {search: {choice: [a, b]}}\n"
    assert "tokenizer: only what stands in" in faults_of(tmp_path, text)


def test_a_split_for_searching_is_not_a_searched_place(tmp_path):
    text = HEAD.replace("data: x.jsonl}", "data: x.jsonl, split: {search: 3, holdout: 2}}")
    assert faults_of(tmp_path, text + "  lambda: {search: [0, 1]}\n") == ""
