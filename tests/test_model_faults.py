"""An expert that does not fit its base: refused in words, or merged with a warning, end to end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, llama, random_tensors, write_json, write_safetensors
from command_line import HUB_TOKEN, Said, assert_clean, command, listing
from faulty import MOST_SECONDS, Row
from safetensors.torch import load_file

BAD = "expert_bad"
GATE = "model.layers.1.mlp.gate_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"
ABSENT = ("missing", "absent")
RECIPE = """\
mergepipe: 1
models: {{base: ./base, expert_b: ./expert_b, expert_bad: {path}}}
merge:
  method: {method}
  base: base
  models: {{expert_b: {{weight: 0.5}}, expert_bad: {{weight: 0.5}}}}
output: {{path: ./merged}}
"""


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    """Edit the tensors of the model's file; `edit` gives new ones, or changes them in place."""

    def harm(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        write_safetensors(file, edit(tensors) or tensors)

    return harm


def without(part: str) -> Callable[[Path], Any]:
    return weights(lambda tensors: {k: v for k, v in tensors.items() if part not in k})


def renamed(rename: Callable[[str], str]) -> Callable[[Path], Any]:
    return weights(lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def filled(name: str, value: float, count: int) -> Callable[[Path], Any]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[:count] = value

    return weights(edit)


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Path], Any]:
    return weights(lambda tensors: tensors | {name: tensor})


def with_config(**fields: Any) -> Callable[[Path], Any]:
    return lambda folder: edit_json(folder / "config.json", **fields)


def crowded(folder: Path) -> None:
    """Add 50000 tensors without values: 4 MB of header."""
    extra = {f"extra.{i}.{'x' * 20}": torch.empty(0) for i in range(50_000)}
    weights(lambda tensors: tensors | extra)(folder)


def gpt2(folder: Path) -> None:
    shapes = {"transformer.wte.weight": (320, 64), "transformer.h.0.ln_1.weight": (64,)}
    write_safetensors(folder / "model.safetensors", random_tensors(shapes))
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 1,
    }
    write_json(folder / "config.json", config | {"vocab_size": 320})


def custom_code(folder: Path) -> None:
    code = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    with_config(model_type="evil", architectures=["Evil"], auto_map=code)(folder)
    (folder / "modeling_evil.py").write_text("open('pwned', 'w')")


def adapter_only(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2})
    write_safetensors(folder / "adapter_model.safetensors", {"x": torch.zeros(2)})


REFUSED = (
    Row("one required tensor is absent", without(GATE), (GATE,), ABSENT),
    Row("all of layer 1 is absent", without("layers.1."), ("model.layers.1.",), ABSENT),
    Row(
        "tensor names with a 'module.' prefix",
        renamed(lambda name: f"module.{name}"),
        ("model.embed_tokens.weight", "module.model.embed_tokens.weight"),
        ABSENT,
    ),
    Row(
        "tensor names without the 'model.' prefix",
        renamed(lambda name: name.removeprefix("model.")),
        ("model.embed_tokens.weight",),
        ABSENT,
    ),
    Row(
        "gate_proj has shape [1, 64]: broadcasts",
        weights(lambda tensors: tensors | {GATE: tensors[GATE][:1]}),
        (GATE, "shape", "[1, 64]", "[128, 64]"),
    ),
    Row(
        "gate_proj is transposed",
        weights(lambda tensors: tensors | {GATE: tensors[GATE].T.contiguous()}),
        (GATE, "shape", "[64, 128]", "[128, 64]"),
    ),
    Row(
        "a required weight has shape [0, 64]",
        weights(lambda tensors: tensors | {KEY: tensors[KEY][:0]}),
        (KEY, "shape", "[0, 64]"),
    ),
    Row("another width", lambda folder: llama(folder, hidden=96), ("96", "64")),
    Row("another vocabulary", lambda folder: llama(folder, vocab=352), ("352", "320")),
    Row("3 layers", lambda folder: llama(folder, layers=3), ("3 layers", "2")),
    Row("a GPT-2", gpt2, ("GPT2LMHeadModel", "LlamaForCausalLM")),
    Row(
        "an architecture that nobody knows",
        with_config(model_type="frobnicate", architectures=["FrobnicateForCausalLM"]),
        ("FrobnicateForCausalLM", "LlamaForCausalLM"),
    ),
    Row("an unknown model_type and auto_map", custom_code, ("auto_map", "trust_remote_code")),
    Row("a LoRA adapter given as a model", adapter_only, ("adapter",), ("LoRA", "PEFT")),
    Row("a whole tensor of NaN", filled(QUERY, float("nan"), 4096), (QUERY, "nan", "4096")),
    Row("three NaN values in one weight", filled(QUERY, float("nan"), 3), (QUERY, "nan", "3")),
    Row("one +inf value in one weight", filled(GATE, float("inf"), 1), (GATE, "inf", "not finite")),
    Row(
        "a required tensor of integers",
        weights(lambda tensors: tensors | {GATE: tensors[GATE].to(torch.int32)}),
        (GATE,),
        ("I32 (not BF16)",),
    ),
)
SURVIVED = (
    Row("control: a healthy expert", lambda _: None),
    Row("sharded, fp32", lambda folder: (folder / "model.safetensors").unlink() or llama(folder, shards=3, dtype="F32")),
    Row("legacy inv_freq buffers", with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8))),
    Row(
        "an adapter left unmerged beside the weights",
        with_tensor("model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(2, 64)),
        ("lora_A", BAD),
    ),
    Row("50000 extra tensors", crowded, ("50000", BAD)),
    Row(
        "a tensor named with ANSI escapes, a newline and a NUL",
        with_tensor("evil\x1b[31m\n\0\u202ename", torch.ones(2)),
        (r"evil\x1b[31m\n\x00\u202ename",),
    ),
    Row("a tensor named '../../../../evil'", with_tensor("../../../../evil", torch.ones(2)), ("../../../../evil",)),
    Row("a token-like string in config.json", with_config(hub_token=HUB_TOKEN)),
    Row("_name_or_path is a script tag", with_config(_name_or_path="<script>alert(1)</script>")),
    Row("auto_map beside a known model_type", with_config(auto_map={"AutoModel": "evil.Evil"}), ("auto_map",)),
    Row("__metadata__ of the expert", weights(lambda tensors: tensors)),
)  # fmt: skip
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "```](javascript:alert(1))\n# owned",
    "with spaces, àccents, 漢字 and \u202ertl",
    "$(touch pwned) `touch pwned` ; rm",
    "%s{0}{{}}[red]markup[bold]",
    "x" * 255,
)


def table(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.what) for row in rows])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "expert_b", BAD)):
        llama(tmp_path / name, seed=seed)
    return tmp_path


def run(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    method: str = "task_arithmetic",
    path: str = f"./{BAD}",
) -> Said:
    """Run a merge of the base and both experts, in little time."""
    text = RECIPE.format(method=method, path=json.dumps(path))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    began = time.monotonic()
    said = command(capsys, "run", folder / "recipe.yaml", "--threads", "2")
    assert time.monotonic() - began < MOST_SECONDS
    assert_clean(said.out + said.err)
    assert not Path("pwned").exists()
    return said


def assert_merged(folder: Path) -> None:
    tensors = load_file(folder / "merged" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {
        k: (v.shape, v.dtype) for k, v in base.items()
    }
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@table(REFUSED)
def test_an_expert_that_does_not_fit_is_refused_and_nothing_is_left(row, models, capsys):
    row.harm(models / BAD)
    before = {*listing(models), "recipe.yaml"}
    said = run(models, capsys)
    assert said.status == 2, said
    assert all(word in said.err for word in (BAD, *row.names)), said.err
    assert not row.one_of or any(word in said.err for word in row.one_of), said.err
    assert set(listing(models)) == before


@table(SURVIVED)
def test_an_expert_that_is_odd_but_fits_is_merged(row, models, capsys):
    row.harm(models / BAD)
    said = run(models, capsys)
    assert said.status == 0, said
    assert all(word in said.err for word in row.names), said.err
    assert_merged(models)
    assert HUB_TOKEN not in (models / "merged" / "config.json").read_text()


@table(tuple(row for row in SURVIVED if row.harm is not crowded))
def test_the_plan_accounts_for_every_tensor_of_every_input(row, models, capsys):
    row.harm(models / BAD)
    run(models, capsys)
    assert_clean(command(capsys, "plan", models / "recipe.yaml").out)
    said = command(capsys, "plan", models / "recipe.yaml", "--json")
    (stage,) = json.loads(said.out)["stages"]
    used = {(one["model"], one["tensor"]) for step in stage["steps"] for one in step["inputs"]}
    dropped = {(one["model"], one["tensor"]) for one in stage["dropped"]}
    assert not used & dropped
    for label in ("base", "expert_b", BAD):
        names = {name for model, name in used | dropped if model == label}
        assert names == stored_names(models / label)


def stored_names(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        found |= set(header) - {"__metadata__"}
    assert found
    return found


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_model_folder_may_have_any_name(name, models, capsys):
    (models / BAD).rename(models / name)
    said = run(models, capsys, path=f"./{name}")
    assert said.status == 0, said
    assert_merged(models)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_fault_in_a_folder_of_any_name_is_told_without_its_control_characters(
    name, models, capsys
):
    without(GATE)(models / BAD)
    (models / BAD).rename(models / name)
    said = run(models, capsys, path=f"./{name}")
    assert said.status == 2
    assert GATE in said.err


def test_a_credential_in_the_config_of_the_base_is_not_passed_on(models, capsys):
    with_config(hub_token=HUB_TOKEN, nested={"a": [HUB_TOKEN]})(models / "base")
    said = run(models, capsys)
    assert said.status == 0
    assert "hub_token" in said.err
    for file in (models / "merged").iterdir():
        assert HUB_TOKEN.encode() not in file.read_bytes()


def test_all_that_is_wrong_with_all_experts_is_reported_at_once(models, capsys):
    without(GATE)(models / BAD)
    weights(lambda tensors: tensors | {QUERY: tensors[QUERY][:1]})(models / BAD)
    without("model.norm.weight")(models / "expert_b")
    said = run(models, capsys)
    assert said.status == 2
    assert all(word in said.err for word in (GATE, QUERY, "model.norm.weight", "expert_b", BAD))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "dare_linear"])
def test_nan_is_found_whatever_the_method(method, models, capsys):
    filled(QUERY, float("nan"), 1)(models / BAD)
    before = {*listing(models), "recipe.yaml"}
    said = run(models, capsys, method)
    assert (said.status, QUERY in said.err, "nan" in said.err) == (2, True, True)
    assert set(listing(models)) == before


def test_an_older_result_stays_as_it_was_when_a_merge_fails(models, capsys):
    run(models, capsys)
    before = (models / "merged" / "model.safetensors").read_bytes()
    filled(QUERY, float("nan"), 1)(models / BAD)
    said = command(capsys, "run", models / "recipe.yaml", "--overwrite")
    assert said.status == 2
    assert (models / "merged" / "model.safetensors").read_bytes() == before


def test_dare_with_density_0_gives_the_base(models, capsys):
    run(models, capsys, "dare_ties")
    text = (models / "recipe.yaml").read_text().replace("weight: 0.5", "density: 0")
    (models / "recipe.yaml").write_text(text)
    assert command(capsys, "run", models / "recipe.yaml", "--overwrite").status == 0
    merged, base = (load_file(models / name / "model.safetensors") for name in ("merged", "base"))
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_an_expert_whose_tokens_have_other_ids_is_refused_without_alignment(models, capsys):
    for name in ("base", "expert_b", BAD):
        ids = range(320) if name != BAD else [*range(300), *reversed(range(300, 320))]
        vocab = (
            {f"t{i}": i for i in ids}
            if name != BAD
            else dict(zip(map("t{}".format, range(320)), ids, strict=True))
        )
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
        write_json(models / name / "tokenizer.json", {"version": "1.0", "model": model})
    said = run(models, capsys)
    assert said.status == 2
    assert BAD in said.err
    assert "tokenizer" in said.err


LOST = {
    "a layer": ("model.layers.1.", "9 tensors are missing that the others have"),
    "a matrix": (GATE, "1 tensors are missing that the others have: " + GATE),
    "its embedding": ("embed_tokens", "1 tensors are missing that the others have"),
    "its last norm": ("model.norm", "1 tensors are missing that the others have: model.norm"),
}


@pytest.mark.parametrize("label", ["base", "tied", "buffer", "not-used"])
@pytest.mark.parametrize("what", LOST)
def test_a_base_that_lost_tensors_makes_no_model_without_them(
    what: str, label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, words = LOST[what]
    for seed, name in enumerate((label, "expert")):
        llama(tmp_path / name, seed=seed, layers=3)
    without(part)(tmp_path / label)
    merge = {"method": "task_arithmetic", "base": label, "models": {"expert": {"weight": 0.5}}}
    models = {name: f"./{name}" for name in (label, "expert")}
    recipe = {"mergepipe": 1, "models": models, "merge": merge}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    said = command(capsys, "run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert said.status == 2
    assert words in said.err
    assert not (tmp_path / "out").exists()
