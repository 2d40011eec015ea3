"""Publishing to a registry of images: by tag, layer by layer, as `oras` fetches it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import requests.adapters
from oras.client import OrasClient
from publishing import (
    ODD,
    contents,
    folder,
    made,
    publish,
    published_files,
    rename_shard,
    shards,
)
from registry_server import PASSWORD, USER, Registry, registry_running
from urllib3.util import Retry

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.publish.targets import oci

__all__ = ["folder", "made"]  # fixtures


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(oci, "_WAITS_SECONDS", (0.0,) * 3)
    with registry_running() as running:
        yield running


def log_in(host: str, home: Path) -> None:
    """Note who we are, as `docker login` does."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def test_oras_fetches_what_was_published(registry, folder, tmp_path):
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    OrasClient(insecure=True).pull(f"{registry.host}/me/merged:v1", outdir=str(tmp_path / "got"))
    assert contents(tmp_path / "got") == published_files(folder)


def test_every_file_is_a_layer(registry, folder):
    rename_shard(folder, shards(folder)[0], ODD)
    done = publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.files("v1") == published_files(folder)
    assert set(done[0].sent) == set(published_files(folder))
    assert registry.requests[-1] == "PUT /v2/me/merged/manifests/v1"


def test_a_registry_that_has_it_gets_nothing(registry, folder):
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    registry.requests.clear()
    assert publish(folder, f"oci://{registry.host}/me/merged:v1")[0].sent == ()
    assert registry.requests == ["GET /v2/me/merged/manifests/v1"]


def test_another_tag_shares_the_layers(registry, folder):
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    registry.requests.clear()
    publish(folder, f"oci://{registry.host}/me/merged:v2")
    assert [one for one in registry.requests if one.startswith("PUT")] == [
        "PUT /v2/me/merged/manifests/v2"
    ]


def test_an_upload_that_failed_goes_on_and_the_tag_comes_last(registry, folder):
    registry.failures = [201, *[500] * 4]  # the first is taken for sent, and is not
    with pytest.raises(EnvironmentFault, match="500"):
        publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.tags == {}
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.files("v1") == published_files(folder)


def test_what_passes_is_waited_for(registry, folder):
    registry.failures = [429, 503]
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.files("v1") == published_files(folder)


def test_a_tag_of_another_model_is_moved_only_when_asked(registry, folder):
    target = f"oci://{registry.host}/me/merged:v1"
    publish(folder, target)
    before = registry.tags["v1"]
    rename_shard(folder, shards(folder)[0], ODD)
    with pytest.raises(InputError, match="holds something else"):
        publish(folder, target)
    assert registry.tags["v1"] == before
    publish(folder, target, overwrite=True)
    assert registry.files("v1") == published_files(folder)


def test_an_image_is_not_replaced(registry, folder):
    registry.tags["v1"] = b'{"layers": [{"digest": "sha256:0"}]}'
    with pytest.raises(InputError, match="another tag"):
        publish(folder, f"oci://{registry.host}/me/merged:v1", overwrite=True)


@pytest.mark.parametrize("asks", ["Basic", "Bearer"])
def test_who_is_logged_in_may_push(registry, folder, tmp_path, asks):
    registry.asks = asks
    with pytest.raises(EnvironmentFault, match=f"docker login {registry.host}"):
        publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.blobs == {}
    log_in(registry.host, tmp_path / "home")
    publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.files("v1") == published_files(folder)


def test_a_file_that_changes_on_the_way_gets_no_tag(registry, folder, monkeypatch):
    ask = oci.Registry._ask

    def harm(self, method, *more, **named):
        if method == "POST":
            (folder / "tokenizer.json").write_text("{}")
        return ask(self, method, *more, **named)

    monkeypatch.setattr(oci.Registry, "_ask", harm)
    with pytest.raises(InputError, match=r"tokenizer\.json.*changed while"):
        publish(folder, f"oci://{registry.host}/me/merged:v1")
    assert registry.tags == {}


def test_an_address_that_nobody_answers_is_a_fault_of_the_environment(registry, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        publish(folder, f"oci://{host}/me/merged:v1")
    assert registry.requests == []


@pytest.mark.parametrize(
    "target", ["oci:x", "oci://host/name", "oci://host/NAME:v1", "oci:///x:v1", "oci://h/x:v 1"]
)
def test_what_is_no_name_in_a_registry_is_refused(folder, target):
    with pytest.raises(InputError, match="oci://host/name:tag"):
        publish(folder, target)


@pytest.mark.slow
def test_a_registry_that_others_wrote_takes_it(folder, tmp_path, monkeypatch):
    """Debian's docker-registry, which is CNCF's distribution."""
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["apt-get", "download", "docker-registry"], cwd=tmp_path, check=True)
    (package,) = tmp_path.glob("docker-registry*.deb")
    subprocess.run(["dpkg", "-x", package, tmp_path / "out"], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    command = [tmp_path / "out" / "usr" / "bin" / "docker-registry", "serve", "config.yml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for(f"http://{host}/v2/")
        publish(folder, f"oci://{host}/me/merged:v1")
        assert publish(folder, f"oci://{host}/me/merged:v1")[0].sent == ()
        OrasClient(insecure=True).pull(f"{host}/me/merged:v1", outdir=str(tmp_path / "pulled"))
        process.terminate()
    assert contents(tmp_path / "pulled") == published_files(folder)


def wait_for(url: str) -> None:
    adapter = requests.adapters.HTTPAdapter(max_retries=Retry(8, backoff_factor=0.1))
    with requests.Session() as session:
        session.mount(url, adapter)
        session.get(url, timeout=5)
