"""The shipped evaluators, each against hand-worked values and a real model or program."""

from __future__ import annotations

import doctest
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mergepipe.errors import InputError, Problems
from mergepipe.evaluate import Context, find_evaluator, parse_evaluation
from mergepipe.model import Generation, Score

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def context(use, folder, **parameters):
    """The context of an evaluation whose paths are relative to `folder`."""
    checked = find_evaluator(use).parameters.model_validate(
        parameters, context={"base_dir": folder}
    )
    return Context(checked, folder=folder)


def faults(use, folder, **parameters):
    problems = Problems()
    parse_evaluation(use, parameters, name=use, base_dir=folder, where="here", problems=problems)
    return " ".join(f"{one.where} {one.what}" for one in problems.found)


def module(name):
    """The file of a shipped evaluator."""
    find_evaluator(name)
    return sys.modules[f"mergepipe._evaluators.{name}"]


@dataclass
class Scripted:
    """A model whose answers are written down: what evaluators make of them is looked at."""

    logprobs: dict = field(default_factory=dict)
    texts: dict = field(default_factory=dict)
    logits: dict = field(default_factory=dict)
    classes: tuple = ()
    asked: list = field(default_factory=list)

    def loglikelihood(self, requests):
        self.asked += requests
        return [Score(self.logprobs[one], 1, 1, greedy=False) for one in requests]

    def generate(self, prompts, *, seed=0, **_):
        return [Generation(self.texts[prompt, seed], 1) for prompt in prompts]

    def classify(self, texts):
        return [self.logits[text] for text in texts]


def test_multiple_choice_by_hand(tmp_path):
    write(
        tmp_path / "q.jsonl",
        [
            {"question": "Q1", "choices": ["a", "bbbb"], "answer": 1},
            {"question": "Q2", "choices": ["x", "y", "é"], "answer": ["x", "é"]},
        ],
    )
    model = Scripted(
        {
            ("Q1", " a"): -1.0, ("Q1", " bbbb"): -2.0,
            ("", " a"): -0.5, ("", " bbbb"): -6.0,
            ("Q2", " x"): -3.0, ("Q2", " y"): -3.0, ("Q2", " é"): -5.0,
            ("", " x"): -1.0, ("", " y"): -9.0, ("", " é"): -1.0,
        }
    )  # fmt: skip
    asked = context("multiple_choice", tmp_path, data="q.jsonl", mutual_info=True)
    result = find_evaluator("multiple_choice").evaluate(model, asked)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert next(iter(values)) == "acc"
    assert values["acc"] == 0.5  # a; x, the first of equals
    assert values["acc_norm"] == 1.0  # -1 against -2/4; -3 against -5
    assert values["acc_bytes"] == 1.0  # é has two bytes: -2.5 is more than -3
    assert values["acc_mutual_info"] == 0.5  # -0.5 against 4; y gains most
    p = math.exp(-2) / (math.exp(-1) + math.exp(-2))
    weights = [math.exp(-3), math.exp(-3), math.exp(-5)]
    q = (weights[0] + weights[2]) / sum(weights)
    assert values["gold_probability"] == pytest.approx((p + q) / 2)
    first = result.items[0].values
    assert first["brier"] == pytest.approx((1 - p) ** 2 * 2)
    assert not result.metrics["brier"].higher_is_better


def test_shots_stand_before_every_question(tmp_path):
    write(tmp_path / "q.jsonl", [{"question": "Q?", "choices": ["a", "b"], "answer": "b"}])
    write(tmp_path / "ex.jsonl", [{"question": "E?", "choices": ["c", "d"], "answer": 0}] * 2)
    led = "E? c\n\nQ?"
    model = Scripted({(led, " a"): -2.0, (led, " b"): -1.0})
    asked = context("multiple_choice", tmp_path, data="q.jsonl", examples="ex.jsonl", shots=1)
    assert find_evaluator("multiple_choice").evaluate(model, asked).metrics["acc"].value == 1
    assert "has fewer than 3 examples" in faults(
        "multiple_choice", tmp_path, data="q.jsonl", examples="ex.jsonl", shots=3
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "Q", "choices": ["a"], "answer": 0}, "q.jsonl:1 `choices` must be two"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 2}, "its number from 0 to 1"),
        ({"question": "Q", "choices": ["a", "b"], "answer": True}, "its number from 0 to 1"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "c"}, "its number from 0 to 1"),
        ({"question": "Q", "choices": ["a", "b"], "answer": []}, "its number from 0 to 1"),
        ({"question": "Q", "choices": "ab", "answer": 0}, "'choices' must be a list"),
    ],
)
def test_questions_that_cannot_be_judged_are_refused_by_line(tmp_path, record, said):
    write(tmp_path / "q.jsonl", [record])
    assert said in faults("multiple_choice", tmp_path, data="q.jsonl")


TASK = {
    "prompt": "def double(x):\n",
    "test": "def check(f):\n    assert f(2) == 4\n    assert f(-1) == -2\n",
    "entry_point": "double",
}


def test_code_counts_the_programs_that_pass(tmp_path):
    write(tmp_path / "t.jsonl", [TASK, {**TASK, "prompt": "# two\ndef double(x):\n"}])
    one, two = TASK["prompt"], "# two\ndef double(x):\n"
    right, wrong = "    return 2 * x\n", "    return x + 2\n"
    ends = "    import sys; sys.exit(0)\n"
    texts = {(one, 0): right, (two, 0): wrong, (one, 1): wrong, (two, 1): ends}
    asked = context(
        "code", tmp_path, data="t.jsonl", k=[1, 2], samples=2, temperature=0.5, seconds=5
    )
    result = find_evaluator("code").evaluate(Scripted(texts=texts), asked)
    assert result.metrics["pass@1"].value == 0.25
    assert result.metrics["pass@2"].value == 0.5
    assert [item.values["pass@1"] for item in result.items] == [0.5, 0.0]


def test_code_tells_programs_that_do_not_end(tmp_path):
    write(tmp_path / "t.jsonl", [TASK])
    endless = {(TASK["prompt"], 0): "    while True: pass\n"}
    asked = context("code", tmp_path, data="t.jsonl", seconds=1)
    result = find_evaluator("code").evaluate(Scripted(texts=endless), asked)
    assert {name: metric.value for name, metric in result.metrics.items()} == {
        "pass@1": 0.0,
        "timeouts": 1.0,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": [1, 5]}, "pass@5 needs at least 5 `samples`"),
        ({"samples": 2}, "need a `temperature` above 0"),
        ({"isolation": "none"}, "must be 'full' or 'limits'"),
        ({"second": 1}, "did you mean 'seconds'"),
    ],
)
def test_code_refuses_parameters_that_make_no_sense(tmp_path, given, said):
    write(tmp_path / "t.jsonl", [TASK])
    assert said in faults("code", tmp_path, data="t.jsonl", **given)


def test_classification_by_hand(tmp_path):
    rows = [("t1", "cat"), ("t2", 1), ("t3", "dog")]
    write(tmp_path / "c.jsonl", [{"text": text, "label": label} for text, label in rows])
    model = Scripted(
        classes=("cat", "dog"), logits={"t1": (2.0, 0.0), "t2": (1.0, 0.0), "t3": (0.0, 3.0)}
    )
    asked = context("classification", tmp_path, data="c.jsonl")
    metrics = find_evaluator("classification").evaluate(model, asked).metrics
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    assert metrics["macro_f1"].value == pytest.approx(2 / 3)  # both classes: 2·1 / (2 + 1)
    nats = [math.log(1 + math.exp(-2)), math.log(1 + math.e), math.log(1 + math.exp(-3))]
    assert metrics["nats"].value == pytest.approx(sum(nats) / 3)


def test_a_label_that_the_model_does_not_know_is_refused_by_line(tmp_path):
    write(tmp_path / "c.jsonl", [{"text": "t", "label": "bird"}])
    asked = context("classification", tmp_path, data="c.jsonl")
    model = Scripted(classes=("cat", "dog"), logits={"t": (0.0, 1.0)})
    with pytest.raises(InputError, match=r"c.jsonl:1: the model has no class 'bird'"):
        find_evaluator("classification").evaluate(model, asked)


def test_speed_is_tokens_over_seconds_of_a_real_model(tmp_path):
    from mergepipe.model.load import local_model

    asked = context("speed", tmp_path, prompts=2, tokens=8, repeats=2)
    model = local_model(QUICKSTART / "base", "base")
    result = find_evaluator("speed").evaluate(model, asked)
    assert [item.values["tokens"] for item in result.items] == [16, 16]
    seconds = sum(item.values["seconds"] for item in result.items)
    assert result.metrics["generated"].value == pytest.approx(32 / seconds)
    assert result.metrics["read"].value > 0
    assert result.metrics["memory"].value > 10  # MB of this process, with torch in it


# exact_match: what is compared, how, and over how many samples


@pytest.mark.parametrize(
    ("how", "text", "part"),
    [
        ("gsm8k_strict", "So 5 + 3 = 8.\n#### 8\n#### 9", "8"),
        ("gsm8k_strict", "The answer is $1,200.50.", "$1,200.50"),
        ("gsm8k_strict", "It is 8.", None),
        ("gsm8k_strict", "####-7", "-7"),
        ("last_number", "3 apples and 4 pears make 7.", "7"),
        ("last_number", "10-3 = 7-0", "0"),
        ("last_number", "x = -3", "-3"),
        ("last_number", "none", None),
        ("last_line", "a\n b \n\n", "b"),
        ("last_line", " \n", None),
        ("choice_letter", "The answer is (B), not (C).", "B"),
        ("choice_letter", "A good answer: C", "C"),
        ("choice_letter", "(D) is best", "D"),
        ("choice_letter", "B. Because", "B"),
        ("choice_letter", "I would say C.", "C"),
        ("choice_letter", "A nice question", None),
        ("([0-9]+) apples", "3 apples, 4 apples", "4"),
    ],
)
def test_the_part_that_is_compared(how, text, part):
    assert module("exact_match").extracted(text, how) == part


@pytest.mark.parametrize(
    ("changes", "said", "answer", "right"),
    [
        ([], " 18 ", "18", True),
        ([], "18.0", "18", False),
        (["number"], "$1,800.0.", "1800", True),
        (["number"], "0.1", ".10", True),
        (["number"], "0.30000000000000000000000000001", "0.3", False),
        (["number"], "1e3", "1000", False),
        (["number"], "nan", "NaN", False),
        (["lower", "punctuation"], "The Cat!", "the cat", True),
        (["strip"], " x ", "x", True),
    ],
)
def test_answers_are_compared_as_they_are_normalised(tmp_path, changes, said, answer, right):
    write(tmp_path / "p.jsonl", [{"prompt": "Q", "answer": [answer, "another"]}])
    asked = context("exact_match", tmp_path, data="p.jsonl", normalize=changes)
    result = find_evaluator("exact_match").evaluate(Scripted(texts={("Q", 0): said}), asked)
    assert result.metrics["exact_match"].value == right
    assert list(result.metrics) == ["exact_match"]


def test_several_samples_give_their_mean_and_the_majoritys_answer(tmp_path):
    write(tmp_path / "p.jsonl", [{"prompt": "Q", "answer": "8"}, {"prompt": "R", "answer": "1"}])
    says = {"Q": ["#### 8", "#### 8.0", "#### 7", "none"], "R": ["none", "#### 2", "none", "none"]}
    texts = {(name, seed): text for name, said in says.items() for seed, text in enumerate(said)}
    asked = context(
        "exact_match",
        tmp_path,
        data="p.jsonl",
        extract="gsm8k_strict",
        normalize=["number"],
        samples=4,
        temperature=0.7,
    )
    result = find_evaluator("exact_match").evaluate(Scripted(texts=texts), asked)
    assert [dict(item.values) for item in result.items] == [
        {"exact_match": 0.5, "maj@4": 1.0, "unextracted": 0.25},
        {"exact_match": 0.0, "maj@4": 0.0, "unextracted": 0.75},
    ]
    assert not result.metrics["unextracted"].higher_is_better


def test_conversations_are_asked_as_they_are(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    write(tmp_path / "p.jsonl", [{"messages": messages, "answer": "2"}])
    asked = []

    class Chat:
        def generate(self, prompts, **_):
            asked.extend(prompts)
            return [Generation("2", 1) for _ in prompts]

    given = context("exact_match", tmp_path, data="p.jsonl", chat=True)
    assert find_evaluator("exact_match").evaluate(Chat(), given).metrics["exact_match"].value == 1
    assert asked == [messages]


@pytest.mark.parametrize(
    ("record", "given", "said"),
    [
        ({"messages": [], "answer": "a"}, {}, "give `chat: true`"),
        ({"messages": [], "answer": "a"}, {"chat": True}, "`messages` must be a list"),
        (
            {"messages": [{"role": "boss", "content": ""}], "answer": "a"},
            {"chat": True},
            "roles: s",
        ),
        ({"promt": "p", "answer": "a"}, {}, "did you mean 'promt'"),
        ({"prompt": 3, "answer": "a"}, {}, "p.jsonl:1 field 'prompt' must be text, got 3"),
        ({"prompt": "p", "answer": 3}, {}, "p.jsonl:1 field 'answer' must be text, or a list"),
        ({"prompt": "p", "answer": []}, {}, "field 'answer' must be text, or a list"),
        ({"prompt": "p", "answer": "a"}, {"extract": "("}, "or one of gsm8k_strict, last_number"),
        ({"prompt": "p", "answer": "a"}, {"samples": 3}, "need a `temperature` above 0"),
        ({"prompt": "p", "answer": "a"}, {"normalize": ["upper"]}, "normalize.0: must be"),
    ],
)
def test_problems_that_cannot_be_judged_are_refused(tmp_path, record, given, said):
    write(tmp_path / "p.jsonl", [record])
    assert said in faults("exact_match", tmp_path, data="p.jsonl", **given)


@pytest.mark.parametrize("name", ["exact_match", "classification", "code"])
def test_the_examples_in_docstrings_hold(name):
    found = doctest.testmod(module(name))
    assert found.attempted
    assert not found.failed
