"""The text of a card: what the model is, its scores, how to make it again, whose it is."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence

import yaml

from mergepipe.card.citing import bibtex, citations
from mergepipe.card.contents import Contents, Input, Used
from mergepipe.card.licences import MISSING, Choice, kind_of
from mergepipe.card.markup import fence, hub_link, table, text
from mergepipe.errors import InputError
from mergepipe.evaluate import differences
from mergepipe.evaluate.grid import Cell, Grid, lay_out, lay_out_retention
from mergepipe.method import load_method, load_post_step
from mergepipe.transplant.kinds import transplant_names

__all__ = ["body"]

_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-text-to-text": "AutoModelForImageTextToText",
}
_MILLION, _BILLION = 1e6, 1e9


def body(contents: Contents, licence: Choice, found: Sequence[str]) -> str:
    """Give the text below the front matter; `found` is what conflicts among the licences."""
    docs = {used: _doc(used) for used in contents.used}
    parts = [
        f"# {text(contents.name)}",
        *_what(contents, docs),
        *_use(contents),
        *_scores(contents),
        *_again(contents),
        *_licences(contents, licence, found),
        *_notes(contents),
        *_cite(docs),
    ]
    return "\n\n".join(parts) + "\n"


def _doc(used: Used) -> str:
    """Give the docstring of what a recipe names; empty for a plugin's, which is not at hand."""
    try:
        if used.kind == "method":
            return load_method(used.name).doc
        if used.kind == "post-step":
            return load_post_step(used.name).doc
    except InputError:
        return ""
    if used.name not in transplant_names():
        return ""
    return importlib.import_module(f"mergepipe.transplants.{used.name}").__doc__ or ""


def _what(contents: Contents, docs: dict[Used, str]) -> Iterator[str]:
    count = len(contents.inputs)
    made = f"A merge of {count} models" if count > 1 else "Made of one model"
    yield f"{made} by mergepipe {text(contents.manifest['mergepipe'])}. {_facts(contents)}"
    if contents.inputs:
        head = ("name", "model", "licence")
        yield table(head, [_model(one, one.label == contents.base) for one in contents.inputs])
    lines = []
    for used, doc in docs.items():
        said = doc.strip().partition("\n")[0]
        lines.append(f"- {used.kind} **{text(used.name)}**{f': {text(said)}' if said else ''}")
    if lines:
        yield "\n".join(lines)


def _facts(contents: Contents) -> str:
    config = contents.config
    named = config.get("architectures") or ["no configuration"]
    dtype = config.get("dtype") or config.get("torch_dtype")
    parts = [text(named[0]), f"{_count(contents.parameters)} parameters"]
    parts += [f"stored as {text(dtype)}"] if dtype else []
    parts += [f"{config['vocab_size']:,} tokens"] if type(config.get("vocab_size")) is int else []
    parts += ["with a chat template" if contents.has_chat_template else "without a chat template"]
    return f"{', '.join(parts)}."


def _count(number: int) -> str:
    for unit, word in ((_BILLION, "billion"), (_MILLION, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {word}"
    return f"{number:,}"


def _model(one: Input, is_base: bool) -> tuple[str, str, str]:
    where = hub_link(one.hub, one.commit) if one.hub else f"{text(one.name)}, not on the hub"
    adapter = f", with the adapter {text(one.adapter)}" if one.adapter else ""
    mark = " (base)" if is_base else ""
    return f"{text(one.label)}{mark}", f"{where}{adapter}", text(", ".join(_shown(one)))


def _shown(one: Input) -> list[str]:
    return ["not stated" if licence == MISSING else licence for licence in one.licences]


def _use(contents: Contents) -> Iterator[str]:
    loader = _CLASSES.get(contents.task)
    if contents.library != "transformers" or loader is None:
        return
    name = json.dumps(contents.name, ensure_ascii=False)
    lines = [
        f"from transformers import AutoTokenizer, {loader}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({name})",
        f"model = {loader}.from_pretrained({name})",
    ]
    yield "## Use"
    yield fence("\n".join(lines), "python")


def _scores(contents: Contents) -> Iterator[str]:
    scores = contents.scores
    if not scores.rows and not scores.failures:
        return
    yield "## Scores"
    base = contents.base
    found = () if base is None else differences(scores.rows, base)
    yield from _grid(lay_out(scores.rows, found, scores.failures, errors=True))
    yield "± is the standard error; the best of each column is bold."
    kept = lay_out_retention(scores.rows)
    if kept is not None:
        yield from _grid(kept)
    failed = {f"{text(one.model)}: {text(one.evaluation)}" for one in scores.failures}
    if failed:
        yield f"Failed: {'; '.join(sorted(failed))}."


def _grid(grid: Grid) -> Iterator[str]:
    heads = [f"{text(name)} ({text(unit)})" if unit else text(name) for name, unit in grid.headings]
    lines = ([text(model), *map(_cell, cells)] for model, cells in grid.lines.items())
    yield table(("model", *heads), lines, numbers=len(heads))
    if grid.caption:
        yield "  \n".join(map(text, grid.caption))


def _cell(cell: Cell) -> str:
    shown = f"**{text(cell.text)}**" if cell.is_best else text(cell.text)
    return f"{shown} {cell.mark}".rstrip()


def _again(contents: Contents) -> Iterator[str]:
    manifest = contents.manifest
    yield "## Recipe"
    dumped = yaml.safe_dump(contents.recipe, sort_keys=False, allow_unicode=True, width=100)
    yield fence(dumped, "yaml")
    versions = {"mergepipe": manifest["mergepipe"], **manifest["libraries"]}
    used = ", ".join(f"{text(name)} {text(number)}" for name, number in versions.items())
    yield (
        f"Seed {text(manifest['seed'])}; made with {used}. `mergepipe.json` has the digests of all "
        "that went in and came out; this holds the files against it, and makes the merge again to "
        "see whether its bytes are the same:"
    )
    plugins = [f" --plugin {name}" for name in manifest.get("plugins", {})]
    local = "" if all(one.hub for one in contents.inputs) else " --inputs FOLDER_OF_THE_MODELS"
    yield fence(f"mergepipe verify .\nmergepipe reproduce .{local}{''.join(plugins)}", "sh")


def _licences(contents: Contents, licence: Choice, found: Sequence[str]) -> Iterator[str]:
    yield "## Licences"
    lines = [
        (text(label), text("not stated" if one == MISSING else one), kind_of(one), text(file))
        for each in contents.inputs
        for label, one, file in _stated(each)
    ]
    if lines:
        yield table(("model", "licence", "kind", "stated in"), lines)
    result = "not stated" if licence.id == MISSING else text(licence.id)
    yield f"This model: **{result}** ({text(licence.reason)})."
    if found:
        yield "\n".join(f"- {text(one, 1000)}" for one in found)
    yield "Kinds and conflicts are read off a table: they are no legal advice."


def _stated(one: Input) -> Iterator[tuple[str, str, str]]:
    for at, (said, licence) in enumerate(zip(one.said, one.licences, strict=True)):
        label = one.label if at == 0 else f"{one.label}: adapter"
        yield label, licence, str(said.get("license_from", ""))


def _notes(contents: Contents) -> Iterator[str]:
    if contents.warnings:
        yield "## Notes"
        yield "\n".join(f"- {text(one, 1000)}" for one in contents.warnings)


def _cite(docs: dict[Used, str]) -> Iterator[str]:
    works = {work.key: work for doc in docs.values() for work in citations(doc)}
    if works:
        yield "## Citation"
        yield fence("\n\n".join(map(bibtex, works.values())), "bibtex")
