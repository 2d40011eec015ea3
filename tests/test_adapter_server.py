"""A base whose LoRA adapters are loaded over HTTP, as its clients and strangers see it."""

from __future__ import annotations

import json
import shutil

import httpx2
import pytest
import yaml
from merge_service import ADAPTERS, QUICKSTART, serving

from mergepipe.errors import InputError
from mergepipe.service.keys import add_key
from mergepipe.service.pool import read_pool

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TEXT = "    assert 27 - 2 == 25\n"


def write_pool(folder, **fields):
    """A pool of the quickstart base, with three adapters to be loaded."""
    (folder / "adapters").mkdir()
    for name in ("sum", "difference", "python"):
        shutil.copytree(ADAPTERS / name, folder / "adapters" / name)
    pool = {"pool": 1, "base": "base", "models": {"base": str(QUICKSTART / "base")}}
    pool |= {"load_from": "./adapters", **fields}
    (folder / "pool.yaml").write_text(yaml.safe_dump(pool))
    return folder / "pool.yaml"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    with serving(write_pool(folder)) as found:
        found.folder = folder / "adapters"
        yield found


def load(served, path, name="one", **options):
    body = {"lora_name": name, "lora_path": str(path)}
    return served.post("/v1/load_lora_adapter", body, **options)


def unload(served, name="one", **options):
    return served.post("/v1/unload_lora_adapter", {"lora_name": name}, **options)


@pytest.fixture
def loaded(served):
    """The adapter `sum`, by the name `one`."""
    assert load(served, served.folder / "sum").status_code == 200
    yield served
    unload(served)


def scores(served, model, **options):
    body = {"model": model, "prompt": TEXT, "max_tokens": 1, "echo": True, "logprobs": 0}
    said = served.post("/v1/completions", body, **options)
    return said.json()["choices"][0]["logprobs"]["token_logprobs"] if said.is_success else said


@pytest.fixture(scope="module")
def by_peft():
    """What PEFT makes of the base with the adapter `sum`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "base")
    model = PeftModel.from_pretrained(base, ADAPTERS / "sum").eval()
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    ids = [first, *tokenizer.encode(TEXT, add_special_tokens=False)]
    with torch.inference_mode():
        table = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [table[at, token].item() for at, token in enumerate(ids[1:])]


def test_an_adapter_answers_as_peft_has_it(loaded, by_peft):
    assert scores(loaded, "one")[1:-1] == pytest.approx(by_peft, abs=2e-5)


def test_the_base_is_to_the_last_bit_what_it_was_before_and_while_adapters_are_loaded(served):
    before = scores(served, "base")
    for name in ("sum", "python"):
        load(served, name, name)
        assert scores(served, name) != before
    assert scores(served, "base") == before
    assert [unload(served, name).status_code for name in ("sum", "python")] == [200, 200]


def test_answers_are_those_that_clients_of_vllm_know(served):
    path = served.folder / "difference"
    said = [load(served, path), load(served, path), unload(served), unload(served)]
    assert [one.status_code for one in said] == [200, 400, 200, 404]
    assert said[0].text == "Success: LoRA adapter 'one' added successfully."
    assert said[1].json()["error"]["message"].endswith("'one' has already been loaded.")
    assert said[2].text == "Success: LoRA adapter 'one' removed successfully."
    assert said[3].json()["error"]["message"] == "The lora adapter 'one' cannot be found."


def test_models_are_listed_with_their_parents(loaded):
    base, one = loaded.ask("GET", "/v1/models").json()["data"]
    assert (base["id"], base["parent"]) == ("base", None)
    assert (one["id"], one["parent"]) == ("one", "base")
    assert one["root"] == str(loaded.folder / "sum")


def test_an_adapter_that_was_unloaded_is_no_model(loaded):
    unload(loaded)
    assert scores(loaded, "one").status_code == 404
    assert (loaded.folder / "sum" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../outside", 403),
        ("sum/../../outside", 403),
        ("/etc", 403),
        ("%2e%2e/outside", 404),
        ("..\\outside", 404),
        ("link", 403),
        ("half-linked", 403),
        ("nul\0", 403),
        ("", 404),
        (".", 404),
        ("absent", 404),
        ("pickled", 404),
        ("x" * 3000, 404),
    ],
)
def test_only_what_lies_in_the_folder_is_read(served, path, status):
    folder = served.folder
    if not (folder / "link").exists():
        shutil.copytree(ADAPTERS / "sum", folder.parent / "outside")
        (folder / "link").symlink_to(folder.parent / "outside")
        for name in ("half-linked", "pickled"):
            shutil.copytree(ADAPTERS / "sum", folder / name)
        weights = "adapter_model.safetensors"
        (folder / "half-linked" / weights).unlink()
        (folder / "half-linked" / weights).symlink_to(folder.parent / "outside" / weights)
        (folder / "pickled" / weights).rename(folder / "pickled" / "adapter_model.bin")
    said = load(served, path)
    assert said.status_code == status
    assert str(folder.parent) not in said.text
    assert len(served.ask("GET", "/v1/models").json()["data"]) == 1


@pytest.mark.parametrize("name", ["base", "", "a/b", "a b", "x" * 150, "\n"])
def test_names_that_are_none_are_refused(served, name):
    assert load(served, "sum", name).status_code == 400


def test_what_is_no_adapter_of_the_base_is_refused_without_naming_places(served):
    for name, change in (("damaged", b"\0" * 100), ("foreign", None)):
        shutil.copytree(ADAPTERS / "sum", served.folder / name)
        weights = served.folder / name / "adapter_model.safetensors"
        weights.write_bytes(change or weights.read_bytes().replace(b"layers.0.", b"layers.9."))
        said = load(served, name)
        assert said.status_code == 400
        assert str(served.folder) not in said.text
    assert "the base has no matrix 'model.layers.9" in said.text


def test_each_key_has_adapters_of_its_own(tmp_path):
    file = write_pool(tmp_path, keys="./keys")
    keys = [add_key(tmp_path / "keys", name) for name in ("alice", "bob")]
    alice, bob = ({"authorization": f"Bearer {key}"} for key in keys)
    with serving(file) as served:
        assert load(served, "sum").status_code == 401
        assert load(served, "sum", headers=alice).status_code == 200
        assert scores(served, "one", headers=bob).status_code == 404
        assert unload(served, headers=bob).status_code == 404
        assert isinstance(scores(served, "one", headers=alice), list)


def test_more_than_memory_holds_is_not_loaded(tmp_path):
    with serving(write_pool(tmp_path, limits={"memory": "400KB"})) as served:
        found = [load(served, name, name).status_code for name in ("sum", "difference")]
        assert found == [200, 400]
        unload(served, "sum")
        assert load(served, "difference", "difference").status_code == 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": {"linear": None}}, "either `methods` or `load_from`"),
        ({"load_from": None}, "either `methods` or `load_from`"),
        ({"models": {"base": "./a", "other": "./b"}}, "the base is the only model"),
    ],
)
def test_a_pool_either_merges_or_loads(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        read_pool(write_pool(tmp_path, **change))


def test_a_folder_that_is_not_there_is_named_at_the_start(tmp_path):
    with (
        pytest.raises(InputError, match="no such folder to load adapters from"),
        serving(write_pool(tmp_path, load_from="./absent")),
    ):
        pass


def test_other_sites_and_names_of_hosts_are_refused(served):
    body = {"lora_name": "one", "lora_path": "sum"}
    for headers, status in (({"origin": "https://evil.example"}, 403), ({"host": "evil"}, 421)):
        asked = httpx2.post(
            f"{served.url}/load_lora_adapter", json=body, headers=headers, trust_env=False
        )
        assert asked.status_code == status
        assert "error" in json.loads(asked.text)
