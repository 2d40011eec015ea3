"""`mergepipe transplant` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import edit_json
from command_line import assert_clean, command
from material import glass, tokenizer
from transplant_cases import words
from transplanted import EMBEDDING, LETTERS, report, tensors, write_model

HELDOUT = Path(__file__).parent.parent / "recipes" / "quickstart" / "heldout"
QUICKSTART = HELDOUT.parent / "base"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", (*LETTERS, "ho", "▁sings"), seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_a_model_gets_another_tokenizer_and_a_report(folder, capsys):
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "omp", "--k", "4")
    said = command(capsys, "transplant", "model", *words_)
    assert said.status == 0, said.err
    assert "model with other's tokenizer: omp" in said.out
    assert "26 same bytes, 2 approximated" in said.out
    assert_clean(said.out + said.err)
    assert report(folder / "out")["parameters"]["k"] == 4
    assert command(capsys, "verify", "out").status == 0


def test_a_dry_run_says_what_is_shared_and_writes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "subword", "--dry-run")
    said = command(capsys, "transplant", "model", *words_)
    assert said.status == 0
    assert "26 same bytes: the model's rows are kept" in said.out
    assert "2 that the model lacks (7%)" in said.out
    assert "numbers: " in said.out
    assert "memory " in said.out
    assert sorted(folder.rglob("*")) == before
    machine = json.loads(command(capsys, "transplant", "model", *words_, "--json").out)
    assert machine["matches"]["missing"] == 2
    assert machine["peak_bytes"] > 0
    assert machine["quality"]["pieces_per_missing"] == 2  # ho by h and o; ▁sings by ▁sing and s
    assert machine["tensors"][EMBEDDING] == [29, 64]


@pytest.mark.usefixtures("folder")
def test_json_holds_the_report_and_the_scores(capsys):
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "mean", "--json")
    said = json.loads(command(capsys, "transplant", "model", *words_).out)
    assert said["output"] == "out"
    assert said["transplant"]["method"] == "mean"


def test_options_of_the_recipe_are_set_by_name(folder, capsys):
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "subword")
    settings = ("--set", "mode=sum", "--set", "pad_to_multiple_of=8")
    assert command(capsys, "transplant", "model", *words_, *settings).status == 0
    assert len(tensors(folder / "out")[EMBEDDING]) == 32
    assert report(folder / "out")["parameters"] == {"mode": "sum"}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--method", "omq"), "unknown transplant method 'omq'; did you mean 'omp'"),
        (("--method", "mean", "--k", "3"), "mean has no parameter 'k'"),
        (("--method", "omp", "--set", "k=-1"), "greater than 0, got -1"),
        (("--method", "omp", "--set", "k"), "no value"),
        (("--method", "wechsel"), "wechsel needs `"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(folder, capsys, more, what):
    said = command(capsys, "transplant", "model", "--tokenizer", "other", "--out", "out", *more)
    assert said.status == 2
    assert what in said.err
    assert_clean(said.err)
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
def test_an_output_that_exists_is_kept_unless_told_otherwise(capsys):
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "zero")
    assert command(capsys, "transplant", "model", *words_).status == 0
    refused = command(capsys, "transplant", "model", *words_)
    assert refused.status == 2
    assert "exists" in refused.err
    assert command(capsys, "transplant", "model", *words_, "--overwrite").status == 0


def test_the_folder_of_the_tokenizer_is_not_written_into(folder, capsys):
    words(folder / "alone", LETTERS)
    words_ = ("--tokenizer", "alone", "--out", "alone", "--method", "zero", "--overwrite")
    said = command(capsys, "transplant", "model", *words_)
    assert said.status == 2
    assert "share a folder" in said.err
    assert sorted(path.name for path in (folder / "alone").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_seeds_draw_other_rows_and_the_same_seed_the_same(folder, capsys):
    found = []
    for seed in (1, 1, 2):
        words_ = ("--tokenizer", "other", "--out", "out", "--method", "mvn", "--seed", seed)
        assert command(capsys, "transplant", "model", *words_, "--overwrite").status == 0
        found.append(tensors(folder / "out")[EMBEDDING])
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_methods_are_listed_and_each_has_a_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listed = command(capsys, "methods", "--transplant")
    for name in ("omp", "subword", "nearest", "mvn"):
        assert name in listed.out
        page = command(capsys, "methods", "--transplant", name)
        assert page.status == 0
        assert name in page.out
    assert command(capsys, "methods", "--transplant", "subwrd").status == 2


@pytest.mark.parametrize(
    "name",
    ["bert", "llama2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("t5", "gpt2"))],
)
def test_a_real_tokenizer_of_any_kind_can_be_given(tmp_path, capsys, name):
    words_ = ("--tokenizer", tokenizer(name), "--out", tmp_path / "out", "--method", "subword")
    said = command(capsys, "transplant", QUICKSTART, *words_)
    assert said.status == 0, said.err
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = made("In the beginning", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert model(input_ids=ids).logits.isfinite().all()
    (table,) = report(tmp_path / "out")["tables"]
    assert table["rows"]["exact"] > 200


def test_numbers_cut_otherwise_are_warned_of_and_refused_if_asked(tmp_path, capsys):
    words_ = ("--tokenizer", tokenizer("bert"), "--out", tmp_path / "out", "--method", "zero")
    said = command(capsys, "transplant", QUICKSTART, *words_, "--dry-run")
    assert "NUMERAL_MISMATCH" in said.err
    refused = command(capsys, "transplant", QUICKSTART, *words_, "--strict")
    assert refused.status == 2
    assert "NUMERAL_MISMATCH" in refused.err


def written(folder: Path, name: str, *lines: str) -> Path:
    """A text file of these lines: JSON Lines, or plain."""
    path = folder / name
    plain = path.suffix == ".txt"
    text = "\n".join(line if plain else json.dumps({"text": line}) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def chosen(folder: Path, table: int = 0) -> tuple[str, dict[str, float]]:
    """What `auto` took, and the bits per byte of each candidate."""
    notes = report(folder)["tables"][table]["notes"]
    told = [one.removeprefix("auto: ").removesuffix(" bits per byte") for one in notes]
    bits = dict(one.rsplit(": ", 1) for one in told[1:-1] if ": " in one)
    return told[-1], {name: float(value) for name, value in bits.items()}


def test_a_text_chooses_by_the_bits_that_the_model_then_needs(tmp_path, capsys):
    (tmp_path / "en").mkdir()
    glass("en", tmp_path / "en")
    stored = (HELDOUT / "english.jsonl").read_text("utf-8").splitlines()
    lines = [json.loads(line)["text"] for line in stored[:2]]
    text = written(tmp_path, "some.jsonl", *lines)
    words_ = ("--tokenizer", tmp_path / "en", "--out", tmp_path / "out", "--text", text)
    said = command(capsys, "transplant", QUICKSTART, *words_)
    assert said.status == 0, said.err
    name, bits = chosen(tmp_path / "out")
    assert len(bits) == 9
    assert bits[name] == min(bits.values())
    scores = command(
        capsys, "eval", tmp_path / "out", "--use", f"bits_per_byte:data={text}", "--json"
    )
    (scored,) = (
        one["value"]
        for one in json.loads(scores.out)["results"]
        if one["metric"] == "bits_per_byte"
    )
    # The evaluator also asks for the first token of each text.
    assert scored == pytest.approx(bits[name], abs=0.02)


def test_each_table_of_an_untied_model_is_chosen_by_a_text(folder, capsys):
    write_model(folder / "other", ("ho", "▁sings", *LETTERS), seed=1)
    text = written(folder, "some.txt", "the cat sings ho ho the dog sings")
    words_ = ("--tokenizer", "other", "--out", "out", "--set", f"text={text}")
    said = command(capsys, "transplant", "model", *words_)
    assert said.status == 0, said.err
    for table in (0, 1):
        name, bits = chosen(folder / "out", table)
        assert bits[name] == min(bits.values())
    assert "auto: 33 bytes of text, 2 of the missing tokens in it" in said.err


def test_a_report_says_how_both_tokenizers_fit_the_text(folder, capsys):
    write_model(folder / "other", ("ho", *LETTERS), seed=1)
    text = written(folder, "some.jsonl", "ho ho ho")
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "mean", "--text", text)
    assert command(capsys, "transplant", "model", *words_).status == 0
    (one,) = report(folder / "out")["quality"]["texts"].values()
    assert one["model"]["fertility"] > one["tokenizer"]["fertility"]
    assert one["premium"] == one["tokenizer"]["tokens"] / one["model"]["tokens"]


def test_a_report_says_what_languages_cost_in_either_tokenizer(folder, capsys):
    write_model(folder / "other", ("ho", *LETTERS), seed=1)
    written(folder, "one.txt", "hoho", "ho")
    written(folder, "two.txt", "catcat", "dog")
    words_ = ("transplant", "model", "--tokenizer", "other", "--out", "out", "--method", "mean")
    said = command(capsys, *words_, "--set", "translations={one: one.txt, two: two.txt}")
    assert said.status == 0, said.err
    quality = report(folder / "out")["quality"]
    for side, (whole, _) in ((side, quality["parity"][side]["two"]) for side in quality["parity"]):
        tokens = [quality["texts"][language][side]["tokens"] for language in ("two", "one")]
        assert whole == tokens[0] / tokens[1]
    assert "tokens of two for one of one: " in said.out


def test_translations_that_are_no_translations_are_refused(folder, capsys):
    written(folder, "one.txt", "ho ho", "ho")
    written(folder, "two.txt", "cat cat")
    words_ = ("transplant", "model", "--tokenizer", "other", "--out", "out")
    for given, what in (
        ("{one: one.txt, two: two.txt}", "the files differ in lines: one has 2, two has 1"),
        ("{one: one.txt}", "needs two files or more"),
        ("{one: one.txt, two: none.txt}", "none.txt: there is no such file"),
    ):
        said = command(capsys, *words_, "--set", f"translations={given}")
        assert (said.status, what in said.err) == (2, True), said.err


def test_spelling_keeps_more_of_a_model_than_the_mean_row(tmp_path, capsys):
    (tmp_path / "en").mkdir()
    glass("en", tmp_path / "en")
    bits = {}
    for method in ("subword", "mean"):
        text = HELDOUT / "english.jsonl"
        words_ = ("--tokenizer", tmp_path / "en", "--out", tmp_path / method, "--method", method)
        said = command(capsys, "transplant", QUICKSTART, *words_, "--text", text, "--json")
        assert said.status == 0, said.err
        scores = json.loads(said.out)
        bits[method] = next(
            one["value"]
            for one in scores["results"]
            if (one["model"], one["metric"]) == ("transplant", "bits_per_byte")
        )
    assert bits["subword"] < bits["mean"] < 3


def test_a_long_limit_of_the_tokenizer_is_cut_to_the_models(folder, capsys):
    edit_json(folder / "other" / "tokenizer_config.json", model_max_length=10**30)
    edit_json(folder / "model" / "config.json", max_position_embeddings=77)
    words_ = ("--tokenizer", "other", "--out", "out", "--method", "zero")
    assert command(capsys, "transplant", "model", *words_).status == 0
    settings = json.loads((folder / "out" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
