"""Vocabularies made by hand: which tokens are the same, and what a broken file is told to be."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from checkpoints import edit_json, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from mergepipe.errors import InputError
from mergepipe.tokenizer.compare import compare, is_unused
from mergepipe.tokenizer.matching import match
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.tokenizer.vocabulary import Token, Vocabulary


def write(folder: Path, *words: str, added: tuple[str, ...] = (), **rest: object) -> Vocabulary:
    """A byte-level vocabulary of `words`, then special tokens."""
    folder.mkdir(exist_ok=True)
    tokens = [
        {"id": len(words) + n, "content": token, "special": True} for n, token in enumerate(added)
    ]
    stored = {
        "added_tokens": tokens,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}, "merges": []},
    }
    write_json(folder / "tokenizer.json", stored)
    write_json(folder / "tokenizer_config.json", rest)
    return read_vocabulary(folder, folder.name)


def test_each_relation_of_two_vocabularies_is_told(tmp_path):
    base = write(tmp_path / "base", "a", "b", "c", added=("<s>",))
    others = {
        "same": write(tmp_path / "1", "a", "b", "c", added=("<s>",)),
        "padded": write(tmp_path / "2", "a", "b", "c", added=("<s>", "<unused0>", "<unused1>")),
        "permuted": write(tmp_path / "3", "b", "a", "c", added=("<s>",)),
        "subset": write(tmp_path / "4", "a", "b", added=("<s>",)),
        "superset": write(tmp_path / "5", "a", "b", "c", "d", added=("<s>",)),
        "different": write(tmp_path / "6", "a", "b", "d", added=("<s>",)),
    }
    assert {name: compare(base, other).relation for name, other in others.items()} == {
        name: name for name in others
    }


def test_special_tokens_do_not_make_ordinary_ones_differ(tmp_path):
    base = write(tmp_path / "base", "a", "b", added=("<s>", "<|reserved_3|>"))
    found = compare(base, write(tmp_path / "chat", "a", "b", added=("<s>", "<|im_end|>")))
    assert (found.relation, found.ordinary) == ("different", "same")
    assert [(one.id, one.here.text, one.there.text) for one in found.renamed] == [
        (3, "<|reserved_3|>", "<|im_end|>")
    ]


def test_an_added_token_that_only_one_calls_special_is_the_same(tmp_path):
    one = write(tmp_path / "one", "a", added=("<tool>",))
    other = write(tmp_path / "other", "a", added=("<tool>",))
    edit_json(tmp_path / "other" / "tokenizer.json", added_tokens=[{"id": 1, "content": "<tool>"}])
    other = read_vocabulary(tmp_path / "other", "other")
    assert [token.kind for token in (one.tokens[1], other.tokens[1])] == ["special", "piece"]
    assert compare(one, other).relation == compare(other, one).relation == "same"
    assert match(one, other).ids == match(other, one).ids == {0: 0, 1: 1}


def test_special_tokens_are_matched_by_role_then_content_then_by_what_the_user_says(tmp_path):
    base = write(
        tmp_path / "b", "a", added=("<s>", "</s>", "<tool>"), bos_token="<s>", eos_token="</s>"
    )
    donor = write(
        *(tmp_path / "d", "a"),
        added=("<|begin|>", "<|end|>", "<tool>", "<|think|>"),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    found = match(base, donor)
    assert found.ids == {0: 0, 1: 1, 2: 2, 3: 3}
    assert list(found.how.values()) == ["exact", "role", "role", "special"]
    assert found.missing == (4,)
    assert match(base, donor, roles={"<|think|>": "<tool>"}).ids[4] == 3
    with pytest.raises(InputError, match=r"d: has no token <\|thinking\|>"):
        match(base, donor, roles={"<|thinking|>": "<tool>"})


def test_of_several_roles_of_a_token_the_first_counts(tmp_path):
    base = write(tmp_path / "b", added=("<s>", "<pad>"), bos_token="<s>", pad_token="<pad>")
    donor = write(tmp_path / "d", added=("<e>",), bos_token="<e>", eos_token="<e>", pad_token="<e>")
    assert match(base, donor).ids == {0: 0}


def test_looser_likenesses_are_found_only_if_asked_for(tmp_path):
    base = write(tmp_path / "b", "Ġthe", "inter", "Ġ", "x")
    donor = write(tmp_path / "d", "The", "international", "ĠĠĠ", "Ġthe")
    assert match(base, donor).ids == {3: 0}
    loose = match(base, donor, fuzzy=True, prefix=True)
    assert loose.ids == {0: 0, 1: 1, 3: 0}
    assert loose.how == {0: "fuzzy", 1: "prefix", 3: "exact"}
    assert loose.missing == (2,)
    counted = {how: n for how, n in loose.counts.items() if n}
    assert counted == {"exact": 1, "fuzzy": 1, "prefix": 1, "missing": 1}


def test_tokens_without_a_row_are_nobodys_match(tmp_path):
    base = write(tmp_path / "b", "a", "b", "c")
    donor = write(tmp_path / "d", "b", "c", "x", "y")
    found = match(base, donor, base_rows=2, donor_rows=3)
    assert (found.ids, found.missing, found.out_of_range) == ({0: 1}, (1, 2, 3), (3,))


@pytest.mark.parametrize(
    "text",
    ["<unused7>", "[unused99]", "<extra_id_5>", "<|reserved_special_token_12|>", "<SPECIAL_14>"],
)
def test_tokens_that_are_set_aside_are_known_by_their_names(text):
    assert is_unused(Token(0, text, "special", text.encode(), is_added=True))
    assert not is_unused(Token(0, text, "piece", text.encode(), is_added=False))


@pytest.mark.parametrize("text", ["<s>", "<|im_end|>", "[INST]", "<think>", "<|fim_pad|>"])
def test_tokens_in_use_are_not_set_aside(text):
    assert not is_unused(Token(0, text, "special", text.encode(), is_added=True))


BROKEN = {
    "not JSON": ("tokenizer.json", "{ not json", "not valid JSON at line 1"),
    "cut": ("tokenizer.json", '{"model": {"vocab": {"a": 0', "not valid JSON"),
    "no vocabulary": ("tokenizer.json", "{}", "holds no vocabulary"),
    "a list": ("tokenizer.json", "[]", "holds no vocabulary"),
    "ids are text": ("tokenizer.json", '{"model": {"vocab": {"a": "0"}}}', "holds no vocabulary"),
    "a negative id": ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}', "holds no vocabulary"),
    "added is no list": (
        *("tokenizer.json", '{"added_tokens": {"a": 1}, "model": {"vocab": {}}}'),
        "added_tokens is no list",
    ),
    "an id twice": (
        *("tokenizer.json", '{"model": {"vocab": {"a": 300, "b": 300}}}'),
        "two tokens share id 300: a and b",
    ),
    "an added token on another's id": (
        "tokenizer.json",
        '{"added_tokens": [{"id": 319, "content": "<|other|>"}], "model": {"vocab": {"<0>": 319}}}',
        "two tokens share id 319: <0> and <|other|>",
    ),
    "an added token with two ids": (
        *(
            "tokenizer.json",
            '{"added_tokens": [{"id": 9, "content": "a"}], "model": {"vocab": {"a": 1}}}',
        ),
        "added token a has id 9, but model.vocab gives it 1",
    ),
    "settings": ("tokenizer_config.json", "{", "not valid JSON"),
    "settings are a list": ("tokenizer_config.json", "[]", "not a JSON object"),
    "tekken": ("tekken.json", '{"vocab": []}', "holds no Tekken vocabulary"),
    "tiktoken": ("x.tiktoken", "IQ== 0\nIg==\n", "line 2 is no token in base64 and its rank"),
    "tiktoken in base 64": ("x.tiktoken", "I 0\n", "not in base64"),
    "sentencepiece": ("tokenizer.model", "nothing of the kind", "is no SentencePiece model"),
    "an empty model": ("tokenizer.model", "", "is no SentencePiece model"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_with_its_fault(what, tmp_path):
    file, text, words = BROKEN[what]
    folder = tmp_path / "expert_bad"
    folder.mkdir()
    if file == "tokenizer_config.json":
        write_json(folder / "tokenizer.json", {"model": {"vocab": {"a": 0}}})
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_vocabulary(folder, "expert_bad")
    assert str(caught.value).startswith(f"expert_bad/{file}: ")
    assert words in str(caught.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"math \(.*\): has no tokenizer: none of tokenizer.json"):
        read_vocabulary(tmp_path, "math")


FIELDS = ("model", "vocab", "added_tokens", "id", "content", "type", "normalizer", "special", "a")


@settings(max_examples=200, deadline=None)
@given(
    stored=st.recursive(
        st.none() | st.booleans() | st.integers(-3, 400) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_whatever_the_file_holds_reading_ends_well_or_with_its_fault(stored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expert")
    write_json(folder / "tokenizer.json", stored)
    with contextlib.suppress(InputError):
        assert read_vocabulary(folder, "expert").label == "expert"
