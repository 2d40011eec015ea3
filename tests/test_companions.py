"""Files beside the weights: copied byte for byte, from the model that the recipe names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, write_json
from test_tokenizer import tokenizer

from mergepipe.errors import InputError, Problems
from mergepipe.pipeline import merge, prepare
from mergepipe.write.files import write_companions

SPACED = '{"chat_template": "{{ base }}",   "model_max_length": 7, "ä": "\\u00e4"}\r\n'


@pytest.fixture
def models(tmp_path) -> Path:
    """A base and a chat model with tokenizers, each with its own chat template."""
    for seed, name in enumerate(("base", "chat")):
        folder = llama(tmp_path / name, seed=seed)
        write_json(folder / "tokenizer.json", tokenizer())
        write_json(folder / "generation_config.json", {"eos_token_id": 2, "from": name})
        (folder / "tokenizer_config.json").write_bytes(SPACED.replace("base", name).encode())
    return tmp_path


def companions(models: Path, **labels: str) -> tuple[Path, list[str]]:
    """What stands beside a merge with the files of `labels` (by default, the base's)."""
    folder, problems = models / "result", Problems()
    folder.mkdir()
    named = {"config": "base", "tokenizer": "base", "chat_template": "base"} | labels
    paths = {kind: models / label for kind, label in named.items()}
    write_companions(folder, **paths, dtype=None, problems=problems)
    return folder, problems.warnings


def template(folder: Path) -> Any:
    """The chat template as loaders find it: the file first."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    return json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")


def test_tokenizer_files_are_the_same_bytes(models):
    for name in ("vocab.txt", "merges.txt", "tokenizer.model", "qwen.tiktoken"):
        (models / "base" / name).write_bytes(b"\xff\r\n" + name.encode())
    folder, warnings = companions(models)
    assert warnings == []
    for file in (models / "base").glob("*"):
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (folder / file.name).read_bytes() == file.read_bytes()


def test_the_recipe_chooses_tokenizer_and_chat_template(models):
    recipe = {
        "mergepipe": 1,
        "models": {"base": "./base", "chat": "./chat"},
        "merge": {"method": "linear", "models": {"base": {}, "chat": {}}},
        "chat_template": "chat",
        "output": {"path": "result"},
    }
    folder = merge(prepare(write_json(models / "recipe.yaml", recipe))).folder
    assert template(folder) == "{{ chat }}"
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    assert settings == {"model_max_length": 7, "ä": "ä"}
    assert json.loads((folder / "generation_config.json").read_bytes())["from"] == "base"


def test_the_tokenizers_own_template_file_stays_behind(models):
    (models / "base" / "chat_template.jinja").write_text("{{ file }}", encoding="utf-8")
    assert template(companions(models, chat_template="chat")[0]) == "{{ chat }}"


def test_a_template_file_wins_over_the_setting(models):
    (models / "chat" / "chat_template.jinja").write_text("{{ file }}", encoding="utf-8")
    assert template(companions(models, chat_template="chat")[0]) == "{{ file }}"


def test_named_templates_travel_together(models):
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write_json(models / "chat" / "tokenizer_config.json", {"chat_template": several})
    assert template(companions(models, chat_template="chat")[0]) == several


def test_a_folder_of_templates_travels_too(models):
    (models / "base" / "additional_chat_templates").mkdir()
    (models / "base" / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    folder, _ = companions(models)
    assert (folder / "additional_chat_templates" / "rag.jinja").read_text() == "{{ rag }}"


def test_no_template_where_the_recipe_asks_for_one_is_said(models):
    write_json(models / "chat" / "tokenizer_config.json", {})
    folder, warnings = companions(models, chat_template="chat")
    assert warnings == ["chat: has no chat template; the result has none either"]
    assert template(folder) is None


def test_a_broken_tokenizer_config_is_named(models):
    (models / "chat" / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"chat/tokenizer_config.json: not JSON"):
        companions(models, chat_template="chat")


def test_a_tokenizers_own_code_is_copied_and_said(models):
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
    write_json(models / "chat" / "tokenizer_config.json", settings)
    (models / "chat" / "tokenization_x.py").write_text("raise SystemExit\n")
    folder, warnings = companions(models, tokenizer="chat", chat_template="chat")
    assert (folder / "tokenization_x.py").exists()
    assert "copied, not run" in warnings[0]


def test_the_modules_of_a_sentence_encoder_are_copied(models):
    paths = ["", "..", ["x"], "1_Pooling", "2_Normalize", "../chat"]
    write_json(models / "base" / "modules.json", [{"path": path} for path in paths])
    (models / "base" / "1_Pooling").mkdir()
    write_json(models / "base" / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    folder, _ = companions(models)
    assert (folder / "modules.json").exists()
    assert (folder / "1_Pooling" / "config.json").exists()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"1_Pooling"}


def test_names_of_disks_are_left_out_of_every_part_of_the_config(models):
    file = models / "base" / "config.json"
    inner = {"_name_or_path": "/home/someone", "dtype": "float32"}
    write_json(file, json.loads(file.read_bytes()) | {"text_config": inner, "_name_or_path": "/x"})
    folder, _ = companions(models)
    written = json.loads((folder / "config.json").read_bytes())
    assert "_name_or_path" not in written
    assert written["text_config"] == {"dtype": "float32"}
