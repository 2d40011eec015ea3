"""`mergepipe tokens compare`, and the numbers it prints, on real tokenizers."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from checkpoints import edit_json
from command_line import command
from material import tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from mergepipe.tokenizer.digits import digit_policy, numeral_warning
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.matching import match
from mergepipe.tokenizer.quality import (
    gini,
    measure,
    parity,
    pieces_per_missing,
    renyi_efficiency,
    unreachable,
    weighted_overlap,
)
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.tokenizer.vocabulary import Vocabulary

ENGLISH = "The quick brown fox jumps over the lazy dog. It costs 1234567 dollars."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund. Er kostet 1234567 Dollar."


@cache
def known(name: str) -> tuple[Vocabulary, Tokenizer]:
    vocabulary = read_vocabulary(tokenizer(name), name)
    return vocabulary, encoder(vocabulary)


@pytest.fixture
def texts(tmp_path) -> tuple[Path, Path]:
    files = tmp_path / "en.txt", tmp_path / "de.txt"
    for file, text in zip(files, (ENGLISH, GERMAN), strict=True):
        file.write_text(f"{text}\n{text}\n", encoding="utf-8")
    return files


@pytest.mark.parametrize(
    ("text", "efficiency", "entropy"),
    [
        ("pick @@ed pick @@l @@ed pick @@les", 0.8265064834225245, 0.9211854965885544),
        (
            "pick @@e @@d pick @@l @@e @@d pick @@l @@e @@s",
            0.9204840242168808,
            0.9609557933859342,
        ),
    ],
)
def test_renyi_efficiency_is_that_of_the_papers_package(text, efficiency, entropy):
    counts = Counter(text.split()).values()
    assert renyi_efficiency(counts, 2.5) == pytest.approx(efficiency, abs=1e-14)
    assert renyi_efficiency(counts, 1.0) == pytest.approx(entropy, abs=1e-14)


def test_efficiency_and_inequality_of_next_to_nothing():
    assert renyi_efficiency([]) is None
    assert renyi_efficiency([5]) is None
    assert renyi_efficiency([5, 5]) == pytest.approx(1.0)
    assert gini([]) is None
    assert gini([1, 3]) == pytest.approx(0.25)


def test_the_measures_of_a_short_text_are_those_counted_by_hand():
    """GPT-2 cuts `Unbelievable news` into Un|bel|iev|able|␣news."""
    found = measure(*known("gpt2"), ["Unbelievable news"])
    assert (found.tokens, found.types, found.bytes, found.words) == (5, 5, 17, 2)
    assert (found.bytes_per_token, found.fertility, found.fertility_spaced) == (3.4, 2.5, 2.5)
    assert (found.continued, found.whole) == (0.5, 0.5)
    assert (found.renyi_efficiency, found.gini) == (pytest.approx(1.0), pytest.approx(0.0))
    assert found.utilisation == 5 / 50257
    assert (found.unknown, found.byte_fallback, found.round_trip_failures) == (0, 0, 0)


def test_unknown_text_and_byte_fallbacks_are_counted():
    found = measure(*known("bert"), ["a \u1f00 b"])
    assert found.unknown_characters == 0
    found = measure(*known("bert"), ["a \U0001f600 b"])
    assert (found.unknown, found.unknown_characters) == (pytest.approx(1 / 3), 1 / 5)
    assert found.round_trip_failures == 1
    assert measure(*known("llama2"), ["\U0001f9ff"]).byte_fallback == 4 / 5  # after the space
    assert measure(*known("gpt2"), []).fertility is None


def test_parity_is_the_ratio_of_tokens_of_translations():
    vocabulary, encoding = known("gpt2")
    sizes = [len(encoding.encode(text).ids) for text in (ENGLISH, GERMAN)]
    found = parity(vocabulary, encoding, {"en": [ENGLISH, "a"], "de": [GERMAN, "b"]})
    assert found["en"] == (1.0, 1.0)
    assert found["de"] == pytest.approx(
        ((sizes[1] + 1) / (sizes[0] + 1), (sizes[1] / sizes[0] + 1) / 2)
    )
    assert sizes[1] > sizes[0]
    lost = parity(*known("bert"), {"en": ["hello"], "emoji": ["\U0001f600"]})
    assert lost["emoji"] is None


def test_unreachable_tokens_are_those_that_no_text_gives():
    vocabulary, encoding = known("gpt2")
    lost = unreachable(vocabulary, encoding)
    assert len(lost) < 300
    assert all(encoding.encode(one.bytes.decode()).ids != [one.id] for one in lost)
    unused = {f"[unused{n}]" for n in range(10)}
    assert unused <= {token.text for token in unreachable(*known("bert"))}


def test_overlap_is_weighted_by_what_texts_have():
    base, donor = known("glass_en"), known("llama2")
    found = match(base[0], donor[0])
    assert weighted_overlap(found, donor[1], ["the"]) == 1.0
    assert weighted_overlap(found, donor[1], ["今天天气很好"]) == 1 / 7  # the space in front
    pieces = pieces_per_missing(found, base[1])
    assert pieces is not None
    assert 2 < pieces < 6


@pytest.mark.parametrize(
    ("name", "kind", "groups"),
    [
        ("gpt2", "unbounded", (3, 2, 2)),
        ("llama2", "single", (1,) * 7),
        pytest.param("qwen2_5", "single", (1,) * 7, marks=pytest.mark.slow),
        ("bert", "unbounded", (3, 2, 1, 1)),
        pytest.param("llama3", "group3_ltr", (3, 3, 1), marks=pytest.mark.slow),
        pytest.param("gpt4o", "group3_ltr", (3, 3, 1), marks=pytest.mark.slow),
        pytest.param("tekken", "single", (1,) * 7, marks=pytest.mark.slow),
    ],
)
def test_how_numbers_are_cut(name, kind, groups):
    found = digit_policy(known(name)[1])
    assert (found.kind, found.groups) == (kind, groups)


@pytest.mark.parametrize(
    ("pattern", "kind", "groups"),
    [
        (r"\p{N}{1,2}|\P{N}+", "bounded_n", (2, 2, 2, 1)),
        (r"\p{N}{1,3}(?=(\p{N}{3})*(\P{N}|$))|\P{N}+", "group3_rtl", (1, 3, 3)),
    ],
)
def test_numbers_cut_by_other_rules(pattern, kind, groups):
    numbers = [str(n).zfill(size) for size in (1, 2, 3) for n in range(10**size)]
    vocabulary = {text: n for n, text in enumerate([*numbers, *" .,xis"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    found = digit_policy(made)
    assert (found.kind, found.groups) == (kind, groups)


def test_numbers_that_are_cut_otherwise_are_warned_of():
    one, other = (digit_policy(known(name)[1]) for name in ("llama2", "gpt2"))
    assert numeral_warning(one, one) is None
    warning = numeral_warning(one, other, ("qwen", "gpt"))
    assert warning is not None
    assert "NUMERAL_MISMATCH: qwen cuts numbers into single digits, gpt into" in warning


def test_the_command_shows_two_tokenizers_at_a_glance(texts, capsys):
    done = command(capsys, "tokens", "compare", tokenizer("gpt2"), tokenizer("llama2"), texts[0])
    assert done.status == 0
    for words in (
        "different: each has tokens that the other lacks",
        "of the 32,000 tokens of llama2 are gpt2's too",
        "BPE, bytelevel",
        "</s> (2)",
        "bytes/token",
        "single digits",
    ):
        assert words in done.out
    assert "NUMERAL_MISMATCH" in done.err


def test_the_json_has_the_same_and_more(texts, capsys):
    two = tokenizer("glass_en"), tokenizer("glass_pt")
    found = json.loads(command(capsys, "tokens", "compare", *two, *texts, "--json").out)
    assert (found["relation"], found["match"]["role"]) == ("different", 4)
    assert found["a"]["digits"]["kind"] == "single"
    assert found["roles"]["eos"]["b"] == {"id": 3, "text": "<eos>"}
    quality = found["quality"][str(texts[0])]
    assert quality["a"]["tokens"] == len(known("glass_en")[1].encode(f"{ENGLISH}\n" * 2).ids)
    assert quality["weighted_overlap"] > 0.5
    assert found["words"]["1234567"]["b"] == list("1234567")


def test_translations_are_compared_line_by_line(texts, capsys):
    two = tokenizer("glass_en"), tokenizer("glass_pt")
    done = command(capsys, "tokens", "compare", *two, *texts, "--parallel")
    assert "tokens as a ratio to the first file" in done.out
    texts[1].write_text("one line", encoding="utf-8")
    done = command(capsys, "tokens", "compare", *two, *texts, "--parallel")
    assert done.status == 2
    assert "the files differ in lines" in done.err


def test_tokens_of_two_tokenizers_are_aligned_and_mapped(texts, tmp_path, capsys):
    two, file = (tokenizer("glass_en"), tokenizer("glass_pt")), tmp_path / "map.tsv"
    done = command(capsys, "tokens", "align", *two, texts[0], "--map", file)
    assert done.status == 0, done.err
    assert "one to one, 100.0% of the bytes in them" in done.out
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == ["source_id", "pivot_id", "source", "pivot"]
    ends = sum(line[3] in ('"<unk>"', '"<eos>"', '"<bos>"') for line in lines[1:])
    assert "tokens were seen in the texts; the others are unknown" in done.out
    assert 500 < ends < len(lines) - 1
    (found,) = json.loads(command(capsys, "tokens", "align", *two, texts[0], "--json").out)
    assert found["coverage"] == 1
    assert found["groups"][-1][1::2] == found["tokens"]


def test_a_map_by_spelling_keeps_what_is_spelled_alike(texts, tmp_path, capsys):
    file, folder = tmp_path / "map.tsv", tokenizer("glass_en")
    words = ("tokens", "align", folder, folder, texts[0], "--map", file, "--by", "spelling")
    assert command(capsys, *words).status == 0
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    assert all(source == pivot for _, _, source, pivot in rows)
    lost = command(capsys, *words[:6], tmp_path / "none" / "map.tsv")
    assert (lost.status, "cannot be written" in lost.err) == (3, True)


def test_a_tokenizer_beside_itself_is_the_same(texts, capsys):
    records = texts[0].with_suffix(".jsonl")
    records.write_text(f"{json.dumps({'text': ENGLISH})}\n" * 3, encoding="utf-8")
    done = command(
        capsys, "tokens", "compare", tokenizer("glass_en"), tokenizer("glass_en"), records
    )
    assert done.out.startswith("same: the same tokens with the same ids")
    assert "100.0 % of the tokens" in done.out
    assert not done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "nowhere"), "nowhere: there is no such folder"),
        ((".", "."), "has no tokenizer"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = command(capsys, "tokens", "compare", *arguments)
    assert (done.status, words in done.err) == (2, True)


def test_text_that_is_not_there_or_no_text_is_said(tmp_path, capsys):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    folder = tokenizer("glass_en")
    for file, words in (("none.txt", "no such file"), ("x.txt", "cannot be read as UTF-8")):
        done = command(capsys, "tokens", "compare", folder, folder, tmp_path / file)
        assert (done.status, words in done.err) == (2, True)


def test_control_characters_of_tokens_are_escaped(tmp_path, capsys):
    for name, token in (("a", "\x1b[31mred"), ("b", "\u202egnp")):
        folder = tmp_path / name
        folder.mkdir()
        stored = json.loads((tokenizer("glass_en") / "tokenizer.json").read_bytes())
        (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
        added = [{"id": 1024, "content": token, "special": True, **_FLAGS}]
        edit_json(folder / "tokenizer.json", added_tokens=[*stored["added_tokens"], *added])
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}), "utf-8")
    done = command(capsys, "tokens", "compare", tmp_path / "a", tmp_path / "b")
    assert done.status == 0
    assert "\\x1b[31mred (1024)" in done.out
    assert not {"\x1b", "\u202e"} & set(done.out)


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
