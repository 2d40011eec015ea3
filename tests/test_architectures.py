"""Any architecture merges by the names of its tensors, and the result loads whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, write_json
from families import FAMILIES, Family, perturbed
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergepipe.errors import InputError
from mergepipe.pipeline import Prepared, merge, prepare

BY_NAME = {family.name: family for family in FAMILIES}
EXPERTS = {"one": 1, "two": 2}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[Family], Path]:
    """Folders `base`, `one` and `two` of a family, as transformers saves them."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        BY_NAME[name].build().save_pretrained(folder / "base")
        for label, seed in EXPERTS.items():
            perturbed(BY_NAME[name].build(), seed).save_pretrained(folder / label)
        return folder

    return lambda family: save(family.name)


def copied(folder: Path, target: Path, *labels: str) -> Path:
    """Copies of models that a test may change."""
    for label in labels or ("base", *EXPERTS):
        (target / label).mkdir()
        for file in (folder / label).iterdir():
            (target / label / file.name).write_bytes(file.read_bytes())
    return target


def planned(models: Path, target: Path, method: str = "ties", **settings: Any) -> Prepared:
    """Plan a merge of the experts over the base; methods that need none take it as a model."""
    labels = [label for label in ("base", *EXPERTS) if (models / label).is_dir()]
    rest = {"seed": 7, **settings.pop("rest", {})}
    experts = labels if method == "linear" else labels[1:]
    each: dict[str, Any] = settings.pop("each", {})
    recipe = {
        "mergepipe": 1,
        "models": {label: str(models / label) for label in labels},
        "merge": {
            "method": method,
            "base": "base",
            "models": {label: each.get(label, {}) for label in experts},
            **settings,
        },
        **rest,
    }
    target.mkdir(exist_ok=True)
    out = target / f"merged-{method}"
    return prepare(write_json(target / "recipe.yaml", recipe), out=out)


def merged(models: Path, target: Path, method: str = "ties", **settings: Any) -> Path:
    return merge(planned(models, target, method, **settings)).folder


def state(family: Family, folder: Path) -> dict[str, Tensor]:
    """The tensors as the model has them, whatever their names in the files."""
    return dict(family.load(folder)[0].state_dict())


def states(family: Family, folder: Path) -> list[dict[str, Tensor]]:
    return [state(family, folder / label) for label in ("base", *EXPERTS)]


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors as the files have them."""
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Change the tensors of a model."""
    file = folder / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(file)).items()}, file)


def rename(folder: Path, *pairs: tuple[str, str]) -> None:
    """Replace the start of names, by the first pair that fits."""

    def renamed(name: str) -> str:
        found = ((new + name.removeprefix(old)) for old, new in pairs if name.startswith(old))
        return next(found, name)

    rewrite(folder, lambda held: {renamed(name): value for name, value in held.items()})


def storages(model: torch.nn.Module) -> set[tuple[str, ...]]:
    """The groups of names that share one tensor."""
    groups: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        groups.setdefault(value.data_ptr(), []).append(name)
    return {tuple(names) for names in groups.values() if len(names) > 1}


@every_family
def test_a_merge_loads_whole_stays_tied_and_computes(family, saved, tmp_path):
    model, found = family.load(merged(saved(family), tmp_path))
    base = family.build()
    assert not any(found.values())
    assert model.num_parameters() == base.num_parameters()
    assert storages(model) == storages(base)
    with torch.inference_mode():
        outputs = model(**family.inputs).values()
    first = next(value for value in outputs if isinstance(value, Tensor))
    assert first.isfinite().all()


@every_family
def test_linear_is_the_mean_of_the_state_dicts_to_the_bit(family, saved, tmp_path):
    result = state(family, merged(saved(family), tmp_path, "linear"))
    base, one, two = states(family, saved(family))
    assert result.keys() == base.keys()
    for name, value in result.items():
        floats = value.is_floating_point()
        expected = (base[name] + one[name] + two[name]) / 3 if floats else base[name]
        assert value.equal(expected), name


@every_family
def test_task_arithmetic_adds_the_task_vectors(family, saved, tmp_path):
    each = {"one": {"weight": 0.5}, "two": {"weight": -0.25}}
    result = state(family, merged(saved(family), tmp_path, "task_arithmetic", each=each))
    base, one, two = states(family, saved(family))
    for name, value in result.items():
        theta = base[name].double()
        delta = 0.5 * (one[name].double() - theta) - 0.25 * (two[name].double() - theta)
        torch.testing.assert_close(value.double(), theta + delta, atol=1e-6, rtol=1e-6)


@every_family
def test_nothing_is_dropped_or_warned_of(family, saved, tmp_path):
    prepared = planned(saved(family), tmp_path)
    assert prepared.warnings == ()
    copies = [step for step in prepared.plans[-1].steps if step.method is None]
    assert all("buffer" in step.reason for step in copies)
    assert bool(copies) == (family.name == "resnet")
    assert {one.name for one in prepared.plans[-1].dropped} == {step.name for step in copies}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-mlm", "t5", "whisper"])
def test_pickled_models_merge_as_safetensors_do(name, saved, tmp_path):
    family = BY_NAME[name]
    models = copied(saved(family), tmp_path)
    expected = state(family, merged(models, tmp_path, "linear"))
    for label in ("base", "two"):
        # A state dict names tied tensors several times; safetensors hold them once.
        torch.save(state(family, models / label), models / label / "pytorch_model.bin")
        (models / label / "model.safetensors").unlink()
    prepared = planned(models, tmp_path / "again", "linear")
    assert prepared.warnings == ()
    model, found = family.load(merge(prepared).folder)
    assert not any(found.values())
    assert all(value.equal(expected[key]) for key, value in model.state_dict().items())
    assert storages(model) == storages(family.build())


@pytest.mark.parametrize("name", ["llama-tied", "qwen3_moe", "t5"])
def test_shards_in_and_out(name, saved, tmp_path):
    family = BY_NAME[name]
    family.load(saved(family) / "one")[0].save_pretrained(tmp_path / "one", max_shard_size="9KB")
    models = copied(saved(family), tmp_path, "base", "two")
    assert len(list((models / "one").glob("*.safetensors"))) > 2
    folder = merged(models, tmp_path, rest={"output": {"max_shard_size": "9KB"}})
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model, found = family.load(folder)
    assert not any(found.values())
    expected = state(family, merged(saved(family), tmp_path / "again"))
    assert all(value.equal(expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("t5", {"encoder.block": 2, "decoder.block": 3}),
        ("whisper", {"model.encoder.layers": 2, "model.decoder.layers": 3}),
        ("llava", {"language_model.model.layers": 2, "vision_tower.encoder.layers": 2}),
        ("clip", {"text_model.encoder.layers": 2, "vision_model.encoder.layers": 2}),
        ("gpt2", {"transformer.h": 2}),
        ("mixtral", {"model.layers": 2}),
    ],
)
def test_each_stack_has_its_own_depth(name, layers, saved, tmp_path):
    steps = planned(saved(BY_NAME[name]), tmp_path).plans[-1].steps
    for stack, count in layers.items():
        depths = {step.name.split(".")[stack.count(".") + 1]: step.depth for step in steps
                  if step.name.startswith(f"{stack}.")}  # fmt: skip
        assert depths == {str(layer): layer / (count - 1) for layer in range(count)}


# Tied heads: one stored, both stored, neither.

TIED, UNTIED = BY_NAME["llama-tied"], BY_NAME["llama"]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def with_copied_head(folder: Path) -> None:
    rewrite(folder, lambda held: {**held, HEAD: held[EMBEDDING]})


def mixed(saved, target: Path, base: Family, one: Family) -> Path:
    """A base of one family and an expert of the other."""
    copied(saved(base), target, "base")
    return copied(saved(one), target, "one")


def test_an_untied_head_over_a_tied_base_is_dropped_aloud(saved, tmp_path):
    prepared = planned(mixed(saved, tmp_path, TIED, UNTIED), tmp_path, "linear")
    assert any("one: 1 tensors dropped: base ties its head" in line for line in prepared.warnings)
    model, found = TIED.load(merge(prepared).folder)
    assert not any(found.values())
    assert storages(model) == storages(TIED.build())


def test_an_untied_head_is_kept_if_the_recipe_takes_it_and_its_config(saved, tmp_path):
    models = mixed(saved, tmp_path, TIED, UNTIED)
    rest = {"output": {"config": "one"}}
    rules = [{"tensors": HEAD, "take": "one"}]
    folder = merged(models, tmp_path, "linear", where=rules, rest=rest)
    model, found = UNTIED.load(folder)
    assert not any(found.values())
    assert model.lm_head.weight.equal(tensors(models / "one")[HEAD])
    assert not storages(model)


def test_the_embedding_of_a_tied_expert_stands_in_for_its_head(saved, tmp_path):
    models = mixed(saved, tmp_path, UNTIED, TIED)
    prepared = planned(models, tmp_path, "linear")
    assert any(f"{EMBEDDING} stands in for {HEAD}" in line for line in prepared.warnings)
    head = tensors(merge(prepared).folder)[HEAD]
    base, one = tensors(models / "base"), tensors(models / "one")
    assert head.equal((base[HEAD] + one[EMBEDDING]) / 2)


@pytest.mark.parametrize("labels", [("base",), ("one",), ("base", "one", "two")])
def test_stored_copies_of_tied_tensors_are_one_tensor(saved, labels, tmp_path):
    models = copied(saved(TIED), tmp_path)
    for label in labels:
        with_copied_head(models / label)
    prepared = planned(models, tmp_path, "dare_ties", rest={"seed": 3})
    assert prepared.warnings == ()
    model, found = TIED.load(merge(prepared).folder)
    assert not any(found.values())
    assert storages(model) == storages(TIED.build())


def test_a_head_that_differs_though_the_config_ties_it_is_kept_and_said(saved, tmp_path):
    models = copied(saved(TIED), tmp_path)
    for label in ("base", *EXPERTS):
        rewrite(models / label, lambda held: {**held, HEAD: held[EMBEDDING] + 1})
    prepared = planned(models, tmp_path, "linear")
    assert any("both are stored and differ" in line for line in prepared.warnings)
    result = tensors(merge(prepared).folder)
    torch.testing.assert_close(result[HEAD], result[EMBEDDING] + 1)


def test_an_equal_head_that_the_config_does_not_tie_is_kept(saved, tmp_path):
    models = copied(saved(UNTIED), tmp_path)
    for label in ("base", *EXPERTS):
        with_copied_head(models / label)
    assert not any(UNTIED.load(merged(models, tmp_path))[1].values())


def test_a_pickle_that_names_the_head_first_keeps_the_embedding(saved, tmp_path):
    models = copied(saved(TIED), tmp_path)
    held = tensors(models / "base")
    torch.save({HEAD: held[EMBEDDING], **held}, models / "base" / "pytorch_model.bin")
    (models / "base" / "model.safetensors").unlink()
    result = merged(models, tmp_path)
    assert HEAD not in tensors(result)
    assert not any(TIED.load(result)[1].values())


def test_a_stored_copy_that_an_old_config_does_not_mention_is_stood_in_for(saved, tmp_path):
    family, decoder = BY_NAME["bert-mlm"], "cls.predictions.decoder.weight"
    models = copied(saved(family), tmp_path)
    for label in ("base", *EXPERTS):
        edit_json(models / label / "config.json", tie_word_embeddings=None)
    words = "bert.embeddings.word_embeddings.weight"
    rewrite(models / "base", lambda held: {**held, decoder: held[words]})
    result = tensors(merged(models, tmp_path))
    assert result[decoder].equal(result[words])


def test_a_classifier_has_no_head_to_stand_in_for(saved, tmp_path):
    models = mixed(saved, tmp_path, UNTIED, TIED)
    names = {"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": None}
    edit_json(models / "one" / "config.json", **names)
    steps = {step.name: step for step in planned(models, tmp_path).plans[-1].steps}
    assert steps[HEAD].method is None


# Names: prefixes, old spellings, heads.


def test_gpt2_with_and_without_its_prefix(saved, tmp_path):
    family = BY_NAME["gpt2"]
    models = copied(saved(family), tmp_path)
    expected = state(family, merged(models, tmp_path, "linear"))
    rename(models / "base", ("transformer.", ""))
    prepared = planned(models, tmp_path / "again", "linear")
    assert any("were matched: '' is 'transformer.'" in line for line in prepared.warnings)
    result = state(family, merge(prepared).folder)
    assert all(value.equal(expected[key]) for key, value in result.items())


@pytest.mark.parametrize("old", ["base", "one"])
def test_old_and_new_names_of_a_vision_language_model(old, saved, tmp_path):
    family = BY_NAME["llava"]
    models = copied(saved(family), tmp_path)
    expected = state(family, merged(models, tmp_path, "linear"))
    new = (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    )
    rename(models / old, *new)
    prepared = planned(models, tmp_path / "again", "linear")
    result = state(family, merge(prepared).folder)
    assert all(value.equal(expected[key]) for key, value in result.items())


@pytest.mark.parametrize("old", ["base", "one"])
def test_layer_norms_named_gamma_and_beta(old, saved, tmp_path):
    family = BY_NAME["bert-mlm"]
    models = copied(saved(family), tmp_path)
    expected = state(family, merged(models, tmp_path, "linear"))
    spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def age(held: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, ending in spelled.items():
            held = {name.replace(new, ending): value for name, value in held.items()}
        return held

    rewrite(models / old, age)
    result = state(family, merged(models, tmp_path / "again", "linear"))
    assert all(value.equal(expected[key]) for key, value in result.items())


def test_a_classifier_merges_into_a_language_model_but_for_its_head(saved, tmp_path):
    copied(saved(BY_NAME["bert-classifier"]), tmp_path, "one", "two")
    models = copied(saved(BY_NAME["bert-mlm"]), tmp_path, "base")
    prepared = planned(models, tmp_path)
    assert any(
        "4 tensors dropped" in line and "classifier.bias" in line for line in prepared.warnings
    )
    copies = {step.name for step in prepared.plans[-1].steps if step.method is None}
    assert all(name.startswith("cls.") for name in copies)
    assert not any(BY_NAME["bert-mlm"].load(merge(prepared).folder)[1].values())


def test_a_bare_encoder_merges_with_its_language_model(saved, tmp_path):
    family = BY_NAME["bert-mlm"]
    models = copied(saved(family), tmp_path)
    for label in EXPERTS:
        family.load(models / label)[0].bert.save_pretrained(models / label)
    assert not any(family.load(merged(models, tmp_path))[1].values())


def test_taking_a_layer_of_a_bare_encoder_takes_it_once(saved, tmp_path):
    family = BY_NAME["bert-mlm"]
    models = copied(saved(family), tmp_path)
    family.load(models / "one")[0].bert.save_pretrained(models / "one")
    rules = [{"tensors": "*encoder.layer.0.*", "take": "one"}]
    result = merged(models, tmp_path, where=rules)
    assert not any(family.load(result)[1].values())
    name = "encoder.layer.0.output.dense.weight"
    assert tensors(result)[f"bert.{name}"].equal(tensors(models / "one")[name])


@pytest.mark.parametrize("pair", [("", "module."), ("model.", "")])
def test_names_of_a_wrapped_model_are_refused(pair, saved, tmp_path):
    models = copied(saved(UNTIED), tmp_path)
    rename(models / "one", pair)
    with pytest.raises(InputError, match=r"one: 2\d tensors are missing .*model.embed_tokens"):
        planned(models, tmp_path)


def test_another_architecture_is_refused(saved, tmp_path):
    models = mixed(saved, tmp_path, UNTIED, BY_NAME["qwen2"])
    with pytest.raises(InputError, match="another architecture: Qwen2ForCausalLM"):
        planned(models, tmp_path)


def test_an_unknown_architecture_merges_like_any(saved, tmp_path):
    models = copied(saved(UNTIED), tmp_path)
    for label in ("base", *EXPERTS):
        names = {"architectures": ["NewForCausalLM"], "model_type": "new"}
        edit_json(models / label / "config.json", **names)
    assert len(planned(models, tmp_path).plans[-1].steps) == len(tensors(models / "base"))
