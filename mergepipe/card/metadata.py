"""The front matter of a card: what the hub indexes and searches by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from mergepipe.card.contents import Contents, Input
from mergepipe.card.licences import Choice, is_on_hub
from mergepipe.card.markup import is_hub_id
from mergepipe.errors import printable
from mergepipe.evaluate import ScoreRow
from mergepipe.evaluate.retention import RETENTION

__all__ = ["front_matter", "metadata"]

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?|code|multilingual")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ._/-]*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_LINK = re.compile(r"https?://[^\s<>\"'`]{1,500}|LICENSE(\.md|\.txt)?")
_MOST = 50


def metadata(contents: Contents, licence: Choice) -> dict[str, Any]:
    """Give the metadata as the hub's ModelCardData has it."""
    from huggingface_hub import EvalResult, ModelCardData

    bases = _bases(contents.inputs)
    tags = ["merge", "mergepipe", *(one.name for one in contents.used if one.kind == "method")]
    more: dict[str, Any] = dict(_licence(contents.inputs, licence))
    more |= {"base_model_relation": _relation(contents)} if bases else {}
    found = [EvalResult(**fields) for fields in _results(contents)]
    card: Any = ModelCardData(
        base_model=bases or None,
        datasets=_said(contents.inputs, "datasets") or None,
        language=_languages(contents.inputs) or None,
        library_name=contents.library or None,
        pipeline_tag=contents.task or None,
        tags=list(dict.fromkeys(map(_plain, tags))),
        model_name=_plain(contents.name),
        eval_results=found or None,
        **more,
    )
    return dict(card.to_dict())


def front_matter(data: Mapping[str, Any]) -> str:
    """Give metadata as YAML that every reader, of YAML 1.1 or 1.2, takes for what it is."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that is more than words, and repeats what it could refer to."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED and value == value.strip()
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def _plain(value: object) -> str:
    """Give a text on one line, without controls, that the hub takes."""
    return " ".join(printable(value, 200).split()) or "model"


def _licence(inputs: Iterable[Input], licence: Choice) -> dict[str, str]:
    if is_on_hub(licence.id) and licence.id != "other":
        return {"license": licence.id}
    found = {"license": "other"}
    of_inputs = [one for each in inputs for one in each.said if one.get("license") == licence.id]
    named = {str(one["license_name"]) for one in of_inputs if "license_name" in one}
    links = {str(one["license_link"]) for one in of_inputs if "license_link" in one}
    name = named.pop() if len(named) == 1 else "see-licences" if licence.id == "other" else ""
    found["license_name"] = re.sub(r"[^a-z0-9._-]+", "-", (name or licence.id).lower())[:96]
    link = links.pop() if len(links) == 1 else ""
    return {**found, "license_link": link} if link.startswith("http") and _is_link(link) else found


def _is_link(text: str) -> bool:
    return _LINK.fullmatch(text) is not None


def _bases(inputs: Iterable[Input]) -> list[str]:
    """Give what is on the hub of the models that went in; of others, what they were made of."""
    found: list[str] = []
    for one in inputs:
        found += [one.hub] if one.hub else [str(x) for x in one.said[0].get("base_model", ())]
        found += [one.adapter] if one.adapter else []
    return [name for name in dict.fromkeys(found) if is_hub_id(name)][:_MOST]


def _relation(contents: Contents) -> str:
    """`merge` of several models; one with an adapter or another tokenizer is a fine-tune."""
    return "merge" if len(contents.inputs) > 1 and not _is_transplant(contents) else "finetune"


def _is_transplant(contents: Contents) -> bool:
    return {one.kind for one in contents.used} == {"transplant"}


def _said(inputs: Iterable[Input], name: str) -> list[str]:
    found = [str(one) for each in inputs for said in each.said for one in said.get(name, ())]
    return [_plain(one) for one in dict.fromkeys(found)][:_MOST]


def _languages(inputs: Iterable[Input]) -> list[str]:
    return [one for one in _said(inputs, "language") if _LANGUAGE.fullmatch(one)]


def _results(contents: Contents) -> Iterator[dict[str, Any]]:
    """Give the main score of each evaluation of the result, as the hub indexes them."""
    main: dict[str, ScoreRow] = {}
    for row in contents.scores.rows:
        if row.model == contents.result and math.isfinite(row.value):
            main.setdefault(row.evaluation, row)
    for row in main.values():
        yield {
            "task_type": contents.task or "other",
            "dataset_type": _plain(row.evaluation),
            "dataset_name": _plain(row.evaluation),
            "metric_type": _plain(row.metric),
            "metric_name": _metric_name(row),
            "metric_value": row.value,
            "metric_args": _measured(row),
        }


def _metric_name(row: ScoreRow) -> str:
    if row.evaluator == RETENTION or not row.unit or row.unit == row.metric:
        return _plain(row.metric)
    return _plain(f"{row.metric} ({row.unit})")


def _measured(row: ScoreRow) -> dict[str, Any]:
    error = row.stderr if row.stderr is not None and math.isfinite(row.stderr) else None
    return {
        "evaluator": _plain(row.evaluator),
        "items": row.n,
        **({} if error is None else {"stderr": error}),
    }
