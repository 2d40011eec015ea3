"""Licences: what a folder states, what kind that is, and what does not go together."""

from __future__ import annotations

import json
from importlib.metadata import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergepipe.card import conflicts, kind_of, licence_id, said_of
from mergepipe.card.licences import choose

APACHE = Path(__file__).parent.parent / "LICENSE"


def card(folder: Path, front: str) -> Path:
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("written", "licence", "kind"),
    [
        ("apache-2.0", "apache-2.0", "permissive"),
        ("Apache License 2.0", "apache-2.0", "permissive"),
        ("MIT", "mit", "permissive"),
        ("GPL-3.0-or-later", "gpl-3.0", "copyleft"),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "no derivatives"),
        ("llama3.1", "llama3.1", "own terms"),
        ("gemma", "gemma", "own terms"),
        ("other", "other", "unknown"),
        ("see the file!", "other", "unknown"),
    ],
)
def test_ids_of_spdx_and_of_the_hub_have_a_kind(written, licence, kind):
    assert licence_id(written) == licence
    assert kind_of(licence) == kind


def test_the_card_s_licence_comes_first_then_a_file_then_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"license": "mit"}))
    assert said_of(tmp_path) == {"license": "mit", "license_from": "config.json"}
    (tmp_path / "LICENSE").write_bytes(APACHE.read_bytes())
    assert said_of(tmp_path) == {"license": "apache-2.0", "license_from": "LICENSE"}
    card(tmp_path, "license: gemma")
    assert said_of(tmp_path) == {"license": "gemma", "license_from": "README.md"}


def test_without_any_of_them_it_is_unknown(tmp_path):
    assert said_of(tmp_path) == {"license": "unknown"}


def test_what_the_hub_calls_other_goes_by_its_name(tmp_path):
    card(tmp_path, "license: other\nlicense_name: mrl\nlicense_link: https://example.org/mrl")
    said = said_of(tmp_path)
    assert (said["license"], said["license_name"]) == ("mrl", "mrl")
    assert kind_of(said["license"]) == "non-commercial"


def test_norway_and_languages_without_lists_are_read(tmp_path):
    assert said_of(card(tmp_path, "language: no"))["language"] == ["no"]


def test_real_licence_texts_are_told_apart():
    """Those that the packages that are installed here come with."""
    expected = {"huggingface_hub": "apache-2.0", "rich": "mit", "numpy": "bsd-3-clause"}
    found = {}
    for package in expected:
        texts = [one for one in files(package) or () if one.name.startswith("LICENSE")]
        folder = Path(str(texts[0].locate())).parent
        found[package] = said_of(folder)["license"]
    assert found == expected


@pytest.mark.parametrize(
    "front",
    [
        "license: [unclosed",
        "license: !!python/object/apply:os.system [id]",
        "- a list",
        "license: {a: b}",
        "license: hf_abcdefghijklmnopqrstuvwxyz012345",
        "license: " + "x" * 10_000,
        'license: "a\\u202eb"',
    ],
)
def test_front_matter_that_cannot_be_meant_states_no_licence(tmp_path, front):
    assert said_of(card(tmp_path, front)) == {"license": "unknown"}


@settings(max_examples=30, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_card_that_states_something_or_nothing(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("any")
    (folder / "README.md").write_bytes(b"---\n" + raw + b"\n---\n")
    (folder / "config.json").write_bytes(raw)
    assert isinstance(said_of(folder)["license"], str)


FINE = [
    {"a": "apache-2.0", "b": "mit"},
    {"a": "llama3.1", "b": "llama3.1", "c": "mit"},
    {"a": "gpl-3.0", "b": "gpl-3.0"},
    {"a": "cc-by-nc-4.0", "b": "cc-by-nc-4.0"},
    {},
]
CLASHES = [
    ({"a": "cc-by-nc-4.0", "b": "apache-2.0"}, "cc-by-nc-4.0 (a) allows no commercial use"),
    ({"a": "llama3.1", "b": "gemma"}, "llama3.1 (a); gemma (b)"),
    ({"a": "llama3.1", "b": "llama3.2"}, "terms of their own"),
    ({"a": "gpl-3.0", "b": "mit"}, "gpl-3.0 (a) asks the same licence"),
    ({"a": "unknown", "b": "mit"}, "no licence is stated for a"),
    ({"a": "cc-by-nd-4.0"}, "a merge is one"),
    ({"a": "my-licence"}, "my-licence (a) is on no list"),
]


@pytest.mark.parametrize("licences", FINE)
def test_what_goes_together_is_not_spoken_of(licences):
    assert conflicts(licences) == []


@pytest.mark.parametrize(("licences", "words"), CLASHES)
def test_what_does_not_go_together_is_said(licences, words):
    found = conflicts(licences)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("licences", "chosen"),
    [
        ({"a": "mit", "b": "mit"}, "mit"),
        ({"a": "mit", "b": "apache-2.0"}, "apache-2.0"),
        ({"a": "llama3.1", "b": "mit"}, "llama3.1"),
        ({"a": "cc-by-nc-4.0", "b": "mit"}, "cc-by-nc-4.0"),
        ({"a": "llama3.1", "b": "gemma"}, "other"),
        ({"a": "mit", "b": "unknown"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_a_result_has_the_most_demanding_licence_or_says_that_it_is_unclear(licences, chosen):
    assert choose(licences).id == chosen
