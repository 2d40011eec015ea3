"""What tokens stand for: of real tokenizers, in every format they come in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import tokenizer
from tokenizers import Tokenizer

from mergepipe.tokenizer.encoding import encode_all, encoder
from mergepipe.tokenizer.matching import match
from mergepipe.tokenizer.normalizing import adds_space, changes_text
from mergepipe.tokenizer.reading import read_vocabulary
from mergepipe.tokenizer.vocabulary import Vocabulary

QUICK = ("gpt2", "llama2", "qwen2_5", "bert", "glass_en", "glass_pt")
SLOW = (
    *("llama3", "mistral_nemo", "gemma2", "gemma3", "gpt4o", "yi", "deepseek", "whisper"),
    *("smollm2", "t5", "tokenlearn", "mistral_v1", "mistral_v3", "tekken", "llama3_tiktoken"),
    *("qwen_tiktoken", "wordllama"),
)
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
TEXTS = (
    "Hello, world",
    " leading and trailing ",
    "many    spaces     in  a row",
    "\ttabs\t\there",
    "lines\r\nend\r\n\r\nso\n\n\n",
    "caf\u00e9 na\u00efve",
    "cafe\u0301 nai\u0308ve",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u65e5\u672c\u8a9e",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
    "\u0301alone",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 12345678901 123456789012",
    "def f(x):\n    if x:\n\t\treturn x ** 2\n",
    "fran\u00e7ais \u00d1and\u00fa \u1e9e \ufb01 \u00bd",
)


@cache
def known(name: str) -> Vocabulary:
    return read_vocabulary(tokenizer(name), name)


@cache
def encoding(name: str) -> Tokenizer:
    return encoder(known(name))


def spelled(name: str, text: str) -> bytes | None:
    """The bytes of the tokens of a text; None if some of it is unknown to the tokenizer."""
    ids = encoding(name).encode(text, add_special_tokens=False).ids
    tokens = [known(name).tokens[number] for number in ids]
    if any(token.id == known(name).unknown for token in tokens):
        return None
    return b"".join(token.bytes for token in tokens)


def _squeezed(text: str) -> str:
    """How the SentencePiece rule nmt_nfkc writes a text, so far as the samples need it."""
    text = unicodedata.normalize("NFKC", text.replace("\u200d", " "))
    return re.sub(r"\s+", " ", text).strip()


def _plain(text: str) -> str:
    """How BERT's uncased tokenizers read a text, without spaces: these stand between all tokens."""
    folded = unicodedata.normalize("NFD", text.lower())
    kept = (c for c in folded if unicodedata.category(c) not in {"Mn", "Cf"})
    return "".join("".join(kept).split())


# What a tokenizer does to text before it splits it, written independently of its file.
READ_AS: dict[str, Callable[[str], str]] = {
    "qwen2_5": lambda text: unicodedata.normalize("NFC", text),
    "glass_en": lambda text: unicodedata.normalize("NFC", text),
    "glass_pt": lambda text: unicodedata.normalize("NFC", text),
    "bert": _plain,
    "t5": _squeezed,
    "tokenlearn": _squeezed,
    **dict.fromkeys(("llama2", "mistral_v1", "mistral_v3", "wordllama"), lambda text: f" {text}"),
}
SPACED = {"t5", "tokenlearn", "bert"}  # spaces are the tokenizer's, so they are compared without


def check(name: str, text: str) -> bool:
    found = spelled(name, text)
    if found is None:
        return False
    read = READ_AS.get(name, str)(text)
    if name in SPACED:
        assert found.decode().replace(" ", "") == read.replace(" ", "")
    else:
        assert found == (read.encode() if text else b"")
    return True


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(name):
    assert sum([check(name, text) for text in TEXTS]) >= len(TEXTS) // 3


@pytest.mark.parametrize("name", ["gpt2", "llama2", "glass_en", "bert"])
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Co")), max_size=40)
)
def test_the_bytes_of_tokens_are_the_bytes_of_any_text(name, text):
    assert check(name, text) or known(name).model in {"BPE", "WordPiece"}


def test_only_tokenizers_that_change_text_say_so():
    kept = {name: (known(name).is_lossy, changes_text(known(name).stored)) for name in QUICK}
    assert kept == {
        "gpt2": (False, False),
        "llama2": (False, False),
        "qwen2_5": (False, True),  # NFC
        "bert": (True, True),
        "glass_en": (False, True),
        "glass_pt": (False, True),
    }
    assert [name for name in QUICK if adds_space(known(name).stored)] == ["llama2"]


def test_every_byte_has_a_token_in_vocabularies_that_can_spell_anything():
    every = {bytes([byte]) for byte in range(256)}
    for name in ("gpt2", "llama2", "qwen2_5"):
        assert every <= known(name).by_bytes.keys()


def test_a_byte_may_be_a_piece_and_a_fallback():
    """Llama 2 has `a` and `<0x61>`: the piece comes first."""
    kinds = [known("llama2").tokens[n].kind for n in known("llama2").by_bytes[b"a"]]
    assert kinds == ["piece", "byte"]


def test_roles_are_ids_of_tokens():
    roles = {role: known("llama2").tokens[n].text for role, n in known("llama2").roles.items()}
    assert roles == {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


def test_tokens_are_the_same_by_bytes_however_they_are_spelled():
    found = match(known("gpt2"), known("llama2"))
    spaced, newline = known("llama2").ids["▁the"], known("llama2").ids["<0x0A>"]
    assert known("gpt2").tokens[found.ids[spaced]].text == "Ġthe"
    assert known("gpt2").tokens[found.ids[newline]].text == "Ċ"
    assert (found.how[spaced], found.how[newline]) == ("exact", "byte")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "donor", "strings", "bytes_too"),
    [("smollm2", "wordllama", 7633, 18_805), ("mistral_v3", "tekken", None, 29_163)],
)
def test_bytes_find_what_strings_miss(base, donor, strings, bytes_too):
    found = match(known(base), known(donor))
    assert found.counts["exact"] + found.counts["byte"] == bytes_too
    if strings is not None:
        assert len(known(base).ids.keys() & known(donor).ids.keys()) == strings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [("mistral_nemo", "tekken"), ("llama3", "llama3_tiktoken"), ("qwen2_5", "qwen_tiktoken")],
)
def test_a_converted_file_gives_the_ids_of_the_tokenizer_json_it_was_published_with(one, other):
    for text in TEXTS:
        read = unicodedata.normalize("NFC", text)
        ids = [encoding(name).encode(read, add_special_tokens=False).ids for name in (one, other)]
        assert ids[0] == ids[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral_v1", "mistral_v3"])
def test_a_sentencepiece_model_gives_the_ids_that_sentencepiece_gives(name):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(str(tokenizer(name) / "tokenizer.model"))
    for text in TEXTS:
        ids = encoding(name).encode(text, add_special_tokens=False).ids
        assert ids == model.encode(text), text
        assert encoding(name).decode(ids) == text


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_trained_sentencepiece_model_gives_the_ids_that_sentencepiece_gives(kind, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = [*TEXTS, *(f"word{n} and more words of line {n * 7919}" for n in range(300))]
    with (tmp_path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=file,
            model_type=kind,
            vocab_size=420,
            byte_fallback=True,
            minloglevel=2,
        )
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    vocabulary = read_vocabulary(tmp_path, "x")
    assert vocabulary.model.lower() == kind
    for text, tokens in zip(corpus, encode_all(vocabulary, corpus), strict=True):
        assert [token.id for token in tokens] == model.encode(text), text
