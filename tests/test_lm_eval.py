"""Tasks of lm-evaluation-harness: the same numbers by its own model class and by ours."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from api_server import scoring
from command_line import command
from test_evaluators import context, faults, write
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.evaluate import Split, find_evaluator, harness
from mergepipe.model import Generation
from mergepipe.model.load import local_model

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
HEAD = """\
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1.0}}
"""
CHOICES = """\
task: sums
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """\
task: english
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """\
task: written
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 8}
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match}]
"""


def read(name, count):
    lines = (QUICKSTART / "heldout" / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def choices_of(record, draw):
    right = record["answer"].strip()
    choices = [str(int(right) + step) for step in (1, -1, 10)] + [right]
    draw.shuffle(choices)
    return {"q": record["prompt"], "choices": choices, "answer": choices.index(right)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three task files with their data, and a model whose tokenizer itself puts a BOS first."""
    folder = tmp_path_factory.mktemp("harness")
    draw = random.Random(0)
    sums = read("arithmetic", 24)
    write(folder / "sums.jsonl", [choices_of(one, draw) for one in sums])
    write(folder / "english.jsonl", read("english", 5))
    write(folder / "written.jsonl", sums)
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in {"sums": CHOICES, "english": TEXTS, "written": WRITTEN}.items():
        (tasks / f"{name}.yaml").write_text(text + HEAD.format(data=f"{name}.jsonl"))
    shutil.copytree(QUICKSTART / "base", folder / "base")
    tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return local_model(folder / "base", "base")


def harness_class(model, folder, *, adds_bos):
    """The harness's own class over the same module."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer("1")["input_ids"][0] == tokenizer.bos_token_id) == adds_bos
    return HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=8, device="cpu")


def by_harness_class(theirs, folder, names):
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = TaskManager(include_path="tasks", include_defaults=False).load(names)
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        found = evaluate(lm=theirs, task_dict=loaded, bootstrap_iters=0)["results"]
    return {
        f"{task}/{name}": value
        for task, one in found.items()
        for name, value in one.items()
        if isinstance(value, float) and "stderr" not in name
    }


def ask(model, folder, *tasks, **parameters):
    given = {"tasks": list(tasks), "include": "tasks", **parameters}
    return find_evaluator("lm_eval").evaluate(model, context("lm_eval", folder, **given))


def test_every_metric_is_that_of_the_harnesss_own_class(model, folder):
    # Its class puts no BOS before a prompt unless the tokenizer does; before a whole text it puts
    # one itself, so that there a tokenizer that does makes two.
    with_bos = harness_class(model, folder / "base", adds_bos=True)
    without = harness_class(model, QUICKSTART / "base", adds_bos=False)
    expected = by_harness_class(with_bos, folder, ["sums", "written"])
    expected |= by_harness_class(without, folder, ["english", "sums"]) | expected
    ours = ask(model, folder, "sums", "english", "written").metrics
    assert len(expected) == 6
    assert {name: metric.value for name, metric in ours.items()} == pytest.approx(
        expected, rel=1e-5
    )
    assert all(metric.formula is not None for metric in ours.values())
    assert [metric.n for metric in ours.values()] == [24, 24, 5, 5, 5, 24]
    assert not ours["english/bits_per_byte,none"].higher_is_better


def test_multiple_choice_scores_what_the_harness_scores(model, folder):
    from lm_eval.api.instance import Instance

    records = [json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()]
    pairs = [(one["q"], choice) for one in records for choice in one["choices"]]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    theirs = harness_class(model, folder / "base", adds_bos=True).loglikelihood(requests)
    ours = model.loglikelihood(pairs)
    assert [one.logprob for one in ours] == pytest.approx([one for one, _ in theirs], abs=1e-4)
    assert [one.greedy for one in ours] == [greedy for _, greedy in theirs]


def test_our_evaluators_give_what_the_tasks_give(model, folder):
    questions = [json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()]
    write(folder / "mc.jsonl", [{"question": one.pop("q"), **one} for one in questions])
    ours = {}
    for use, given in {
        "multiple_choice": {"data": "mc.jsonl", "delimiter": ""},
        "bits_per_byte": {"data": "english.jsonl"},
        "exact_match": {"data": "written.jsonl", "max_tokens": 8, "extract": "(-?[0-9]+)"},
    }.items():
        found = find_evaluator(use).evaluate(model, context(use, folder, **given))
        ours |= {name: metric.value for name, metric in found.metrics.items()}
    theirs = ask(model, folder, "sums", "english", "written").metrics
    pairs = {
        "acc": "sums/acc,none",
        "acc_norm": "sums/acc_norm,none",
        "bits_per_byte": "english/bits_per_byte,none",
        "word_perplexity": "english/word_perplexity,none",
        "exact_match": "written/exact_match,number",
    }
    for one, other in pairs.items():
        assert ours[one] == pytest.approx(theirs[other].value, rel=1e-6), one


def test_one_task_keeps_the_harnesss_names_and_its_documents(model, folder):
    found = ask(model, folder, "sums")
    assert list(found.metrics) == ["acc,none", "acc_norm,none"]
    assert [item.id for item in found.items] == [str(n) for n in range(24)]
    right = [item.values["acc,none"] for item in found.items]
    assert found.metrics["acc,none"].value == sum(right) / 24
    assert found.metrics["acc,none"].stderr == pytest.approx(
        math.sqrt(sum((one - sum(right) / 24) ** 2 for one in right) / 23 / 24)
    )


def test_limit_and_split_choose_documents_of_each_task(model, folder):
    given = {"tasks": ["sums", "english"], "include": "tasks"}
    asked = replace(context("lm_eval", folder, **given), limit=2)
    found = find_evaluator("lm_eval").evaluate(model, asked)
    assert [item.id for item in found.items] == ["sums/0", "sums/1", "english/0", "english/1"]
    single = context("lm_eval", folder, tasks=["sums"], include="tasks")
    parts = [
        {
            item.id
            for item in find_evaluator("lm_eval")
            .evaluate(model, replace(single, split=Split(4, 6), part=part))
            .items
        }
        for part in ("search", "holdout", "final")
    ]
    assert [len(part) for part in parts] == [4, 6, 14]
    assert len(set.union(*parts)) == 24


def test_examples_come_before_the_question(model, folder):
    text = (folder / "tasks" / "sums.yaml").read_text().replace("task: sums", "task: shots")
    (folder / "shots.yaml").write_text(text + "fewshot_split: test\n")
    seen = Listening(model)
    ask(seen, folder, "shots.yaml", num_fewshot=2)
    assert all(prompt.count("=") == 3 for prompt, _ in seen.asked)


@dataclass
class Listening:
    """A model that keeps what it was asked."""

    model: object
    asked: list = field(default_factory=list)

    def loglikelihood(self, requests):
        self.asked += requests
        return self.model.loglikelihood(requests)

    def generate(self, prompts, **settings):
        self.asked += [(prompt, settings) for prompt in prompts]
        return [Generation("2", 1) for _ in prompts]


def test_conversations_reach_the_model_as_turns(folder):
    seen = Listening(None)
    ask(seen, folder, "written", chat=True)
    prompt, settings = seen.asked[0]
    assert prompt == [{"role": "user", "content": "6+5="}]
    assert settings["stop"] == ("\n",)
    assert settings["max_tokens"] == 8
    with pytest.raises(InputError, match="can only be answered"):
        ask(seen, folder, "sums", chat=True)


def test_draws_of_one_prompt_have_seeds_of_their_own(folder):
    text = (folder / "tasks" / "written.yaml").read_text().replace("task: written", "task: drawn")
    text = text.replace("do_sample: false", "do_sample: true, temperature: 0.7")
    (folder / "drawn.yaml").write_text(text + "repeats: 3\n")
    seen = Listening(None)
    ask(seen, folder, "drawn.yaml")
    seeds = [settings["seed"] for prompt, settings in seen.asked if prompt == "6+5="]
    assert sorted(seeds) == [0, 1, 2]
    assert {settings["temperature"] for _, settings in seen.asked} == {0.7}
    (folder / "top.yaml").write_text(
        text.replace("temperature: 0.7", "temperature: 0.7, top_p: 0.9")
    )
    with pytest.raises(InputError, match="top_p cannot be asked of a model here"):
        ask(seen, folder, "top.yaml")


def test_a_server_gives_what_the_model_behind_it_gives(model, folder, monkeypatch):
    from mergepipe.model.api import api_model

    with scoring(model.module, model.tokenizer, bos="<bos>") as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        served = api_model(script.url, "tiny", key_env=None)
        asked = replace(context("lm_eval", folder, tasks=["sums"], include="tasks"), limit=6)
        theirs = find_evaluator("lm_eval").evaluate(served, asked)
    ours = find_evaluator("lm_eval").evaluate(model, asked)
    assert [one.values for one in theirs.items] == [one.values for one in ours.items]


# What goes wrong, in words


def test_a_task_that_needs_the_hub_says_so_and_asks_nobody(model, folder):
    text = (folder / "tasks" / "sums.yaml").read_text().replace("task: sums", "task: far")
    lines = [line for line in text.splitlines() if not line.startswith("dataset")]
    far = "\n".join([*lines, "dataset_path: allenai/far_away", ""])
    (folder / "far.yaml").write_text(far)
    with pytest.raises(
        InputError, match=r"lm_eval task far\.yaml: .*`download: true` fetches them"
    ):
        ask(model, folder, "far.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("q}}", "q.missing.deep}}"), "lm_eval task broken.yaml|lm_eval task sums"),
        (("sums.jsonl", "none.jsonl"), "none.jsonl"),
        (("multiple_choice", "multiple_choices"), "multiple_choices|Invalid output type"),
    ],
)
def test_a_broken_task_is_an_error_in_words(model, folder, change, said):
    text = (folder / "tasks" / "sums.yaml").read_text()
    assert change[0] in text
    (folder / "broken.yaml").write_text(text.replace(*change))
    with pytest.raises(InputError, match=said):
        ask(model, folder, "broken.yaml")


def test_without_the_package_its_extra_is_named(model, folder, monkeypatch):
    def absent(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(harness, "import_module", absent)
    with pytest.raises(EnvironmentFault, match=r"pip install 'mergepipe\[eval\]'"):
        ask(model, folder, "sums")


def test_parameters_are_checked_and_permission_is_asked_for(folder, capsys):
    assert "there is no folder" in faults("lm_eval", folder, tasks=["a"], include="nowhere")
    assert "at least 1 item" in faults("lm_eval", folder, tasks=[])
    use = f"lm_eval:tasks=[sums],include={folder / 'tasks'}"
    said = command(capsys, "eval", folder / "base", "--use", use)
    assert said.status == 2
    assert "--allow-commands" in said.err


def test_the_harness_is_quiet_and_leaves_settings_and_draws_alone(model, folder, capfd):
    import datasets
    import huggingface_hub.constants as hub

    before = random.getstate(), hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, Path.cwd()
    ask(model, folder, "sums")
    after = random.getstate(), hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, Path.cwd()
    assert before == after
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.slow
def test_a_task_that_is_not_there_is_looked_for_among_those_built_in(model, folder):
    with pytest.raises(InputError, match="no task is named 'arc_esay'; did you mean 'arc_easy'"):
        ask(model, folder, "arc_esay")
