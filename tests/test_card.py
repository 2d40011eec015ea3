"""Model cards: what is told, that names mean nothing in them, and whose README.md it is."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write_json
from command_line import HUB_TOKEN, command
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from merges import TIES, planned, write_models
from mixtures import family, prepared

from mergepipe.card import bibtex, citations, make_card
from mergepipe.card.contents import read_contents
from mergepipe.card.licences import choose
from mergepipe.card.markup import fence, text
from mergepipe.card.metadata import metadata
from mergepipe.card.reading import front_matter
from mergepipe.cli.finishing import finish
from mergepipe.digest import digest_of
from mergepipe.errors import InputError
from mergepipe.evaluate import Formula, Item, ScoreRow, Scores, results_jsonl
from mergepipe.manifest import MANIFEST_FILE, RESULTS_FILE, manifest_bytes
from mergepipe.method import load_method, load_post_step, method_names, post_step_names
from mergepipe.pipeline import merge, write_card
from mergepipe.pipeline.describing import describe_scores
from mergepipe.recipe import PublishSpec
from mergepipe.verify import verify

CARDS = {
    "base": "license: llama3.1\nbase_model: meta-llama/Llama-3.1-8B\nlanguage: [en, de]",
    "a": "license: llama3.1\nlanguage: no\ndatasets: [org/data]",
    "b": "license: apache-2.0",
}
# What YAML, Markdown, HTML and terminals each take for something else.
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</title><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "a|b `c` **d** _e_ ~~f~~ # g",
    "```\n# out\n```",
    "---\nlicense: mit\n---",
    "yes",
    "no",
    "1e5",
    "0x1f",
    "null",
    "- a",
    "1. a",
    ": {a: b}",
    "&amp; <b>",
    "a\u202eb\x1b[31mc\r\n",
    "www.example.org https://example.org",
    "0" * 64,
    f"<!-- mergepipe card {'0' * 64}: x -->",
    "名前 é 🙂",
]
TEXTS = st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=40)


def row(model: str, value: float, evaluation: str = "math", error: float | None = 0.01) -> ScoreRow:
    items = tuple(Item(str(at), {"loss": value + at - 0.5}) for at in range(2))
    return ScoreRow(
        *(model, evaluation, "toy", "loss", value, "nats"),
        higher_is_better=False,
        n=2,
        items=items,
        stderr=error,
        formula=Formula("loss"),
    )


def scored(folder: Path, *rows: ScoreRow) -> None:
    """Put scores into a result, as its evaluation does."""
    scores = Scores(rows)
    raw = results_jsonl(scores.rows).encode()
    (folder / RESULTS_FILE).write_bytes(raw)
    edit_manifest(folder, results=describe_scores(scores, raw))


def edit_manifest(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_bytes()) | fields
    content.pop("blake3", None)
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(content))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = write_models(tmp_path_factory.mktemp("card"))
    for label, front in CARDS.items():
        (models / label / "README.md").write_text(f"---\n{front}\n---\n# {label}\n")
    folder = merge(planned(models, TIES), sync=False).folder
    scored(folder, row("base", 2.0), row("a", 1.5), row("b", 1.75), row("merged", 1.25))
    return folder


@pytest.fixture
def folder(result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result, tmp_path / "my-merge"))


def test_the_hub_s_reader_finds_what_it_indexes(folder):
    data = ModelCard(make_card(folder).text).data
    assert (data.license, data.library_name) == ("llama3.1", "transformers")
    assert (data.base_model, data.pipeline_tag) == (["meta-llama/Llama-3.1-8B"], "text-generation")
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.tags == ["merge", "mergepipe", "ties"]
    assert (data.language, data.datasets) == (["en", "de", "no"], ["org/data"])
    (score,) = data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("math", "loss", 1.25)
    assert score.metric_args == {"evaluator": "toy", "items": 2, "stderr": 0.01}


def test_the_text_tells_recipe_scores_licences_and_papers(folder):
    said = make_card(folder).text
    assert "# my-merge\n" in said
    assert "| base (base) | base, not on the hub | llama3.1 |" in said
    assert "| merged | **1.250 ±0.010**" in said
    assert "| b | apache-2.0 | permissive | README.md |" in said
    assert "mergepipe reproduce . --inputs FOLDER_OF_THE_MODELS" in said
    assert "eprint = {2306.01708}" in said
    recipe = json.loads((folder / MANIFEST_FILE).read_bytes())["recipe"]
    assert yaml.safe_load(blocks(said)["yaml"]) == recipe


def test_a_model_of_the_hub_is_linked_at_its_commit(folder):
    inputs = json.loads((folder / MANIFEST_FILE).read_bytes())["inputs"]
    inputs["a"]["source"] = {"hub": "org/name", "revision": "main", "commit": "0123abcd"}
    edit_manifest(folder, inputs=inputs)
    card = make_card(folder).text
    assert "[org/name](https://huggingface.co/org/name/tree/0123abcd)" in card
    assert ModelCard(card).data.base_model == ["meta-llama/Llama-3.1-8B", "org/name"]


def test_a_mixture_of_experts_and_weights_without_scores_have_cards(tmp_path):
    family(tmp_path)
    merged = merge(prepared(tmp_path), sync=False).folder
    card = make_card(merged).text
    assert "MixtralForCausalLM" in card
    assert "## Scores" not in card
    assert "gate_mode: cheap_embed" in card


def test_a_card_of_somebody_s_own_is_never_overwritten(folder, capsys):
    file = folder / "README.md"
    for theirs in ("# mine\n", make_card(folder).text.replace("my-merge", "mine"), ""):
        file.write_text(theirs)
        with pytest.raises(InputError, match="written or edited by hand"):
            write_card(folder)
        assert file.read_text() == theirs
    said = command(capsys, "card", folder, "--print")
    assert said.out == make_card(folder).text


def test_a_card_of_ours_is_written_anew_and_verifies(folder, capsys):
    assert write_card(folder) == ()
    scored(folder, row("merged", 0.5))
    assert write_card(folder) == ()
    assert "0.500" in (folder / "README.md").read_text()
    found = verify(folder)
    assert (found.differences, found.extra) == ((), ())
    assert "card:" in command(capsys, "card", folder).out


def conflicting(folder: Path) -> Path:
    inputs = json.loads((folder / MANIFEST_FILE).read_bytes())["inputs"]
    inputs["b"]["license"] = "cc-by-nc-4.0"
    edit_manifest(folder, inputs=inputs)
    return folder


def test_licences_that_conflict_are_told_and_refused_if_that_is_asked(folder, capsys):
    said = command(capsys, "card", conflicting(folder))
    assert said.status == 0
    assert "cc-by-nc-4.0 (b) allows no commercial use" in said.err
    assert "base -> llama3.1, a -> llama3.1, b -> cc-by-nc-4.0" in said.err
    (folder / "README.md").unlink()
    said = command(capsys, "card", folder, "--strict")
    assert said.status == 2
    assert "base -> llama3.1, a -> llama3.1, b -> cc-by-nc-4.0" in said.err
    assert not (folder / "README.md").exists()


def test_where_licences_conflict_nothing_is_published_strictly(folder, tmp_path, capsys):
    out, merged = tmp_path / "public", conflicting(folder)
    said = command(capsys, "publish", merged, "--to", out, "--strict")
    assert said.status == 2
    assert "cc-by-nc-4.0" in said.err
    with pytest.raises(InputError, match=r"cc-by-nc-4\.0"):
        finish(merged, PublishSpec(card=False, to=(str(out),), strict=True), None, overwrite=False)
    assert not out.exists()
    said = command(capsys, "publish", merged, "--to", out)
    assert "cc-by-nc-4.0" in said.err
    assert (said.status, out.is_dir()) == (0, True)


def test_a_licence_that_is_given_overrides_and_the_card_says_so(folder):
    assert write_card(conflicting(folder), strict=True, license="CC-BY-NC-4.0") == ()
    card = (folder / "README.md").read_text()
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert "**cc-by-nc-4.0** (stated by whoever published it" in card
    assert "cc-by-nc-4.0 (b) allows no commercial use" in card
    with pytest.raises(InputError, match="no licence's id"):
        write_card(folder, license="mine, ask me")


def test_a_licence_that_the_hub_does_not_list_is_other_by_its_name(folder):
    inputs = json.loads((folder / MANIFEST_FILE).read_bytes())["inputs"]
    for one in inputs.values():
        one |= {"license": "mrl", "license_link": "https://example.org/mrl"}
    edit_manifest(folder, inputs=inputs)
    data = ModelCard(make_card(folder).text).data
    assert (data.license, data.license_name) == ("other", "mrl")
    assert data.license_link == "https://example.org/mrl"


def test_results_that_are_not_those_of_the_manifest_are_refused(folder):
    (folder / RESULTS_FILE).write_text(results_jsonl([row("merged", 9.0)]))
    with pytest.raises(InputError, match="not what was written"):
        make_card(folder)
    (problem,) = verify(folder).differences
    assert problem.where == RESULTS_FILE


def test_an_edited_manifest_has_no_card(folder):
    file = folder / MANIFEST_FILE
    file.write_text(file.read_text().replace("ties", "linear", 1))
    with pytest.raises(InputError, match="was edited"):
        make_card(folder)


class Tags(HTMLParser):
    """The tags of a page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


OURS = {"h1", "h2", "p", "ul", "li", "pre", "code", "strong", "a", "br"} | {
    *("table", "thead", "tbody", "tr", "th", "td")
}


def body_of(card: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL)


def rendered(card: str) -> Tags:
    found = Tags()
    found.feed(MarkdownIt("commonmark").enable("table").render(body_of(card)))
    return found


def blocks(card: str) -> dict[str, str]:
    tokens = MarkdownIt("commonmark").parse(body_of(card))
    return {token.info: token.content for token in tokens if token.type == "fence"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=st.lists(TEXTS, min_size=6, max_size=6, unique=True))
def test_names_mean_nothing_in_markdown_html_and_yaml(result, tmp_path_factory, names):
    folder = Path(shutil.copytree(result, tmp_path_factory.mktemp("hostile") / "x"))
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    entries = [
        one | {"source": {"folder": name}}
        for one, name in zip(content["inputs"].values(), names, strict=False)
    ]
    entries[0] |= {"license": names[3], "base_model": [names[4]], "datasets": [names[5]]}
    entries[1] |= {"license": "other", "license_name": names[0], "license_link": names[1]}
    content["inputs"] = dict(zip(names, entries, strict=False))
    content["recipe"]["evaluate"] = [{"use": names[0], "name": names[1], "prompt": names[2]}]
    edit_manifest(folder, **content)
    encodable = [name.encode("utf-8", "replace").decode() for name in names]
    scored(folder, *(row(name, 1.0, encodable[0]) for name in (*encodable[1:4], "merged")))
    card = make_card(folder).text
    contents = read_contents(folder)
    licences = {one.label: one.licences[0] for one in contents.inputs}
    expected = metadata(contents, choose(licences))
    assert ModelCard(card, ignore_metadata_errors=True).data.to_dict() == expected
    assert front_matter(card) == expected
    page = rendered(card)
    assert page.tags <= OURS
    assert all(link.startswith("https://huggingface.co/") for link in page.links)
    assert set(blocks(card)) == {"python", "yaml", "sh", "bibtex"}


@given(content=st.text(alphabet="`a\n \\", max_size=60))
def test_a_fence_is_never_ended_by_what_is_in_it(content):
    tokens = MarkdownIt("commonmark").parse(fence(content, "yaml"))
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content.strip("\n") == content.strip("\n")


@given(name=TEXTS)
def test_an_escaped_name_is_shown_letter_by_letter(name):
    tokens = MarkdownIt("commonmark").parse(text(name))
    shown = "".join(one.content for token in tokens for one in token.children or [])
    kinds = {one.type for token in tokens for one in token.children or []}
    assert kinds <= {"text", "text_special"}
    assert [token.type for token in tokens] in (["paragraph_open", "inline", "paragraph_close"], [])
    if name.isascii() and name.isprintable():
        assert shown.replace("\u200b", "") == " ".join(name.split())


def test_tokens_and_home_folders_are_in_no_card(folder):
    recipe = json.loads((folder / MANIFEST_FILE).read_bytes())["recipe"]
    edit_manifest(folder, recipe=recipe | {"note": HUB_TOKEN})
    assert HUB_TOKEN not in make_card(folder).text


@pytest.mark.parametrize("name", [*method_names(), *post_step_names()])
def test_every_paper_that_a_method_names_has_one_entry(name):
    doc = (load_post_step if name in post_step_names() else load_method)(name).doc
    head = re.split(r"\n\s*\n {4}", doc)[0]
    entries = "\n".join(map(bibtex, citations(doc)))
    papers = re.findall(r"arxiv\.org/abs/([\d.]+\d)", head)
    assert re.findall(r"eprint = \{(.*)\}", entries) == papers
    assert len(re.findall(r"^@", entries, re.MULTILINE)) >= bool("http" in head)
    for work in citations(doc):
        assert f'"{work.title}"' in " ".join(head.split())


def test_an_entry_has_authors_title_venue_and_number():
    (work,) = citations(load_method("ties").doc)
    assert bibtex(work) == (
        "@inproceedings{yadav2023ties,\n"
        "  title = {{TIES-Merging: Resolving Interference When Merging Models}},\n"
        "  author = {Yadav and others},\n"
        "  booktitle = {NeurIPS},\n"
        "  year = {2023},\n"
        "  eprint = {2306.01708},\n"
        "  archivePrefix = {arXiv},\n"
        "  url = {https://arxiv.org/abs/2306.01708},\n"
        "}"
    )


def test_scoring_puts_scores_and_a_digest_into_the_manifest(folder):
    found = json.loads((folder / MANIFEST_FILE).read_bytes())["results"]
    raw = (folder / RESULTS_FILE).read_bytes()
    assert (found["size"], found["blake3"]) == (len(raw), digest_of(raw))
    assert found["scores"][3] == {
        "model": "merged",
        "evaluator": "toy",
        "name": "math",
        "metric": "loss",
        "value": 1.25,
        "unit": "nats",
        "stderr": 0.01,
        "n": 2,
        "higher_is_better": False,
    }


def test_what_folders_state_is_in_the_manifest(folder):
    inputs = json.loads((folder / MANIFEST_FILE).read_bytes())["inputs"]
    assert inputs["base"]["license"] == "llama3.1"
    assert inputs["base"]["base_model"] == ["meta-llama/Llama-3.1-8B"]
    assert inputs["a"]["language"] == ["no"]


def test_a_chat_template_and_a_tokenizer_s_size_are_told(folder):
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ x }}"})
    assert "40 tokens, with a chat template" in make_card(folder).text
