"""A small checkpoint to publish, and a hub to publish it to."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import write_json
from hub_server import TOKEN, hub_running
from hub_state import Hub
from huggingface_hub import constants
from merges import TIES, run, write_models
from test_tokenizer import tokenizer

from mergepipe import pipeline
from mergepipe.manifest import MANIFEST_FILE, manifest_bytes
from mergepipe.publish import Options, Published

ODD = "größe #1?%20 & co.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several shards."""
    models = write_models(tmp_path_factory.mktemp("publish"))
    write_json(models / "base" / "tokenizer.json", tokenizer())
    templates = models / "base" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool use #1?% é.jinja").write_text("{{ messages }}", encoding="utf-8")
    run(models, TIES, output={"max_shard_size": "3KB"})
    return models / "merged"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "merged"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that knows one token; waits are short."""
    wait = time.sleep
    with hub_running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.01)))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
        huggingface_hub.close_session()


class Said(list[str]):
    """What was told."""

    @property
    def text(self) -> str:
        return "\n".join(self)


def publish(
    folder: Path,
    *targets: str,
    said: Said | None = None,
    environment: dict[str, str] | None = None,
    tell: Callable[[str], None] | None = None,
    strict: bool = False,
    allow_paths: bool = False,
    dry_run: bool = False,
    **options: object,
) -> tuple[Published, ...]:
    return pipeline.publish(
        folder,
        targets,
        Options(**options),  # type: ignore[arg-type]
        environment=environment or {},
        tell=tell or (Said() if said is None else said).append,
        strict=strict,
        allow_paths=allow_paths,
        dry_run=dry_run,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def published_files(folder: Path) -> dict[str, bytes]:
    """What of a checkpoint is published."""
    return {name: data for name, data in contents(folder).items() if name != "run.json"}


def reseal(folder: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    del content["blake3"]
    edit(content)
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(content))


def rename_shard(folder: Path, old: str, new: str) -> None:
    """Give a shard another name, everywhere."""
    (folder / old).rename(folder / new)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(old, new), encoding="utf-8")

    def edit(content: dict) -> None:
        output = content["output"]
        output["shards"][new] = output["shards"].pop(old)
        for tensor in output["tensors"].values():
            tensor["shard"] = new if tensor["shard"] == old else tensor["shard"]
        refresh(folder, index.name, output)

    reseal(folder, edit)


def refresh(folder: Path, name: str, output: dict) -> None:
    from mergepipe.digest import digest_file

    path = folder / name
    output["files"][name] = {"size": path.stat().st_size, "blake3": digest_file(path)}


def shards(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(found) >= 5
    return found
