"""`extract-lora`: adapters held against the fine-tunes they come from, by PEFT and by us."""

from __future__ import annotations

import json

import pytest
import torch
from adapters import by_peft, by_us
from checkpoints import edit_json, llama, write_safetensors
from command_line import assert_clean, command, listing
from hypothesis import given
from hypothesis import strategies as st
from merges import digests, harm, tensors
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from mergepipe.errors import InputError
from mergepipe.lora import Options, extract, model_named, rows_of, share_held
from mergepipe.lora.factors import Spectrum, decompose, least_rank

FILE = "model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAN = float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def is_linear(name):
    return "_proj." in name


def fine_tuned(folder, base, change, **size):
    """Write a copy of `base` in which tensors are what `change(name, values, draw)` gives."""
    llama(folder, **size)
    draw = torch.Generator().manual_seed(7)
    new = {name: change(name, values, draw) for name, values in tensors(base).items()}
    write_safetensors(folder / FILE, new)
    return folder


def noise(_name, values, draw):
    return values + 0.01 * torch.randn(values.shape, generator=draw).to(values)


def linear_noise(name, values, draw):
    return noise(name, values, draw) if is_linear(name) else values


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("lora") / "base", dtype="F32")


@pytest.fixture(scope="module")
def expert(base):
    """A fine-tune in which every tensor changed."""
    return fine_tuned(base.parent / "expert", base, noise, dtype="F32")


def extracted(model, base, out, **options):
    sources = model_named(str(model), "model"), model_named(str(base), "base")
    return extract(*sources, out, Options(**options))


def config_of(adapter):
    return json.loads((adapter / CONFIG).read_text())


def relative_error(found, expected, base):
    """The Frobenius norm of what is missing, by that of the change."""
    return float((found - expected).double().norm() / (expected - base).double().norm())


# What comes out


def test_at_full_rank_the_adapter_gives_back_every_matrix(base, expert, tmp_path):
    extracted(expert, base, tmp_path / "lora", rank=64)
    peft, ours = (by(base, tmp_path / "lora") for by in (by_peft, by_us))
    before, after = tensors(base), tensors(expert)
    for name in filter(is_linear, before):
        assert_close(ours[name], after[name], rtol=0, atol=1e-8)
        assert_close(peft[name], after[name], rtol=0, atol=1e-7)
    assert torch.equal(ours["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_at_a_lower_rank_what_is_missing_is_the_tail_of_the_spectrum(base, expert, tmp_path, rank):
    result = extracted(expert, base, tmp_path / "lora", rank=rank)
    found = by_peft(base, tmp_path / "lora")
    before, after = tensors(base), tensors(expert)
    energy = {part.name: part.held / part.change for part in result.parts if part.rank}
    assert len(energy) == 14
    for name, held in energy.items():
        s = torch.linalg.svdvals((after[name] - before[name]).double())
        tail = float((s[rank:].square().sum() / s.square().sum()).sqrt())
        assert relative_error(found[name], after[name], before[name]) == pytest.approx(
            tail, 1e-4, 1e-6
        )
        assert held == pytest.approx(1 - tail**2, rel=1e-6)


def test_an_update_has_no_more_than_its_numerical_rank(base, tmp_path):
    def of_rank_3(name, values, draw):
        small = (values * 256).round() / 256  # few bits, so that sums are exact in fp32
        if not is_linear(name):
            return small
        b, a = (torch.randint(-2, 3, (n, 3), generator=draw).float() for n in values.shape)
        return small + b @ a.T / 64

    start = fine_tuned(tmp_path / "start", base, lambda _n, x, _d: (x * 256).round() / 256)
    expert = fine_tuned(tmp_path / "expert", base, of_rank_3)
    result = extracted(expert, start, tmp_path / "lora", rank=32)
    assert {part.rank for part in result.parts if part.how == "low rank"} == {3}
    assert config_of(tmp_path / "lora")["r"] == 3
    name = f"{Q_PROJ}.weight"
    assert_close(by_peft(start, tmp_path / "lora")[name], tensors(expert)[name], rtol=0, atol=1e-6)


def test_energy_gives_each_matrix_the_least_rank_that_keeps_it(base, expert, tmp_path):
    result = extracted(expert, base, tmp_path / "lora", energy=0.7, dtype="float32")
    before, after = tensors(base), tensors(expert)
    ranks = {part.name: part.rank for part in result.parts if part.rank}
    for name, rank in ranks.items():
        s = torch.linalg.svdvals((after[name] - before[name]).double()).square()
        assert s[: rank - 1].sum() < 0.7 * s.sum() <= s[:rank].sum()
    config = config_of(tmp_path / "lora")
    assert config["rank_pattern"] == config["alpha_pattern"] != {}
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    ours, peft = (by(base, tmp_path / "lora") for by in (by_us, by_peft))
    for name in ranks:
        assert_close(ours[name], peft[name], rtol=0, atol=1e-7)
        assert relative_error(ours[name], after[name], before[name]) ** 2 < 0.3001


def test_energy_has_a_largest_rank(base, expert, tmp_path):
    result = extracted(expert, base, tmp_path / "lora", energy=0.9, max_rank=6)
    assert {part.rank for part in result.parts if part.how == "low rank"} == {6}


def test_least_rank_on_a_worked_example():
    """Squares 16, 9, 4, 1 of 30 in all: shares 0.533, 0.833, 0.967, 1."""
    s = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    found = [least_rank(s, energy) for energy in (0.5, 0.54, 25 / 30, 0.9, 0.97, 1.0)]
    assert found == [1, 2, 2, 3, 4, 4]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_a_decomposition_is_of_the_matrix_it_was_made_from(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    b, a = decompose(matrix).factors(9, 0.25, distribute=seed % 2 == 0)
    assert_close(0.25 * b @ a, matrix.double(), rtol=0, atol=1e-12)


def test_a_matrix_of_zeros_has_rank_0():
    assert decompose(torch.zeros(3, 4)).rank == 0
    assert least_rank(decompose(torch.zeros(3, 4)).s, 0.9) == 0


def test_singular_values_are_shared_or_all_in_a():
    eye = torch.eye(2, dtype=torch.float64)
    found = Spectrum(eye, torch.tensor([4.0, 9.0], dtype=torch.float64), eye)
    shared, whole = found.factors(2, 1.0), found.factors(2, 1.0, distribute=False)
    assert [one.diag().tolist() for one in shared] == [[2, 3], [2, 3]]
    assert [one.diag().tolist() for one in whole] == [[1, 1], [4, 9]]


@pytest.mark.parametrize("options", [{"alpha": 16.0}, {"distribute_scale": False}], ids=str)
def test_how_scales_are_shared_changes_no_product(base, expert, tmp_path, options):
    extracted(expert, base, tmp_path / "plain", rank=4)
    extracted(expert, base, tmp_path / "other", rank=4, **options)
    plain, other = (by_peft(base, tmp_path / name) for name in ("plain", "other"))
    for name in plain:
        assert_close(other[name], plain[name], rtol=0, atol=1e-7)
    assert digests(tmp_path / "plain") != digests(tmp_path / "other")


def test_all_of_s_in_a_leaves_b_orthonormal(base, expert, tmp_path):
    extracted(expert, base, tmp_path / "lora", rank=4, distribute_scale=False)
    b = load_file(tmp_path / "lora" / WEIGHTS)[f"base_model.model.{Q_PROJ}.lora_B.weight"]
    assert_close(b.T @ b, torch.eye(4), rtol=0, atol=1e-6)


def test_the_same_extraction_gives_the_same_bytes(base, expert, tmp_path):
    for out in ("one", "two"):
        extracted(expert, base, tmp_path / out, rank=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("asked", [None, "float32", "float16"])
def test_factors_have_the_dtype_that_was_asked_for_or_the_fine_tune_s(tmp_path, asked):
    base, expert = (llama(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    result = extracted(expert, base, tmp_path / "lora", rank=64, dtype=asked)
    dtypes = {str(one.dtype) for one in load_file(tmp_path / "lora" / WEIGHTS).values()}
    assert dtypes == {f"torch.{asked or 'bfloat16'}"}
    lost = 1 - rows_of(result.parts)[0].energy
    assert lost < {None: 1e-4, "float16": 1e-6, "float32": 1e-12}[asked]  # rounding is counted


# Other modules


def gpt2(folder, seed):
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on Conv1D
def test_matrices_of_conv1d_layers_are_turned(tmp_path):
    base, expert = (gpt2(tmp_path / str(seed), seed) for seed in (0, 1))
    extracted(expert, base, tmp_path / "lora", rank=32, embeddings=True)
    assert config_of(tmp_path / "lora")["fan_in_fan_out"] is True
    after = tensors(expert)
    ours, peft = (by(base, tmp_path / "lora") for by in (by_us, by_peft))
    matrices = [name for name in after if name.endswith("weight") and ".c_" in name]
    assert len(matrices) == 8
    for name in (*matrices, "transformer.wte.weight"):
        assert_close(ours[name], after[name], rtol=0, atol=1e-6)
        assert_close(peft[name], after[name], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_taken_as_updates_when_asked_for(tmp_path, tied):
    models = [llama(tmp_path / str(s), seed=s, dtype="F32", tied=tied) for s in (0, 1)]
    result = extracted(models[1], models[0], tmp_path / "lora", rank=64, embeddings=True)
    after = tensors(models[1])
    ours, peft = (by(models[0], tmp_path / "lora") for by in (by_us, by_peft))
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        assert_close(ours[name], after[name], rtol=0, atol=1e-6)
        assert_close(peft[name], after[name], rtol=0, atol=1e-6)
    assert any("tied to the output head" in line for line in result.warnings) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_modules_stored_whole_are_exactly_the_fine_tune_s(tmp_path, tied):
    models = [llama(tmp_path / str(s), seed=s, dtype="F32", tied=tied) for s in (0, 1)]
    names = ["embed_tokens", "norm", f"{Q_PROJ}"]
    extracted(models[1], models[0], tmp_path / "lora", rank=4, save=tuple(names))
    after = tensors(models[1])
    ours, peft = (by(models[0], tmp_path / "lora") for by in (by_us, by_peft))
    for name in ("model.embed_tokens.weight", "model.norm.weight", f"{Q_PROJ}.weight"):
        assert torch.equal(ours[name], after[name])
        assert torch.equal(peft[name], after[name])
    saved = config_of(tmp_path / "lora")["modules_to_save"]
    assert saved == ["embed_tokens", Q_PROJ, "model.norm"]  # `norm` would mean others too


def test_whole_modules_of_wider_dtypes_come_first_so_that_all_is_aligned(tmp_path):
    def widened(name, values, draw):
        return noise(name, values.float() if "norm" in name else values, draw)

    size = {"hidden": 9, "vocab": 7}  # odd, so that a factor in bf16 ends at half a word
    base = llama(tmp_path / "base", **size)
    mixed = fine_tuned(tmp_path / "mixed", base, widened, **size)
    extracted(mixed, base, tmp_path / "lora", rank=1, save=("norm",))
    found = load_file(tmp_path / "lora" / WEIGHTS)
    assert torch.equal(
        found["base_model.model.model.norm.weight"], tensors(mixed)["model.norm.weight"]
    )


def test_what_did_not_change_is_not_in_the_adapter(base, tmp_path):
    def only_layer_1(name, values, draw):
        return linear_noise(name, values, draw) if "layers.1." in name else values

    expert = fine_tuned(tmp_path / "expert", base, only_layer_1, dtype="F32")
    result = extracted(expert, base, tmp_path / "lora", rank=64)
    assert not result.warnings
    assert share_held(result.parts) == pytest.approx(1)
    names = config_of(tmp_path / "lora")["target_modules"]
    assert len(names) == 7
    assert all(name.startswith("model.layers.1.") for name in names)
    name = "model.layers.1.mlp.up_proj.weight"
    assert_close(by_peft(base, tmp_path / "lora")[name], tensors(expert)[name], rtol=0, atol=1e-6)


GLOBS = {
    "include": ({"include": ("*.self_attn.*",)}, 8),
    "by tensor": ({"include": ("*q_proj.weight",)}, 2),
    "exclude": ({"exclude": ("*.mlp.*", "*.0.*v_proj")}, 7),
    "both": ({"include": ("*.mlp.*",), "exclude": ("model.layers.0.*",)}, 3),
}


@pytest.mark.parametrize(("options", "count"), GLOBS.values(), ids=GLOBS)
def test_globs_choose_the_matrices(base, expert, tmp_path, options, count):
    result = extracted(expert, base, tmp_path / "lora", rank=2, **options)
    assert sum(part.rank == 2 for part in result.parts) == count
    assert len(load_file(tmp_path / "lora" / WEIGHTS)) == 2 * count
    by_peft(base, tmp_path / "lora")  # which warns, an error here, of keys it misses


def test_shares_of_what_is_left_out_add_up(base, expert, tmp_path):
    result = extracted(expert, base, tmp_path / "lora", rank=64)
    before, after = tensors(base), tensors(expert)
    change = {name: float((after[name] - before[name]).double().square().sum()) for name in after}
    head = change["lm_head.weight"] / sum(change.values())
    assert f"lm_head: changed but is not in the adapter: {head:.2%}" in "\n".join(result.warnings)
    assert sum(row.change for row in rows_of(result.parts)) == pytest.approx(1)
    covered = sum(value for name, value in change.items() if is_linear(name))
    assert share_held(result.parts) == pytest.approx(covered / sum(change.values()))


def test_a_vocabulary_that_grew_is_named_and_does_not_hinder(base, tmp_path):
    expert = llama(tmp_path / "expert", seed=1, vocab=330, dtype="F32")
    result = extracted(expert, base, tmp_path / "lora", rank=2)
    assert "other shapes than in the base: model.embed_tokens.weight" in result.warnings[0]


# The command line


def run(capsys, *arguments):
    return command(capsys, "extract-lora", *arguments)


def test_the_command_prints_ranks_energy_and_what_is_not_covered(base, expert, tmp_path, capsys):
    said = run(capsys, expert, "--base", base, "--out", tmp_path / "lora", "--rank", "8")
    assert said.status == 0
    assert "q_proj" in said.out
    assert "energy kept" in said.out
    assert "warning: embed_tokens: changed but is not in the adapter" in said.err
    assert "14 updates" in said.err
    assert listing(tmp_path / "lora") == [CONFIG, WEIGHTS]


def test_json_has_every_tensor(base, expert, tmp_path, capsys):
    said = run(capsys, expert, "--base", base, "-o", tmp_path / "lora", "-r", "8", "--json")
    found = json.loads(said.out)
    assert len(found["tensors"]) == 21
    (q_proj,) = (one for one in found["kinds"] if one["kind"] == "q_proj")
    assert (q_proj["count"], q_proj["ranks"], q_proj["how"]) == (2, [8, 8], "low rank")
    assert 0 < q_proj["energy"] < 1
    assert 0 < found["held"] < 1


WRONG = {
    "rank and energy": (["--rank", "3", "--energy", "0.5"], "--rank is given too"),
    "largest of a rank": (["--max-rank", "3"], "limits --energy"),
    "energy of 0": (["--energy", "0"], "above 0"),
    "energy above 1": (["--energy", "1.5"], "at most 1"),
    "energy of NaN": (["--energy", "nan"], "at most 1"),
    "alpha of 0": (["--alpha", "0"], "--alpha"),
    "no dtype": (["--dtype", "bfloat"], "did you mean 'bfloat16'?"),
    "no such module": (["--save-module", "normm"], "did you mean 'norm'?"),
    "a glob that fits nothing": (["--include", "*.attention.*"], "fits no matrix"),
    "all excluded": (["--exclude", "*"], "no matrix is left"),
    "no device": (["--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_refused(expert, tmp_path, capsys, arguments, words):
    base = expert.parent / "base"
    said = run(capsys, expert, "--base", base, "--out", tmp_path / "lora", *arguments)
    assert said.status == 2
    assert words in said.err
    assert_clean(said.err)
    assert not listing(tmp_path)


UNFIT = {
    "the same model": (lambda _: None, "none of the matrices"),
    "holds NaN": (lambda f: harm(f, f"{Q_PROJ}.weight", NAN), f"{Q_PROJ}.weight: holds nan"),
    "NaN in a norm": (lambda f: harm(f, "model.norm.weight", NAN), "model.norm.weight: holds nan"),
    "other width": (lambda f: llama(f, hidden=96), "an adapter cannot change shapes"),
    "truncated": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-9]), "truncated"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "quantized": (lambda f: edit_json(f / "config.json", quantization_config={"a": 1}), "quantiz"),
}


@pytest.mark.parametrize(("spoil", "words"), UNFIT.values(), ids=UNFIT)
def test_a_model_that_cannot_be_used_is_refused_and_leaves_nothing(
    base, tmp_path, capsys, spoil, words
):
    spoil(llama(tmp_path / "model", dtype="F32"))
    said = run(capsys, tmp_path / "model", "--base", base, "--out", tmp_path / "lora")
    assert said.status == 2
    assert words in said.err
    assert_clean(said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_factor_that_does_not_fit_its_dtype_is_refused(base, tmp_path):
    expert = fine_tuned(tmp_path / "expert", base, lambda n, x, d: 1e12 * linear_noise(n, x, d))
    with pytest.raises(InputError, match="does not fit float16"):
        extracted(expert, base, tmp_path / "lora", rank=4, dtype="float16")


def test_a_folder_that_is_there_is_kept_without_overwrite(base, expert, tmp_path, capsys):
    out = tmp_path / "lora"
    assert run(capsys, expert, "--base", base, "--out", out, "--rank", "4").status == 0
    before = digests(out)
    said = run(capsys, expert, "--base", base, "--out", out, "--rank", "2")
    assert (said.status, "--overwrite" in said.err, digests(out)) == (2, True, before)
    again = run(capsys, expert, "--base", base, "--out", out, "--rank", "2", "--overwrite")
    assert again.status == 0
    assert config_of(out)["r"] == 2


def test_what_is_neither_folder_nor_hub_name_is_refused(base, tmp_path, capsys):
    said = run(capsys, "./nowhere", "--base", base, "--out", tmp_path / "lora")
    assert said.status == 2
    assert "./nowhere: is no folder here" in said.err
