"""What is published and what is not: only what was verified, and no secret of anybody's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import HUB_TOKEN, command
from publishing import (
    Said,
    contents,
    folder,
    made,
    publish,
    published_files,
    refresh,
    reseal,
    shards,
)
from recipe_texts import MERGE, parsed, refusal

from mergepipe.errors import DifferenceError, EnvironmentFault, InputError
from mergepipe.manifest import MANIFEST_FILE
from mergepipe.pipeline import publishing
from mergepipe.publish import target_names
from mergepipe.publish.item import Item, git_digest, item_of
from mergepipe.publish.secrets import find_secrets
from mergepipe.recipe import PublishSpec

__all__ = ["folder", "made"]  # fixtures
RECIPE = "mergepipe: 1\nmodels: {base: ./base, plain: ./plain}\n" + MERGE


def add_listed(folder: Path, name: str, text: str) -> None:
    """Put a file beside the weights that the manifest knows."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    reseal(folder, lambda content: refresh(folder, name, content["output"]))


@pytest.mark.parametrize(
    "name",
    [
        *(
            ".env",
            ".netrc",
            ".git/config",
            "optimizer.pt",
            "notes.txt",
            "README.md.swp",
            "trials.db",
        ),
        *("trace.jsonl", "sub/README.md", "id_rsa", "train.py"),
    ],
)
def test_what_is_on_no_list_stays_here(folder, tmp_path, name):
    before = published_files(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("password=hunter2hunter2")
    said = Said()
    if name == "optimizer.pt":  # which loaders would take for weights
        with pytest.raises(DifferenceError, match=r"optimizer\.pt"):
            publish(folder, str(tmp_path / "out"))
        return
    publish(folder, str(tmp_path / "out"), said=said)
    assert contents(tmp_path / "out") == before
    assert f"warning: {name}: not published" in said.text
    with pytest.raises(InputError, match="not published"):
        publish(folder, str(tmp_path / "again"), strict=True)


@pytest.mark.parametrize("name", [".env", "sub/.hidden.json", "state.pt", "run.sh"])
def test_of_what_the_manifest_lists_only_a_models_files_go(folder, tmp_path, name):
    add_listed(folder, name, "x")
    publish(folder, str(tmp_path / "out"))
    assert name not in contents(tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "results.jsonl", "report.html", "LICENSE", "NOTICE.txt", "model.sig"),
        *("mergepipe.json.sigstore.json", "signature.asc"),
    ],
)
def test_what_is_made_once_a_checkpoint_is_whole_goes_with_it(folder, tmp_path, name):
    (folder / name).write_text("{}\n")
    publish(folder, str(tmp_path / "out"))
    assert (tmp_path / "out" / name).read_text() == "{}\n"


def test_links_are_not_followed(folder, tmp_path):
    (tmp_path / "private").write_text("mine")
    (folder / "README.md").symlink_to(tmp_path / "private")
    publish(folder, str(tmp_path / "out"))
    assert "README.md" not in contents(tmp_path / "out")


SECRETS = {
    "hub": HUB_TOKEN,
    "openai": "sk-proj-abcdefghijklmnopqrstuvwxyz012345",
    "github": "github_pat_11ABCDEFG0abcdefghijklmnop",
    "gitlab": "glpat-abcdefghij0123456789",
    "google": "AIzaSyA-0123456789abcdefghijklmnopqrstu",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "aws": "aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "header": "Authorization: Bearer abcdefghijklmnop",
    "url": "https://me:hunter2@example.org/model",
    "variable": "correct-horse-battery",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("file", ["README.md", "results.jsonl"])
def test_a_secret_is_named_by_file_and_line_and_not_shown(folder, tmp_path, kind, file):
    secret = SECRETS[kind]
    (folder / file).write_text(f"fine\n\nhere: {secret}\n{secret}\n")
    with pytest.raises(InputError) as caught:
        publish(folder, str(tmp_path / "out"), environment={"MY_API_KEY": SECRETS["variable"]})
    assert f"{file}:3: holds what looks like a secret" in str(caught.value)
    assert len(caught.value.problems) == 1
    assert secret not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_secrets_in_files_of_the_model_are_found_too(folder, tmp_path):
    def edit(content: dict) -> None:
        content["recipe"]["note"] = SECRETS["github"]

    reseal(folder, edit)
    add_listed(folder, "chat_template.jinja", f"{{# {SECRETS['google']} #}}")
    with pytest.raises(InputError) as caught:
        publish(folder, str(tmp_path / "out"))
    where = [problem.where.rsplit("/", 1)[-1] for problem in caught.value.problems]
    assert [one.partition(":")[0] for one in where] == ["chat_template.jinja", MANIFEST_FILE]


def test_a_secret_in_the_metadata_of_weights_is_found(tmp_path):
    header = json.dumps({"__metadata__": {"note": HUB_TOKEN}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert len(list(find_secrets([item_of(tmp_path, "x.safetensors")], {}))) == 1


@pytest.mark.parametrize(
    "text", ["/home/ann/models/base", "/Users/ann/models", r"C:\\Users\\ann\\x", f"{Path.home()}/x"]
)
def test_home_folders_are_refused_unless_allowed(folder, tmp_path, text):
    (folder / "README.md").write_text(f"Made from {text}.\n")
    with pytest.raises(InputError) as caught:
        publish(folder, str(tmp_path / "out"))
    assert "README.md:1: names a folder in someone's home" in str(caught.value)
    assert "ann" not in str(caught.value.problems[0].what)
    publish(folder, str(tmp_path / "out"), allow_paths=True)
    assert (tmp_path / "out" / "README.md").exists()


def test_words_of_a_vocabulary_are_no_paths(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"/home/user/x": 1, "sk-": 2}))
    assert not list(find_secrets([item_of(tmp_path, "tokenizer.json")], {}))


@pytest.mark.parametrize(
    "text", ["home/page/of", "/homework/a/b", "token: none", "sk-learn", "http://host:80/a@b"]
)
def test_ordinary_text_is_no_secret(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert not list(find_secrets([item_of(tmp_path, "README.md")], {"A_KEY": "short"}))


def test_what_does_not_pass_verify_is_not_published(folder, tmp_path):
    shard = folder / shards(folder)[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DifferenceError, match="tensor"):
        publish(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [MANIFEST_FILE, "config.json", "model-00001-of-00005.safetensors"])
def test_what_lacks_a_file_is_not_published(folder, tmp_path, name):
    (folder / name).unlink()
    with pytest.raises((InputError, DifferenceError), match=name):
        publish(folder, str(tmp_path / "out"))


def test_what_runs_write_only_when_whole_is_not_published_before(folder, tmp_path):
    partial = folder.rename(folder.with_name(".merged.partial"))
    (partial / MANIFEST_FILE).unlink()
    with pytest.raises(InputError, match="no manifest"):
        publish(partial, str(tmp_path / "out"))


def test_large_files_and_many_files_are_warned_about(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_LARGE_BYTES", 2000)
    monkeypatch.setattr(publishing, "_MOST_FILES", 3)
    said = Said()
    publish(folder, str(tmp_path / "out"), said=said)
    assert "larger than 50 GB" in said.text
    assert "output.max_shard_size" in said.text
    assert f"{len(published_files(folder))} files: servers grow slow" in said.text


def test_git_names_blobs_as_we_do(tmp_path):
    (tmp_path / "x").write_text("hello\n")
    assert git_digest(item_of(tmp_path, "x")) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_file_that_is_gone_counts_as_changed(tmp_path):
    from mergepipe.publish import check_unchanged

    with pytest.raises(InputError, match="changed"):
        check_unchanged([Item("x", tmp_path / "x", 1, (1,))])


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "nowhere to publish"),
        (["hff:me/x"], "did you mean 'hf'"),
        (["folder:x"], "unknown kind of target"),
        (["bad:x", "hf:y"], "org/name"),
        ([""], "cannot be a folder"),
    ],
)
def test_targets_that_are_none_are_refused(folder, targets, words):
    with pytest.raises(InputError) as caught:
        publish(folder, *targets)
    assert words in str(caught.value)


@pytest.mark.parametrize("option", [{"public": True}, {"branch": "x"}, {"pr": True}])
def test_options_that_no_target_knows_are_refused(folder, tmp_path, option):
    with pytest.raises(InputError, match=f"--{next(iter(option))}: means nothing"):
        publish(folder, str(tmp_path / "out"), **option)


def test_every_kind_of_target_is_one_file():
    assert set(target_names()) >= {"folder", "hf", "oci", "storage"}


def test_the_command_publishes_and_says_where(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "publish", folder, "--to", "./out")
    assert said.status == 0
    assert said.out.startswith(f"out: sent {len(published_files(folder))} files, ")
    assert "config.json: copied" in said.err
    again = command(capsys, "publish", folder, "--to", "./out", "--json")
    (one,) = json.loads(again.out)
    assert (one["sent"], one["dry_run"], one["size"]) == ([], False, 0)
    assert set(one["there"]) == set(published_files(folder))


def test_the_command_only_says_with_dry_run(folder, tmp_path, capsys):
    said = command(capsys, "publish", folder, "--to", tmp_path / "out", "--dry-run")
    assert (said.status, "would send" in said.out) == (0, True)
    assert not (tmp_path / "out").exists()


def test_the_commands_exit_statuses_tell_why(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert command(capsys, "publish", folder, "--to", "hf:x").status == InputError.exit_status
    said = command(capsys, "publish", folder, "--to", "hf:me/x")
    assert said.status == EnvironmentFault.exit_status
    assert "HF_TOKEN" in said.err
    (folder / "config.json").write_text("{}")
    said = command(capsys, "publish", folder, "--to", tmp_path / "out")
    assert said.status == DifferenceError.exit_status


def test_a_recipe_says_where_to_publish(tmp_path):
    text = (
        RECIPE
        + "publish: {card: false, to: [./out, hf:me/x@v1, 's3://b/p', 'gguf:m.gguf?type=f16'], strict: true}\n"
    )
    targets = (f"{tmp_path}/out", "hf:me/x@v1", "s3://b/p", f"gguf:{tmp_path}/m.gguf?type=f16")
    assert parsed(tmp_path, text).publish == PublishSpec(False, targets, True)
    assert parsed(tmp_path, RECIPE + "publish: {}\n").publish == PublishSpec(True, (), False)
    assert parsed(tmp_path, RECIPE).publish is None


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("{crad: true}", "did you mean 'card'"),
        ("{to: hf:me/x}", "publish.to: must be a valid list"),
        ("{to: [./a, ./a]}", "publish.to.1: the same target twice"),
        ("{to: ['']}", "publish.to.0: empty"),
        ("{card: 1}", "publish.card: must be a valid boolean"),
        (f"{{to: ['hf:me/{HUB_TOKEN}']}}", "secret token"),
    ],
)
def test_a_recipe_that_says_it_wrongly_is_refused_with_its_place(tmp_path, field, words):
    said = refusal(tmp_path, RECIPE + f"publish: {field}\n")
    assert words in said
    assert "recipe.yaml:4" in said
    assert HUB_TOKEN not in said
