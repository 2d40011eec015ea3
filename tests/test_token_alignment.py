"""Two tokenizations of one text: groups by bytes, warped by spelling, maps between vocabularies."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import glass
from tokenizers import Tokenizer

from mergepipe.tokenizer.family import surface_bytes
from mergepipe.tokenizer.mined import edit_distance, map_by_spelling, spelling
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.tokenizer.sequences import Group, align_tokens
from mergepipe.tokenizer.vocabulary import Token, Vocabulary
from mergepipe.tokenizer.warping import count_pairs, map_by_statistics, warp_tokens


def tokens(*texts: str) -> list[Token]:
    """Byte-level tokens; what looks like a marker is special."""
    return [
        Token(i, text, "special", text.encode(), is_added=True)
        if text.startswith("<|")
        else Token(i, text, "piece", surface_bytes(text, "bytelevel"), is_added=False)
        for i, text in enumerate(texts)
    ]


def vocabulary(*texts: str, **roles: int) -> Vocabulary:
    found = {token.id: token for token in tokens(*texts)}
    return Vocabulary("x", None, "bytelevel", "BPE", found, roles, False, {}, {})


def spans(groups) -> list[tuple[int, int]]:
    return [(g.stop - g.start, g.stop2 - g.start2) for g in groups]


def test_roles_said_in_other_ways_are_partners():
    qwen = tokens("<|im_start|>", "Hel", "lo", "?", "Ċ", "Ċ")
    llama = tokens(
        "<|begin_of_text|>", "<|start_header_id|>", "Hello", "?", "<|end_header_id|>", "ĊĊ", "Ċ"
    )
    roles = {
        "start": (["<|im_start|>"], ["<|begin_of_text|>", "<|start_header_id|>"]),
        "end": (["Ċ"], ["<|end_header_id|>", "ĊĊ"]),
    }
    found = align_tokens(qwen, llama, roles)
    assert spans(found.groups) == [(1, 2), (2, 1), (1, 1), (1, 2), (1, 1)]
    assert found.coverage == 1


def test_a_special_token_that_only_one_has_is_left_out():
    found = align_tokens(tokens("<|a|>", "x", "<|eos|>"), tokens("x", "<|eos|>"))
    assert found.groups == (Group(1, 2, 0, 1), Group(2, 3, 1, 2))


def test_a_space_that_only_one_puts_in_front_belongs_to_its_first_token():
    found = align_tokens(tokens("Ġthe", "Ġca", "t"), tokens("the", "Ġcat"))
    assert found.groups == (Group(0, 1, 0, 1), Group(1, 3, 1, 2))


def test_words_that_one_tokenizer_changes_are_left_out():
    found = align_tokens(tokens("The", "Ġcat", "Ġsat"), tokens("the", "Ġc", "at", "Ġsat"))
    assert found.groups == (Group(1, 2, 1, 3), Group(2, 3, 3, 4))
    assert found.coverage == pytest.approx(16 / 22)


TEXTS = st.text(alphabet="ab é\n", min_size=1, max_size=30)


@given(TEXTS, st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_groups_are_the_finest_that_both_tokenizations_allow(text, cuts, cuts2):
    data = text.encode()
    ends, ends2 = (
        [0, *sorted({c for c in cs if c < len(data)}), len(data)] for cs in (cuts, cuts2)
    )

    def cut(ends):
        runs = [data[a:b] for a, b in pairwise(ends)]
        return [Token(i, str(run), "piece", run, is_added=False) for i, run in enumerate(runs)]

    found = align_tokens(cut(ends), cut(ends2))
    common = sorted({*ends} & {*ends2})
    expected = [
        Group(ends.index(a), ends.index(b), ends2.index(a), ends2.index(b))
        for a, b in pairwise(common)
    ]
    assert list(found.groups) == expected
    assert found.coverage == 1


@functools.cache
def cheapest(a, b):
    """The least cost of warping two tuples of texts onto each other, from the definition."""
    if not a or not b:
        return 0 if not a and not b else float("inf")
    before = min(cheapest(a[:-1], b), cheapest(a, b[:-1]), cheapest(a[:-1], b[:-1]))
    return edit_distance(a[-1], b[-1]) + before


WORDS = st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS, st.sampled_from(["fusellm", "fusechat"]))
def test_warping_is_the_cheapest_and_keeps_the_order(source, pivot, ties):
    ours, theirs = tokens(*source), tokens(*pivot)
    found = warp_tokens(ours, theirs, ties)
    path = [(i, j) for j, places in enumerate(found) for i in places]
    assert path[0] == (0, 0)
    assert path[-1] == (len(source) - 1, len(pivot) - 1)
    steps = {tuple(np.subtract(b, a)) for a, b in pairwise(path)}
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    cost = sum(edit_distance(source[i], pivot[j]) for i, j in path)
    assert cost == cheapest(tuple(source), tuple(pivot))


def test_the_two_tools_break_ties_in_their_own_ways():
    source, pivot = tokens("b", "a"), tokens("a", "b", "a")
    assert warp_tokens(source, pivot, "fusechat") == ((0,), (0,), (1,))
    source, pivot = tokens("b", "a", "b"), tokens("a", "b", "a")
    # Both ways back from (b, a) cost the same.
    assert warp_tokens(source, pivot, "fusellm") == ((0,), (0,), (1, 2))
    assert warp_tokens(source, pivot, "fusechat") == ((0, 1), (2,), (2,))


def test_tokens_are_mapped_to_the_nearest_spelling_and_the_first_of_those():
    source = vocabulary("cat", "Ġdogs", "zzzz", "<|eos|>", eos=3)
    pivot = vocabulary("Ġdog", "cot", "cut", "cat", "<|end|>", "zz", eos=4)
    assert map_by_spelling(source, pivot) == {0: 3, 1: 0, 2: 5, 3: 4}
    assert map_by_spelling(vocabulary("cit"), pivot) == {0: 1}  # cot, cut and cat are as near


@settings(max_examples=30, deadline=None)
@given(WORDS, WORDS)
def test_the_search_outward_finds_what_a_search_of_everything_finds(source, pivot):
    ours, theirs = vocabulary(*dict.fromkeys(source)), vocabulary(*dict.fromkeys(pivot))
    for number, target in map_by_spelling(ours, theirs).items():
        text = spelling(ours.tokens[number])
        everything = [(edit_distance(text, spelling(t)), i) for i, t in theirs.tokens.items()]
        assert (edit_distance(text, spelling(theirs.tokens[target])), target) == min(everything)


def test_statistics_take_the_most_frequent_pair_and_the_code_the_nearest():
    source = vocabulary("ab", "<|s|>", "new", "<|/s|>", bos=1, eos=3)
    pivot = vocabulary("xyz", "abc", "<|s|>", "<|/s|>", bos=2, eos=3)
    pairs = Counter({(0, 0): 9, (1, 0): 2})
    assert map_by_statistics(pairs, source, pivot) == {0: 0, 1: 2, 2: 3, 3: 3}
    # 3 · sigmoid(9) = 2.9996 against 0.1 · 1 · sigmoid(2) = 0.088
    assert map_by_statistics(pairs, source, pivot, as_coded=True)[0] == 1


def test_real_tokenizers_align_on_a_real_text(tmp_path):
    folders = [glass(language, tmp_path / language) for language in ("en", "pt")]
    ours, theirs = (read_vocabulary(folder, folder.name) for folder in folders)
    text = "The lady and the gentleman were in the garden; it was not so bad, after all."
    first, second = (
        [
            vocabulary.tokens[i]
            for i in Tokenizer.from_file(str(folder / "tokenizer.json"))
            .encode(text, add_special_tokens=False)
            .ids
        ]
        for folder, vocabulary in zip(folders, (ours, theirs), strict=True)
    )
    found = align_tokens(first, second)
    assert found.coverage == 1
    said = [b"".join(t.bytes for t in first[g.start : g.stop]) for g in found.groups]
    said2 = [b"".join(t.bytes for t in second[g.start2 : g.stop2]) for g in found.groups]
    assert said == said2
    pairs = count_pairs([(first, second)])
    assert sum(pairs.values()) >= max(len(first), len(second))
    mapped = map_by_statistics(pairs, ours, theirs)
    assert all(theirs.tokens[mapped[t.id]].kind == "piece" for t in first)
