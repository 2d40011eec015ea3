"""Runs to report on, with scores written as a run writes them; and what a page consists of."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import merges

from mergepipe.evaluate import Failure, Item, ScoreRow, ratio, results_jsonl
from mergepipe.manifest import PAGE_FILE, RESULTS_FILE
from mergepipe.pipeline import merge
from mergepipe.pipeline.reporting import report
from mergepipe.search.outputs import trials_json, write_text
from mergepipe.search.space import Number
from mergepipe.search.study import Trial
from mergepipe.search.verdict import Gain, Verdict

GRADIENTS = {
    "method": "task_arithmetic",
    "base": "base",
    "models": {"a": {"weight": [0.1, 0.9]}, "b": {"weight": 0.4}},
    "where": [
        {"tensors": "*mlp*", "b": {"weight": [1, 0]}},
        {"tensors": "*norm*", "method": "linear"},
    ],
}
GENES = (Number("merge.models.a.weight", 0, 1, 0.5), Number("merge.models.b.weight", 0, 2, 0.5))
MODELS = ("base", "a", "b", "merged")


def row(model, evaluation, nats, *, name="bits_per_byte", items=12, **fields):
    """A row whose items differ, as bits per byte do."""
    found = [
        Item(str(at), {"nats": nats * (1 + 0.1 * math.sin(at)) * 100, "bytes": 100.0 + at})
        for at in range(items)
    ]
    metric = ratio(found, "nats", "bytes", unit="bits/byte", scale=1 / math.log(2))
    return ScoreRow(
        model, evaluation, name, name, fields.get("value", metric.value), metric.unit,
        metric.higher_is_better, metric.n, tuple(found), metric.stderr, metric.formula,
    )  # fmt: skip


def rows(models=MODELS, evaluations=("english", "german")):
    return [
        row(model, name, 1.0 + 0.1 * at + 0.05 * (len(name) % 3))
        for at, model in enumerate(reversed(models))
        for name in evaluations
    ]


def edited(file: Path, change) -> None:
    """Change a JSON file in place."""
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def scored(folder: Path, found=None, failures=()):
    """Write scores into a result's folder."""
    text = results_jsonl(rows() if found is None else found, failures)
    (folder / RESULTS_FILE).write_text(text)


def run(folder: Path, spec=None, **options) -> Path:
    """Run a recipe over three tiny Llamas; give the result's folder."""
    return merge(merges.planned(folder, spec or merges.TIES, **options)).folder


def failure(reason="the judge did not answer", model="a", name="english"):
    return Failure(model, name, "bits_per_byte", reason)


def transplanted(word=""):
    """What a transplant writes of itself, with `word` in every text."""
    table = {
        "tensor": f"embed{word}",
        "side": "input",
        "rows": {f"exact{word}": 3, "made": 1},
        "residuals": {"0.5": 0.25},
        "norms": {f"base{word}": {"0.5": 1.0}, "copied": {}},
        "worst": [{"id": 1, "token": f"token{word}", "residual": 0.5, "norm": 2.0}],
        "notes": [],
    }
    return {
        f"stage{word}": {
            "method": f"omp{word}",
            "model": f"base{word}",
            "tokenizer": f"donor{word}",
            "tokens": 4,
            "matches": {f"exact{word}": 3, "missing": 1},
            "tables": [table],
            "digits": {"warning": f"digits {word}"},
        }
    }


def trials(count, losses=1, genes=GENES, reason="out of range"):
    """Trials that get better; every tenth failed."""
    for at in range(count):
        values = tuple(
            gene.low + (gene.high - gene.low) * ((at * 7919 + 31 * i) % 1000) / 999
            for i, gene in enumerate(genes)
        )
        if at % 10 == 9:
            yield Trial(at, values, "failed", reason=reason)
            continue
        found = tuple(
            sum((v - 0.3 - 0.2 * which) ** 2 for v in values) + 1 / (at + 1)
            for which in range(losses)
        )
        yield Trial(at, values, "complete", found, {"english": found[0]}, seconds=0.1)


def searched(folder: Path, count=30, names=("loss",), word="") -> Path:
    """Write what a search leaves behind, with `word` in every text."""
    folder.mkdir(parents=True)
    genes = [replace(gene, name=gene.name + word) for gene in GENES]
    found = list(trials(count, len(names), genes, f"out of range {word}"))
    write_text(folder / "trials.json", trials_json(genes, names, found))
    gains = tuple(
        Gain(over, "final", 0.1, low, 0.2, 40, evaluation)
        for over in ("the untuned merge", f"a{word}")
        for low, evaluation in ((0.05, None), (-0.1, f"english{word}"))
    )
    verdict = Verdict(max(0, count - 2), "final", gains, f"a{word}", is_overfit=True)
    write_text(folder / "verdict.json", json.dumps(verdict.plain()))
    return folder


def page_of(folder: Path, **options) -> str:
    """Report on a run; give the page."""
    return report(folder, **options).file.read_text(encoding="utf-8")


def page_file(folder: Path) -> Path:
    return folder / PAGE_FILE


class Elements(HTMLParser):
    """Every tag of a page with the names of its attributes, every address, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[tuple[str, frozenset[str]]] = set()
        self.addresses: set[str] = set()
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, frozenset(name for name, _ in attrs)))
        self.addresses |= {value for name, value in attrs if name in ("src", "href", "xlink:href")}

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def words(self) -> str:
        """The text, with blanks as one."""
        return re.sub(r"\s+", " ", " ".join(self.text))
