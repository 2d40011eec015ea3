"""Evaluators: found, given checked parameters, held against hand-worked values, and tabulated."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from mergepipe.errors import InputError, Problems
from mergepipe.evaluate import (
    ScoreRow,
    evaluator_names,
    find_evaluator,
    markdown,
    parse_evaluation,
    read_jsonl,
    results_jsonl,
    score,
    table,
)
from mergepipe.model import Generation, Usage
from mergepipe.model.load import local_model

TEXTS = ["the quick brown fox", "", "größer als 🦊" * 5, "x"]
VOCABULARY = 258  # 256 bytes, BOS and EOS


def make_model(folder, head):
    """Save a model whose tokens are the bytes; `head` scales what it says about the next one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bytes_ = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(bytes_, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    module = LlamaForCausalLM(config)
    module.lm_head.weight.data *= head
    module.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return local_model(folder, folder.name)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("random"), head=20.0)


@pytest.fixture(scope="session")
def uniform(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("uniform"), head=0.0)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    write(tmp_path / "sums.jsonl", [{"prompt": "1+1=", "answer": "2"}] * 3)
    return tmp_path


def parse(folder, use, **parameters):
    problems = Problems()
    found = parse_evaluation(
        use, parameters, name=use, base_dir=folder, where="recipe.yaml:9", problems=problems
    )
    return found, [str(problem) for problem in problems.found]


def run(model, folder, use, **parameters):
    evaluation, problems = parse(folder, use, **parameters)
    assert problems == []
    scores = score([model], [evaluation])
    assert scores.failures == ()
    return scores.rows[0]


# Finding an evaluator


def test_every_shipped_evaluator_is_found_and_says_what_it_measures():
    assert {"bits_per_byte", "exact_match"} <= set(evaluator_names())
    for name in evaluator_names():
        evaluator = find_evaluator(name)
        assert evaluator.name == name
        assert evaluator.summary.endswith(".")


def test_an_unknown_evaluator_names_the_near_one():
    with pytest.raises(InputError, match=r"'bits_per_bite'; did you mean 'bits_per_byte'\?"):
        find_evaluator("bits_per_bite")


PLUGIN = '''"""Counts."""
from pydantic import BaseModel
from mergepipe.evaluate import Metric, Result
class Parameters(BaseModel, frozen=True, extra="forbid", strict=True): ...
def evaluate(model, context): return Result({"count": Metric(7, True, 1, "things")}, ())
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install modules as evaluators of another package, by its entry points."""

    def install(**sources):
        points = [f"{name} = {name}_plugin" for name in sources]
        info = tmp_path / "site" / "some_plugins-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugins\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[mergepipe.evaluators]\n" + "\n".join(points))
        for name, source in sources.items():
            (info.parent / f"{name}_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(info.parent)

    find_evaluator.cache_clear()
    yield install
    find_evaluator.cache_clear()


def test_an_installed_evaluator_is_found_by_its_entry_point(install, uniform, tmp_path):
    install(count=PLUGIN)
    assert "count" in evaluator_names()
    assert run(uniform, tmp_path, "count").value == 7


@pytest.mark.parametrize("missing", ['"""Counts."""', "class Parameters", "def evaluate"])
def test_what_is_not_an_evaluator_is_refused(install, missing):
    install(broken="\n".join(line for line in PLUGIN.splitlines() if missing not in line))
    with pytest.raises(InputError, match="evaluator 'broken': needs a"):
        find_evaluator("broken")


def test_an_entry_point_that_cannot_be_imported_is_named(install):
    install(absent="import no_such_module")
    with pytest.raises(InputError, match="evaluator 'absent': cannot load: No module named"):
        find_evaluator("absent")


# Parameters


def test_paths_are_relative_to_the_recipe(data):
    evaluation, problems = parse(data, "bits_per_byte", data="./texts.jsonl")
    assert problems == []
    assert evaluation.parameters.data == data / "texts.jsonl"


BITS, EXACT = "bits_per_byte", "exact_match"
FAULTS = [
    (BITS, {"feild": "a"}, "unknown parameter 'feild'; did you mean 'field'?"),
    (BITS, {}, "parameter 'data' is missing"),
    (BITS, {"data": "no.jsonl"}, "data: there is no file"),
    (BITS, {"data": 3}, "data: "),
    (BITS, {"data": "texts.jsonl", "field": 5}, "field: must be a valid string, got 5"),
    (EXACT, {"data": "sums.jsonl", "max_tokens": 0}, "max_tokens: must be greater than 0, got 0"),
    (EXACT, {"data": "sums.jsonl", "extract": "("}, "extract: must be a valid regular expression"),
    (EXACT, {"data": "sums.jsonl", "stop": [""]}, "stop.0: "),
    (EXACT, {"data": "sums.jsonl", "stop": [1]}, "stop.0: must be a valid string, got 1"),
    (EXACT, {"data": "sums.jsonl", "max_tokens": True}, "max_tokens: "),
]


@pytest.mark.parametrize(("use", "parameters", "message"), FAULTS)
def test_a_wrong_parameter_is_a_problem_at_the_recipes_line(data, use, parameters, message):
    evaluation, problems = parse(data, use, **parameters)
    assert evaluation is None
    assert any(problem.startswith(f"recipe.yaml:9: {use}: {message}") for problem in problems)


def test_all_faults_of_an_entry_are_told_at_once(data):
    _, problems = parse(data, "bits_per_byte", dta="texts.jsonl", field=1)
    assert len(problems) == 3


def test_an_unknown_evaluator_is_a_problem_at_the_recipes_line(data):
    _, problems = parse(data, "exact_mach", data="sums.jsonl")
    assert problems == [
        "recipe.yaml:9: unknown evaluator 'exact_mach'; did you mean 'exact_match'?"
    ]


# Data files

GOOD = b'{"text": "ok"}\n'
LINES = [
    (b"{text: 1}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    (b'{"text": "cut', "not JSON: "),
    (b'{"txt": "a"}', "no field 'text'; did you mean 'txt'?"),
    (b'{"text": 5}', "field 'text' must be text, got 5"),
    (b'{"text": null}', "field 'text' must be text, got null"),
    (b'["text"]', 'not a JSON object, as in {"text": ...}'),
    (b'{"text": "\xff"}', "not UTF-8: invalid start byte"),
    (b'{"text": "\\ud800"}', "not UTF-8: surrogates not allowed"),
    (b'{"text": ' + b"[" * 100_000, "not usable: nested too deeply"),
    (b'{"text": ' + b"9" * 5000 + b"}", "not usable: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=[message[:24] for _, message in LINES])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(InputError) as caught:
        read_jsonl(file, {"text": str})
    assert str(caught.value).startswith(f"{file}:3: {message}")


def test_a_bad_line_is_known_before_a_model_is_loaded(data):
    (data / "texts.jsonl").write_bytes(GOOD + b"nonsense\n")
    evaluation, problems = parse(data, "bits_per_byte", data="texts.jsonl")
    assert evaluation is None
    assert problems[0].startswith(f"{data / 'texts.jsonl'}:2: not JSON")


def test_many_bad_lines_do_not_fill_the_screen(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b"?\n" * 1000)
    with pytest.raises(InputError) as caught:
        read_jsonl(tmp_path / "bad.jsonl", {})
    assert len(caught.value.problems) == 10


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"empty\.jsonl: empty"):
        read_jsonl(tmp_path / "empty.jsonl", {})


def test_texts_that_are_all_empty_are_refused(data):
    write(data / "texts.jsonl", [{"text": ""}] * 3)
    _, problems = parse(data, "bits_per_byte", data="texts.jsonl")
    assert problems == ["recipe.yaml:9: bits_per_byte: every 'text' in its data is empty"]


def test_records_keep_their_line_numbers_and_the_limit_counts_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "2\\u2028"}\n{"a": "3"}'
    )
    assert read_jsonl(tmp_path / "a.jsonl", {"a": str}) == {
        1: {"a": "1"}, 3: {"a": "2\u2028"}, 4: {"a": "3"},
    }  # fmt: skip
    assert list(read_jsonl(tmp_path / "a.jsonl", {"a": str}, limit=2)) == [1, 3]


# Evaluators


def test_a_model_that_knows_nothing_needs_log2_of_its_vocabulary_per_byte(uniform, data):
    row = run(uniform, data, "bits_per_byte", data="texts.jsonl")
    assert row.value == pytest.approx(math.log2(VOCABULARY), rel=1e-6)
    assert (row.n, row.unit, row.higher_is_better) == (4, "bits/byte", False)


def test_bits_per_byte_are_transformers_loss_over_all_bytes(model, data):
    texts = ["a b c", "größer"]
    write(data / "short.jsonl", [{"body": text} for text in texts])
    row = run(model, data, "bits_per_byte", data="short.jsonl", field="body")
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[256, *model.tokenizer.encode(text).ids]])
        nats += model.module(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert row.value == pytest.approx(nats / math.log(2) / len("".join(texts).encode()), rel=1e-5)


def test_items_add_up_to_the_metric(model, data):
    row = run(model, data, "bits_per_byte", data="texts.jsonl")
    nats = sum(item.values["nats"] for item in row.items)
    size = sum(item.values["bytes"] for item in row.items)
    assert [item.id for item in row.items] == ["1", "2", "3", "4"]
    assert size == len("".join(TEXTS).encode())
    assert row.value == pytest.approx(nats / math.log(2) / size)


def test_a_prompt_is_right_if_the_model_writes_the_answer(model, data):
    [written] = model.generate(["1+1="], stop=["\n"], max_tokens=4)
    records = [{"prompt": "1+1=", "answer": answer} for answer in (f" {written.text} ", "no")]
    write(data / "sums.jsonl", records)
    row = run(model, data, "exact_match", data="sums.jsonl", max_tokens=4)
    assert (row.value, row.n, row.higher_is_better) == (0.5, 2, True)
    assert [item.values for item in row.items] == [{"exact_match": 1.0}, {"exact_match": 0.0}]


@dataclass(frozen=True)
class Parrot:
    """A model that always writes the same."""

    name: str
    says: str
    fingerprint: str = ""
    abilities: frozenset = frozenset({"generate"})
    usage: Usage = field(default_factory=Usage)

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, texts, *, stride=None):
        raise NotImplementedError

    def generate(self, prompts, *, stop, max_tokens, temperature=0.0, seed=0):  # noqa: ARG002
        return [Generation(self.says, 1) for _ in prompts]


EXTRACTS = [
    (None, "2", 1),
    (None, " 2 ", 1),
    (None, "2.", 0),
    ("[0-9]+", "1 and 1 are 2.", 1),
    ("[0-9]+", "2, or is it 3?", 0),
    ("is ([0-9]+)", "it is 2", 1),
    ("is ([0-9]+)?", "it is ", 0),
    ("[0-9]+", "two", 0),
]


@pytest.mark.parametrize(("extract", "says", "value"), EXTRACTS)
def test_the_last_match_is_compared(data, extract, says, value):
    row = run(Parrot("parrot", says), data, "exact_match", data="sums.jsonl", extract=extract)
    assert row.value == value


# Results

MODELS = ("base", "english", "german", "python", "arithmetic", "merged")
SKILLS = ("english", "german", "python", "latin")


def row(model, evaluation, value, *, up=False):
    name, unit = ("exact_match", "correct") if up else ("bits_per_byte", "bits/byte")
    return ScoreRow(model, evaluation, name, name, value, unit, up, 50, ())


def rows():
    return [
        row(model, evaluation, up=evaluation == "arithmetic", value=1 + (i * 7 + j * 3) % 11 / 10)
        for i, model in enumerate(MODELS)
        for j, evaluation in enumerate((*SKILLS, "arithmetic"))
    ]


def shown(rows, width=80, *, color=False):
    console = Console(file=StringIO(), width=width, force_terminal=color, no_color=not color)
    console.print(table(rows))
    return console.file.getvalue()


def test_a_table_of_six_models_and_five_scores_fits_80_columns():
    names, units, rule, *body = shown(rows()).splitlines()
    assert names.split() == [*SKILLS, "arithmetic", "average"]
    assert units.split() == ["model", *["bits/byte"] * 4, "correct", "bits/byte"]
    assert [line.split()[0] for line in body[: len(MODELS)]] == list(MODELS)
    assert set(rule.strip()) == {"─"}


def test_the_best_of_each_column_is_bold():
    made = [row("a", "x", 1.0), row("b", "x", 2.0), row("a", "y", 0.1, up=True),
            row("b", "y", 0.9, up=True)]  # fmt: skip
    assert markdown(made).splitlines() == [
        "| model | x (bits/byte) | y (correct) |",
        "| --- | ---: | ---: |",
        "| a | **1.000** | 0.100 |",
        "| b | 2.000 | **0.900** |",
        "",
        "Better: lower bits/byte, higher correct.",
    ]
    on_a_terminal = shown(made, color=True).splitlines()
    assert re.findall(r"\x1b\[1m *(\S+)\x1b", on_a_terminal[3]) == ["1.000"]
    assert re.findall(r"\x1b\[1m *(\S+)\x1b", on_a_terminal[4]) == ["0.900"]


def test_the_average_is_over_evaluations_that_share_a_metric():
    made = [row("a", "x", 1.0), row("a", "y", 2.0), row("a", "z", 0.5, up=True)]
    header, _, cells = markdown(made).splitlines()[:3]
    assert header.endswith("| z (correct) | average (bits/byte) |")
    assert cells.endswith("| 0.500 | 1.500 |")


@pytest.mark.parametrize("models", ["a", "abc"])
def test_where_all_are_equal_none_is_best(models):
    assert "**" not in markdown([row(model, "x", 1.0) for model in models])


def test_a_score_that_is_missing_or_not_a_number_is_never_best():
    made = [row("a", "x", math.nan), row("b", "x", 1.0), row("c", "x", 2.0), row("a", "y", 3.0)]
    _, _, a, b, c, *_ = markdown(made).splitlines()
    assert (a, b, c) == (
        "| a | nan | 3.000 | nan |", "| b | **1.000** | – | – |", "| c | 2.000 | – | – |",
    )  # fmt: skip


def test_names_cannot_style_or_break_the_table():
    hostile = "[red]a|b\x1b[31m"
    assert "[red]a|b\\x1b[31m" in shown([row(hostile, "x", 1.0)])
    assert "[red]a\\|b\\x1b[31m" in markdown([row(hostile, "x", 1.0)])


def test_results_are_one_json_object_a_row_with_every_item(uniform, model, data):
    evaluation, _ = parse(data, "bits_per_byte", data="texts.jsonl")
    lines = map(json.loads, results_jsonl(score([uniform, model], [evaluation]).rows).splitlines())
    first, second = (line for line in lines if line["metric"] == "bits_per_byte")
    assert (first["model"], second["model"]) == (uniform.name, model.name)
    assert first["value"] == pytest.approx(math.log2(VOCABULARY))
    nats = pytest.approx(math.log(VOCABULARY))
    assert first["items"]["4"] == {"nats": nats, "bytes": 1, "words": 1}


def test_a_score_that_is_not_a_number_is_null_in_json():
    assert json.loads(results_jsonl([row("a", "x", math.nan)]))["value"] is None


def test_models_are_asked_one_at_a_time(data):
    evaluation, _ = parse(data, "exact_match", data="sums.jsonl")
    alive = []

    def load():
        for name in ("a", "b"):
            alive.append(name)
            yield Parrot(name, "2")

    assert [r.model for r in score(load(), [evaluation]).rows] == alive == ["a", "b"]


def test_two_evaluations_or_models_of_one_name_are_refused(data):
    evaluation, _ = parse(data, "exact_match", data="sums.jsonl")
    with pytest.raises(InputError, match="two evaluations are named 'exact_match'"):
        score([Parrot("a", "2")], [evaluation, evaluation])
    with pytest.raises(InputError, match="two models are named 'a'"):
        score([Parrot("a", "2"), Parrot("a", "3")], [evaluation])


def evaluators_of_a_fresh_python(folder):
    """Find the shipped evaluators from `folder`, and say whether that loaded torch."""
    code = (
        "import sys, mergepipe.evaluate as e\n"
        "print([e.find_evaluator(name).name for name in e.evaluator_names()])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


REPOSITORY = Path(__file__).parent.parent


def test_evaluators_are_found_without_loading_torch():
    names, loaded = evaluators_of_a_fresh_python(REPOSITORY)
    assert "'bits_per_byte'" in names
    assert "'exact_match'" in names
    assert loaded == "[]"


def test_a_wheel_carries_its_evaluators_inside_the_package(tmp_path):
    skip = shutil.ignore_patterns("__pycache__", "_evaluators", "_recipes")
    shutil.copytree(REPOSITORY / "mergepipe", tmp_path / "mergepipe", ignore=skip)
    shutil.copytree(REPOSITORY / "evaluators", tmp_path / "mergepipe" / "_evaluators")
    assert evaluators_of_a_fresh_python(tmp_path) == evaluators_of_a_fresh_python(REPOSITORY)
