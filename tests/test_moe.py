"""Mixtures of experts: what is in them, which way tokens go, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from attempts import attempt
from checkpoints import llama, write_weights
from command_line import command
from merges import digests, harm, tensors
from mixtures import (
    LAYERS,
    PROMPTS,
    QUICKSTART,
    dense,
    document,
    expert,
    family,
    loaded,
    logits,
    mixed,
    prepared,
)
from tokenizers import Tokenizer
from torch.testing import assert_close

from mergepipe.errors import InputError
from mergepipe.execute import Resources
from mergepipe.moe import is_moe
from mergepipe.moe.noise import Noise, normals
from mergepipe.moe.targets import TARGETS, complete
from mergepipe.pipeline import merge

ALL_GATES = ("cheap_embed", "hidden", "hidden_avg", "hidden_last", "random", "uniform_random")
SHARED = [expert("b", 2)]
MATRICES = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llamas")
    family(folder)
    return folder


@pytest.fixture
def here(llamas, tmp_path):
    """A folder of its own beside links to the models."""
    for label in ("base", "a", "b"):
        (tmp_path / label).symlink_to(llamas / label)
    return tmp_path


def gate(found, layer):
    return found[f"model.layers.{layer}.block_sparse_moe.gate.weight"]


# --- what is in it


@pytest.mark.parametrize(
    ("kind", "fields", "architecture"),
    [
        ("llama", {}, "MixtralForCausalLM"),
        ("mistral", {}, "MixtralForCausalLM"),
        ("llama", {"shared_experts": SHARED}, "Qwen2MoeForCausalLM"),
        ("qwen2", {"shared_experts": SHARED}, "Qwen2MoeForCausalLM"),
        ("qwen3", {}, "Qwen3MoeForCausalLM"),
    ],
)
def test_a_mixture_loads_whole_and_generates(tmp_path, kind, fields, architecture, recwarn):
    family(tmp_path, kind)
    mixed(tmp_path, **fields)
    model = loaded(tmp_path / "merged")
    assert model.config.architectures == [architecture]
    made = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=4, do_sample=False)
    assert made.shape[1] > 3
    assert not [w for w in recwarn if "weight" in str(w.message)]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_a_mixture_of_copies_of_the_base_is_the_base(tmp_path, kind):
    family(tmp_path, kind)
    mixed(tmp_path, experts=[expert("base", 0), expert("base", 1)])
    ours, base = loaded(tmp_path / "merged"), loaded(tmp_path / "base")
    assert_close(logits(ours), logits(base), rtol=1e-4, atol=1e-4)
    assert logits(base).std() > 0.1


def test_a_base_that_says_little_keeps_its_own_defaults(tmp_path):
    family(tmp_path)
    file = tmp_path / "base/config.json"
    said = json.loads(file.read_text())
    for name in ("max_position_embeddings", "rms_norm_eps", "bos_token_id"):
        del said[name]
    file.write_text(json.dumps(said))
    mixed(tmp_path, experts=[expert("base", 0), expert("base", 1)])
    assert_close(
        logits(loaded(tmp_path / "merged")), logits(loaded(tmp_path / "base")), rtol=1e-4, atol=1e-4
    )


def test_the_shared_expert_is_added_to_the_others(tmp_path):
    family(tmp_path, "qwen2")
    quiet = expert("b", 2, residual_scale=0.0)
    experts = [expert("base", 0), expert("base", 1)]
    mixed(tmp_path, experts=experts, shared_experts=[quiet])
    assert_close(
        logits(loaded(tmp_path / "merged")), logits(loaded(tmp_path / "base")), rtol=1e-4, atol=1e-4
    )
    mixed(tmp_path, experts=experts, shared_experts=SHARED, out="louder")
    assert not torch.allclose(
        logits(loaded(tmp_path / "louder")), logits(loaded(tmp_path / "base"))
    )


def test_weights_are_copied_bit_by_bit(here):
    found, base = mixed(here), tensors(here / "base")
    for name in base:
        if ".mlp." not in name:
            assert torch.equal(found[name], base[name])
    for at, label in enumerate(("a", "b")):
        theirs = tensors(here / label)
        for layer in range(LAYERS):
            for ours, dense_name in zip(("w1", "w3", "w2"), MATRICES, strict=True):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{at}.{ours}.weight"
                assert torch.equal(
                    found[name], theirs[f"model.layers.{layer}.mlp.{dense_name}.weight"]
                )
    assert len(found) == len(base) - 3 * LAYERS + (3 * 2 + 1) * LAYERS


def test_a_llama_lends_its_attention_zero_biases(here):
    found = mixed(here, shared_experts=SHARED)
    bias = found["model.layers.0.self_attn.q_proj.bias"]
    assert bias.shape == (32,)
    assert not bias.any()


def test_tied_embeddings_stay_tied(tmp_path):
    family(tmp_path)
    for label in ("base", "a", "b"):
        values = tensors(tmp_path / label)
        del values["lm_head.weight"]
        shutil.rmtree(tmp_path / label)
        dense(tmp_path / label, tie_word_embeddings=True)
        write_weights(tmp_path / label, values)
    assert "lm_head.weight" not in mixed(tmp_path)
    assert loaded(tmp_path / "merged").config.tie_word_embeddings


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.model_type)
def test_the_defaults_of_families_are_those_of_transformers(target):
    """What a silent dense config means is written out wherever the mixture's default differs."""
    import transformers

    of = transformers.CONFIG_MAPPING
    mixture = of[target.model_type]().to_dict()
    compared = 0
    for kind in target.dense:
        said, means = complete({"model_type": kind}), of[kind]().to_dict()
        for name in means.keys() & mixture.keys() - {"transformers_version", "model_type"}:
            derived = name == "head_dim" and kind != "qwen3"  # hidden_size over heads, everywhere
            if derived or name in ("rope_parameters", *target.drops, *target.settings):
                continue
            if means[name] != mixture[name] or name in said:
                assert said[name] == means[name], (kind, name)
                compared += 1
        assert said["rope_theta"] == means["rope_parameters"]["rope_theta"]
    assert compared


# --- which way tokens go


def ids(prompt):
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "tokenizer.json"))
    tokenizer.no_padding()
    begin = json.loads((QUICKSTART / "tokenizer_config.json").read_text())["bos_token"]
    return tokenizer.encode(begin + prompt, add_special_tokens=False).ids


def unit(values):
    return values / values.norm()


def test_cheap_gates_point_to_the_sum_of_embeddings(here):
    found = mixed(here, experts=[expert("a", 0, negative_prompts=PROMPTS[2]), expert("b", 1)])
    table = tensors(here / "base")["model.embed_tokens.weight"].double()
    away = unit(sum(table[ids(text)].sum(0) for text in PROMPTS[2]))
    first = unit(unit(sum(table[ids(text)].sum(0) for text in PROMPTS[0])) - away)
    second = unit(table[ids(PROMPTS[1][0])].sum(0))
    for layer in range(LAYERS):
        assert_close(gate(found, layer), torch.stack([first, second]).float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("mode", ["hidden", "hidden_last", "hidden_avg"])
def test_hidden_gates_point_to_what_enters_each_layer(tmp_path, kind, mode):
    family(tmp_path, kind)
    experts = [expert("a", 0, negative_prompts=PROMPTS[2]), expert("b", 1)]
    fields = {"shared_experts": SHARED} if kind == "qwen2" else {}
    router = planned_router(prepared(tmp_path, gate_mode=mode, experts=experts, **fields))
    model = loaded(tmp_path / "base").double()

    def points(texts):
        with torch.no_grad():
            seen = [model(torch.tensor([ids(t)]), output_hidden_states=True) for t in texts]
        rows = [torch.stack(one.hidden_states[:-1])[:, 0] for one in seen]
        ends = [row.mean(1) if mode == "hidden_avg" else row[:, -1] for row in rows]
        return torch.stack(ends).mean(0)

    for layer in range(LAYERS):
        first = unit((points(PROMPTS[0]) - points(PROMPTS[2]))[layer])
        second = unit(points(PROMPTS[1])[layer])
        assert_close(router.gates[layer, :2], torch.stack([first, second]), rtol=0, atol=1e-6)


def planned_router(ready):
    step = next(one for one in ready.plans[0].steps if one.name.endswith("gate.weight"))
    return step.inputs[0].stored.memory.router


def test_a_prompt_sends_tokens_to_its_own_expert(here):
    found = mixed(here, gate_mode="hidden", experts=[expert("a", 1), expert("b", 2)])
    model = loaded(here / "base").double()
    for at, prompts in enumerate(PROMPTS[1:]):
        with torch.no_grad():
            state = model(torch.tensor([ids(prompts[0])]), output_hidden_states=True)
        scores = gate(found, 1).double() @ state.hidden_states[1][0, -1]
        assert scores.argmax() == at


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
def test_random_gates_are_those_of_the_seed(here, mode):
    plain = [{"source_model": "./a"}, {"source_model": "./b"}]
    first = mixed(here, gate_mode=mode, experts=plain)
    again = mixed(here, gate_mode=mode, experts=plain, out="again", resources=Resources(threads=3))
    other = mixed(here, gate_mode=mode, experts=plain, out="other", seed=1)
    assert torch.equal(gate(first, 0), gate(again, 0))
    assert not torch.equal(gate(first, 0), gate(other, 0))
    assert not torch.equal(gate(first, 0), gate(first, 1))
    if mode == "uniform_random":
        assert gate(first, 0).abs().max() <= 16**-0.5


def test_normal_numbers_are_normal_and_do_not_depend_on_how_they_are_read():
    whole = normals(7, 0, 200_000)
    assert abs(whole.mean()) < 0.01
    assert abs(whole.std() - 1) < 0.01
    assert abs((whole**4).mean() - 3) < 0.1
    noise = Noise(7)
    assert torch.equal(torch.cat([noise[0:5], noise[5:1001]]), noise[0:1001])


def test_noise_and_scale_are_for_one_expert_and_the_scale_for_its_output(here):
    plain = mixed(here)
    experts = [expert("a", 0, noise_scale=0.1, residual_scale=0.5), expert("b", 1)]
    found = mixed(here, experts=experts, out="noisy")
    front = "model.layers.0.block_sparse_moe.experts"
    up, down = f"{front}.0.w3.weight", f"{front}.0.w2.weight"
    assert abs((found[up] - plain[up]).std() - 0.1) < 0.01
    assert abs((found[down] - 0.5 * plain[down]).std() - 0.05) < 0.005
    changed = {name for name in plain if not torch.equal(found[name], plain[name])}
    assert changed == {name for name in plain if ".experts.0." in name}


def test_a_plan_does_not_run_the_base(here):
    ready = prepared(here, gate_mode="hidden")
    assert "gates" not in vars(planned_router(ready))


def test_gates_that_are_nearly_alike_are_warned_of(here):
    said = []
    apart = prepared(here, tell=said.append)
    text = "In the beginning God created the heaven and the earth"
    alike = [expert("a", positive_prompts=[text]), expert("b", positive_prompts=[f"{text}."])]
    near = prepared(here, experts=alike, tell=said.append)
    assert not said
    assert not any("alike" in one for one in apart.warnings)
    assert any("the gates of all layers are nearly alike" in one for one in near.warnings)


def test_running_the_base_is_said(here):
    said = []
    ready = prepared(here, gate_mode="hidden", tell=said.append)
    assert said == ["running base on the prompts, layer by layer, for the gates"]
    assert "gates" in vars(planned_router(ready))


# --- what is refused, and what is warned of


def faults(folder, **fields):
    with pytest.raises(InputError) as caught:
        prepared(folder, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gate_mode": "hiden"}, ("gate_mode", "hidden_avg")),
        ({"experts": []}, ("experts", "at least 1")),
        ({"experts_per_token": 3}, ("experts_per_token", "there are 2")),
        ({"experts_per_token": 0}, ("experts_per_token", "greater than or equal to 1")),
        ({"experts": [expert("a", 0), expert("b", 0)]}, ("experts", "identical")),
        ({"experts": [expert("a"), {"source_model": "./b"}]}, ("experts.1", "positive_prompts")),
        (
            {"experts": [expert("a", 0, negative_prompts=PROMPTS[0]), expert("b", 1)]},
            ("experts.0", "cancel out"),
        ),
        ({"experts": [expert("a", 0, noise_scale=-1.0), expert("b", 1)]}, ("noise_scale",)),
        ({"experts": [expert("a", 0, positive_prompts="x"), expert("b", 1)]}, ("list",)),
        ({"experts": [expert("nobody", 0), expert("b", 1)]}, ("nobody", "does not exist")),
        ({"architecture": "deepseek"}, ("architecture", "custom code")),
        ({"architecture": "gpt"}, ("architecture", "Mixtral, Qwen MoE, Qwen3 MoE")),
        ({"architecture": "qwen"}, ("architecture", "1 shared expert", "qwen3")),
        ({"shared_experts": SHARED * 2}, ("1 shared expert", "there are 2")),
        ({"dtype": "float64"}, ("dtype", "bfloat16")),
        ({"base_model": "./base", "experts": "a"}, ("experts", "list")),
        ({"evaluate": [{"use": "nothing"}]}, ("nothing",)),
        ({"base_model": "hf_aaaaaaaaaaaaaaaaaaaaaaaa"}, ("secret",)),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(here, fields, words):
    said = faults(here, **fields)
    assert all(word in said for word in words), said
    assert "hf_aaaa" not in said
    assert not (here / "merged").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gate_mod": "hidden"}, ("gate_mod", "did you mean 'gate_mode'")),
        ({"experts": [expert("a", 0, noise=1), expert("b", 1)]}, ("experts.0.noise",)),
        ({"experts": [expert("a", 0), expert("a", 1)]}, ("same model",)),
        (
            {"experts": [expert("a", 0), expert("b", 1), expert("base", 1)]},
            ("not a power of two", "prompts are those of experts.1"),
        ),
        ({"gate_mode": "random"}, ("random", "uses no prompts")),
    ],
)
def test_what_mergekit_would_pass_over_is_warned_of(here, fields, words):
    said = "\n".join(prepared(here, **fields).warnings)
    assert all(word in said for word in words), said


def test_experts_of_another_size_or_family_are_refused(tmp_path):
    family(tmp_path)
    dense(tmp_path / "qwen", "qwen2")
    assert "one family" in faults(tmp_path, experts=[expert("a", 0), expert("qwen", 1)])
    llama(tmp_path / "wide", hidden=32, vocab=1536, dtype="F32")
    said = faults(tmp_path, experts=[expert("a", 0), expert("wide", 1)])
    assert "wide" in said
    assert "[64, 32] (not" in said
    llama(tmp_path / "deep", hidden=16, vocab=1536, dtype="F32", layers=3)
    assert "3 layers" in faults(tmp_path, experts=[expert("a", 0), expert("deep", 1)])


def test_a_base_with_weights_that_have_no_place_is_refused(tmp_path):
    family(tmp_path)
    values = tensors(tmp_path / "base")
    values["model.layers.0.self_attn.o_proj.bias"] = torch.zeros(16)
    write_weights(tmp_path / "base", values)
    said = faults(tmp_path)
    assert "Mixtral has no place" in said
    assert "o_proj.bias" in said


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
    family(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    harm(tmp_path / "a", name, torch.nan)
    ready = prepared(tmp_path, tell=print)
    with pytest.raises(InputError, match="nan") as caught:
        merge(ready, sync=False)
    assert name in str(caught.value)
    harm(tmp_path / "base", "model.layers.0.mlp.up_proj.weight", torch.inf)
    assert "gates that are not finite" in faults(tmp_path, gate_mode="hidden", tell=print)
    assert not (tmp_path / "merged").exists()


def test_a_base_that_lacks_weights_is_refused_before_it_is_run(tmp_path):
    family(tmp_path, "qwen2")
    values = tensors(tmp_path / "base")
    del values["model.layers.0.self_attn.q_proj.bias"]
    write_weights(tmp_path / "base", values)
    said = faults(tmp_path, gate_mode="hidden", shared_experts=SHARED, tell=print)
    assert "q_proj.bias" in said


def test_an_expert_with_another_activation_is_refused(tmp_path):
    family(tmp_path)
    dense(tmp_path / "gelu", hidden_act="gelu")
    said = faults(tmp_path, experts=[expert("a", 0), expert("gelu", 1)])
    assert "activation is gelu" in said


def test_a_base_without_a_tokenizer_cannot_read_prompts(tmp_path):
    family(tmp_path)
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in faults(tmp_path)
    assert prepared(tmp_path, gate_mode="random").plans


def test_other_recipes_are_not_taken_for_mixtures():
    assert is_moe(document())
    assert not is_moe({"merge_method": "linear", "base_model": "x"})
    assert not is_moe([document()])


# --- as a run


def test_the_command_line_makes_and_plans_mixtures(here, capsys):
    (here / "moe.yml").write_text(json.dumps(document(dtype="bfloat16")))
    shown = command(capsys, "plan", here / "moe.yml")
    assert shown.status == 0, shown.err
    assert "mixtral" in shown.out
    done = command(capsys, "run", here / "moe.yml", "--out", here / "merged")
    assert done.status == 0, done.err
    assert gate(tensors(here / "merged"), 0).dtype == torch.bfloat16
    assert json.loads((here / "merged/config.json").read_text())["torch_dtype"] == "bfloat16"
    checked = command(capsys, "verify", here / "merged")
    assert checked.status == 0, checked.err


def test_bytes_do_not_depend_on_threads_memory_or_place(here):
    mixed(here, gate_mode="hidden_avg", resources=Resources(threads=1))
    tight = Resources(threads=3, max_memory=200_000_000)
    mixed(here, gate_mode="hidden_avg", out="again", resources=tight)
    assert digests(here / "merged") == digests(here / "again")


@pytest.fixture
def killable(here):
    plain = [{"source_model": "./a", "noise_scale": 0.1}, {"source_model": "./b"}]
    fields = document(gate_mode="random", experts=plain)
    (here / "recipe.yaml").write_text(json.dumps(fields))
    return here


def test_a_killed_run_goes_on_to_the_same_bytes(killable):
    whole = attempt(killable, "--out", "merged")
    assert whole.status == 0, whole.err
    expected = digests(killable / "merged")
    shutil.rmtree(killable / "merged")
    assert attempt(killable, "--out", "merged", die_at=whole.calls // 2).status < 0
    assert not (killable / "merged/config.json").exists()
    done = attempt(killable, "--out", "merged")
    assert "going on" in done.err
    assert digests(killable / "merged") == expected


def test_what_gates_depend_on_makes_a_run_start_over(killable):
    cut = attempt(killable, "--out", "merged", die_at=40)
    assert cut.status < 0
    fields = json.loads((killable / "recipe.yaml").read_text())
    (killable / "recipe.yaml").write_text(json.dumps(fields | {"seed": 3}))
    done = attempt(killable, "--out", "merged")
    assert done.status == 0, done.err
    assert "starting over: the recipe changed: seed" in done.err


def test_other_prompts_are_another_plan(here):
    from mergepipe.pipeline.dependencies import dependencies

    one, two = (prepared(here, experts=[expert("a", 0), expert("b", at)]) for at in (1, 2))
    first, second = (dependencies(ready, {})["plans"] for ready in (one, two))
    assert first != second
    assert first == dependencies(prepared(here), {})["plans"]
