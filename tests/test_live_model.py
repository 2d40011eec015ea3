"""A merge in memory: it answers what the checkpoint answers that the same recipe writes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from askable import SENTENCES, askable
from checkpoints import edit_json, write_json, write_safetensors
from safetensors.torch import load_file

from mergepipe import write
from mergepipe.errors import InputError, NonFiniteError
from mergepipe.execute import Resources, run
from mergepipe.model.load import local_model
from mergepipe.pipeline import LiveModels, live_model, merge, merging, prepare
from mergepipe.pipeline.scoring import input_models

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
THREE = {label: str(QUICKSTART / label) for label in ("base", "german", "python")}
TASKS = {"method": "task_arithmetic", "base": "base", "models": ["german", "python"], "lambda": 0.4}
MERGES = {
    "linear": {
        "method": "linear",
        "models": {"german": {"weight": 0.3}, "python": {"weight": 0.7}},
    },
    "task_arithmetic": TASKS,
    "ties": {**TASKS, "method": "ties", "models": {"german": {"density": 0.3}, "python": {}}},
    "dare_ties": {**TASKS, "method": "dare_ties"},
    "slerp": {"method": "slerp", "base": "base", "models": ["german"], "t": 0.3},
    "then": {**TASKS, "then": ["lines"]},
    "copies": {"method": "passthrough", "models": ["python"]},
}


def prepared(folder, spec, *, models=THREE, out=None, **fields):
    body = {"stages": spec} if "method" not in spec else {"merge": spec}
    recipe = {"mergepipe": 1, "models": models, **body, **fields}
    write_json(folder / "recipe.yaml", recipe)
    return prepare(folder / "recipe.yaml", out=out, resources=Resources(threads=2))


def both(folder, spec, *, dtype="float32", **options):
    """The result of a recipe, in memory and written to a folder."""
    ready = prepared(folder, spec, **options)
    live = live_model(ready, ready.plans[-1], dtype=dtype)
    written = merge(prepared(folder, spec, out=folder / "merged", **options), sync=False)
    return live, local_model(written.folder, "written", dtype=dtype)


def assert_alike(live, written):
    """One state, one answer: bit for bit."""
    states = [dict(model.module.state_dict()) for model in (live, written)]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name]), name
    ids = torch.tensor([live.tokenizer.encode(SENTENCES[1], add_special_tokens=False).ids])
    with torch.no_grad():
        logits = [model.module(ids).logits for model in (live, written)]
    assert torch.equal(*logits)
    assert live.loaded.special == written.loaded.special
    assert live.loaded.template == written.loaded.template
    assert live.loaded.max_length == written.loaded.max_length
    assert live.loglikelihood_rolling(SENTENCES) == written.loglikelihood_rolling(SENTENCES)
    ask = {"stop": ["\n"], "max_tokens": 8, "temperature": 1.0}
    assert live.generate(["12+30="], **ask) == written.generate(["12+30="], **ask)


@pytest.mark.parametrize("method", MERGES)
def test_a_live_merge_is_the_checkpoint_that_would_be_written(method, tmp_path):
    assert_alike(*both(tmp_path, MERGES[method]))


DTYPES = [
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "bfloat16"),
    ("float32", "float16"),
]


@pytest.mark.parametrize(("stored", "asked"), DTYPES)
def test_it_is_so_whatever_is_stored_and_whatever_it_is_asked_in(stored, asked, tmp_path):
    live, written = both(tmp_path, TASKS, dtype=asked, output={"dtype": stored})
    assert live.module.dtype == getattr(torch, asked)
    assert_alike(live, written)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for kind in ("llama", "untied", "bert", "t5", "bert_classes"):
        for seed, label in enumerate(("base", "german", "python")):
            askable(kind, folder / kind / label, seed=seed, dtype="bfloat16")
    return folder


def of_kind(tiny, kind):
    return {label: str(tiny / kind / label) for label in THREE}


@pytest.mark.parametrize("kind", ["llama", "untied"])
def test_tied_and_untied_heads_are_those_of_the_checkpoint(kind, tiny, tmp_path):
    live, written = both(tmp_path, TASKS, models=of_kind(tiny, kind))
    assert_alike(live, written)
    tied = live.module.lm_head.weight is live.module.model.embed_tokens.weight
    assert tied == (kind == "llama")


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_other_kinds_of_models_live_too(kind, tiny, tmp_path):
    live, written = both(tmp_path, TASKS, models=of_kind(tiny, kind))
    assert live.abilities == written.abilities
    pairs = [(SENTENCES[0][:9], " word"), ("", SENTENCES[2])]
    assert live.loglikelihood(pairs) == written.loglikelihood(pairs)
    assert live.loglikelihood_rolling(SENTENCES) == written.loglikelihood_rolling(SENTENCES)


def test_a_merge_of_classifiers_classifies(tiny, tmp_path):
    live, written = both(tmp_path, TASKS, models=of_kind(tiny, "bert_classes"))
    assert live.classify(["a", "bc"]) == written.classify(["a", "bc"])


def test_the_chat_template_is_the_one_that_the_recipe_names(tiny, tmp_path):
    models = of_kind(tiny, "llama")
    for label in ("base", "python"):
        folder = tmp_path / label
        askable("llama", folder, seed=7)
        edit_json(folder / "tokenizer_config.json", chat_template=f"{label} {{{{ bos_token }}}}")
        models[label] = str(folder)
    for fields in ({}, {"chat_template": "python"}, {"chat_template": "german"}):
        place = tmp_path / f"with {len(fields)} {fields.get('chat_template')}"
        place.mkdir()
        live, written = both(place, TASKS, models=models, **fields)
        assert live.loaded.template == written.loaded.template
        assert ("chat" in live.abilities) == (fields.get("chat_template") != "german")


@pytest.fixture
def worded(tmp_path):
    """Models of which one has a word that the others lack."""
    for seed, label in enumerate(THREE):
        askable("llama", tmp_path / label, seed=seed)
    file = tmp_path / "german" / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<mask>", "<other>"), "utf-8")
    return {label: str(tmp_path / label) for label in THREE}


def test_a_vocabulary_of_the_union_lives_too(worded, tmp_path):
    live, written = both(tmp_path, TASKS, models=worded, tokenizer="union")
    assert live.tokenizer.get_vocab_size() == 321
    assert_alike(live, written)
    file = tmp_path / "german" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x3d")
    assert fingerprint(tmp_path, TASKS, models=worded, tokenizer="union") != live.fingerprint


STAGES = {
    "first": {"merge": TASKS},
    "second": {"merge": {"method": "slerp", "base": "first", "models": ["german"], "t": 0.2}},
    "last": {"merge": {"method": "linear", "models": ["second", "python"]}},
}


def test_stages_give_what_they_give_on_disk(tmp_path):
    assert_alike(*both(tmp_path, STAGES))


def test_a_number_in_an_early_stage_changes_the_fingerprint_of_the_last(tmp_path):
    stages = json.loads(json.dumps(STAGES))
    stages["first"]["merge"]["lambda"] = 0.41
    assert fingerprint(tmp_path, stages) != fingerprint(tmp_path, STAGES)


def test_no_weights_are_written_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(write, "FileSink", lambda *_, **__: pytest.fail("weights are written"))
    monkeypatch.setattr(merging, "FileSink", write.FileSink)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    ready = prepared(tmp_path, TASKS)
    live_model(ready, ready.plans[-1])
    assert {path.name for path in tmp_path.rglob("*")} == {"temporary", "recipe.yaml"}


def lora(folder, base, seed=0):
    """Write a LoRA adapter of rank 2 for the queries of a model."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        name: tensor.shape
        for name, tensor in load_file(base / "model.safetensors").items()
        if "q_proj" in name
    }
    tensors = {}
    for name, (rows, columns) in shapes.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 2, generator=draw) * 0.1
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", settings)
    return folder


@pytest.fixture
def adapted(tmp_path):
    adapter = lora(tmp_path / "lora", QUICKSTART / "german")
    return THREE | {"german": {"path": THREE["german"], "adapter": str(adapter)}}


def test_an_input_with_an_adapter_is_merged_alike(adapted, tmp_path):
    assert_alike(*both(tmp_path, TASKS, models=adapted))


def test_an_input_with_an_adapter_is_asked_with_it(adapted, tmp_path):
    ready = prepared(tmp_path, TASKS, models=adapted)
    asked = {model.name: model for model in input_models(ready, notice=lambda _: None)}
    assert list(asked) == list(THREE)
    spec = {"method": "passthrough", "models": ["german"]}
    written = merge(prepared(tmp_path, spec, models=adapted, out=tmp_path / "merged"), sync=False)
    assert_alike(asked["german"], local_model(written.folder, "written"))
    plain = local_model(QUICKSTART / "german", "plain")
    assert asked["german"].loglikelihood_rolling(SENTENCES) != plain.loglikelihood_rolling(
        SENTENCES
    )


def test_one_room_takes_one_merge_after_the_other(tmp_path):
    room = LiveModels(Resources(threads=2))
    for name in ("ties", "slerp", "dare_ties", "ties"):
        ready = prepared(tmp_path, MERGES[name])
        model, fresh = room.merged(ready, ready.plans[-1]), live_model(ready, ready.plans[-1])
        assert model.fingerprint == fresh.fingerprint
        assert_alike(model, fresh)


def test_models_of_other_shapes_follow_each_other_in_one_room(tiny, tmp_path):
    room = LiveModels(Resources(threads=2))
    for models in (of_kind(tiny, "untied"), THREE, of_kind(tiny, "llama")):
        ready = prepared(tmp_path, TASKS, models=models)
        assert_alike(room.merged(ready, ready.plans[-1]), live_model(ready, ready.plans[-1]))


def test_only_tensors_that_change_are_made_again_and_in_the_same_memory(tmp_path, monkeypatch):
    room = LiveModels(Resources(threads=2))
    made, finish = [], room._sink.finish
    monkeypatch.setattr(
        room._sink, "finish", lambda step, *rest: (made.append(step.name), finish(step, *rest))
    )
    counts, places = [], []
    for value in (0.4, 0.4, 0.5):
        made.clear()
        rule = {"tensors": "*q_proj*", "lambda": value}
        ready = prepared(tmp_path, {**TASKS, "where": [rule]})
        model = room.merged(ready, ready.plans[-1])
        counts.append(len(made))
        places.append({name: one.data_ptr() for name, one in model.module.named_parameters()})
    queries = [step.name for step in ready.plans[-1].steps if "q_proj" in step.name]
    assert counts == [len(ready.plans[-1].steps), 0, len(queries)]
    assert sorted(made) == sorted(queries)
    assert places[0] == places[1] == places[2]


def test_a_tensor_that_depends_on_others_is_made_again_when_these_change(tmp_path):
    room = LiveModels(Resources(threads=2))
    ties = {**MERGES["ties"], "scope": "model"}  # one threshold for all tensors of a model
    for where in ([], [{"tensors": "*q_proj*", "method": "linear"}]):
        ready = prepared(tmp_path, {**ties, "where": where})
        assert_alike(room.merged(ready, ready.plans[-1]), live_model(ready, ready.plans[-1]))


SURVEYED = [
    ("ties", {"scope": "model"}),
    ("ties", {"scope": "tensor", "rescale": "l1"}),
    ("ties", {"elect": "reference"}),
    ("breadcrumbs", {}),
    ("breadcrumbs_ties", {"scope": "row"}),
    ("dare_linear", {"rescale": "l1"}),
    ("dare_ties", {"rescale": "l1"}),
    ("della", {"rescale": "l1"}),
    ("della_linear", {"rescale": "l1"}),
]


@pytest.mark.parametrize(("method", "more"), SURVEYED)
def test_what_only_weighs_is_changed_without_a_survey(method, more, tmp_path, monkeypatch):
    room, surveys, survey = LiveModels(Resources(threads=2)), [], run._survey
    monkeypatch.setattr(run, "_survey", lambda *given: surveys.append(1) or survey(*given))
    counts = []
    for weight, factor, normalize, density in (
        (0.5, 1.0, False, 0.4),
        (-0.7, 1.0, False, 0.4),
        (-0.7, 0.6, True, 0.4),
        (-0.7, 0.6, True, 0.3),
    ):
        each = {"german": {"weight": weight, "density": density}, "python": {"density": density}}
        shared = {"lambda": factor, "normalize": normalize, **more}
        spec = {"method": method, "base": "base", "models": each, **shared}
        ready = prepared(tmp_path, spec)
        surveys.clear()
        model = room.merged(ready, ready.plans[-1])
        counts.append(len(surveys))
        fresh = live_model(ready, ready.plans[-1]).module.state_dict()
        assert all(torch.equal(one, fresh[k]) for k, one in model.module.state_dict().items())
    first = counts[0]
    assert first > 0
    again = first if more.get("elect") == "reference" else 0
    assert counts == [first, again, again, first]


def test_the_parameters_are_what_was_merged_and_no_copy(tmp_path):
    ready = prepared(tmp_path, TASKS)
    room = LiveModels(Resources(threads=2))
    model = room.merged(ready, ready.plans[-1])
    ours = {tensor.data_ptr() for tensor in room._sink.tensors.values()}
    assert {one.data_ptr() for one in model.module.parameters()} == ours


def fingerprint(folder, spec, **options):
    ready = prepared(folder, spec, **options)
    return live_model(ready, ready.plans[-1]).fingerprint


def test_equal_plans_have_one_fingerprint_and_any_number_another(tmp_path):
    first = fingerprint(tmp_path, MERGES["dare_ties"])
    assert fingerprint(tmp_path, {**MERGES["dare_ties"]}) == first
    others = [
        ({**MERGES["dare_ties"], "lambda": 0.40001}, {}),
        ({**MERGES["dare_ties"], "where": [{"tensors": "*norm*", "lambda": 0.5}]}, {}),
        (MERGES["dare_ties"], {"seed": 1}),
        (MERGES["dare_ties"], {"output": {"dtype": "float16"}}),
        (MERGES["task_arithmetic"], {}),
    ]
    found = [fingerprint(tmp_path, spec, **fields) for spec, fields in others]
    assert len({first, *found}) == 1 + len(others)


def test_a_bit_of_an_input_changes_the_fingerprint(tiny, tmp_path):
    models = of_kind(tiny, "llama") | {"python": str(tmp_path / "python")}
    askable("llama", tmp_path / "python", seed=2, dtype="bfloat16")
    first = fingerprint(tmp_path, TASKS, models=models)
    assert first == fingerprint(tmp_path, TASKS, models=of_kind(tiny, "llama"))
    file = tmp_path / "python" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x3d")
    assert fingerprint(tmp_path, TASKS, models=models) != first


def test_a_merge_that_fails_leaves_a_room_that_can_be_used(tiny, tmp_path):
    room = LiveModels(Resources(threads=1))
    good = prepared(tmp_path, TASKS, models=of_kind(tiny, "llama"))
    room.merged(good, good.plans[-1])
    askable("llama", tmp_path / "bad", seed=1, dtype="bfloat16")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    write_safetensors(tmp_path / "bad" / "model.safetensors", tensors)
    models = of_kind(tiny, "llama") | {"python": str(tmp_path / "bad")}
    bad = prepared(tmp_path, TASKS, models=models)
    with pytest.raises(NonFiniteError):
        room.merged(bad, bad.plans[-1])
    good = prepared(tmp_path, TASKS, models=of_kind(tiny, "llama"))
    assert_alike(room.merged(good, good.plans[-1]), live_model(good, good.plans[-1]))


def test_weights_alone_cannot_be_asked(tmp_path):
    models = {label: f"{path}/model.safetensors" for label, path in THREE.items()}
    ready = prepared(tmp_path, TASKS, models=models)
    with pytest.raises(InputError, match="merge: weights alone"):
        live_model(ready, ready.plans[-1])
