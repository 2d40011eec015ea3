"""Bits per byte of small real models before and after they get another's tokenizer.

    python benchmarks/transplant_quickstart.py [--hold-out]

Each method that needs nothing but the two models, by the command, seed 0: the quickstart base gets
the tokenizer of glassllm's English model, and the other way round; English held-out texts. Then a
tenth of the base's tokens of more than a byte is held out, five draws, and made with the table of
its German fine-tune as the donor's.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import material
import numpy as np
import torch
from landmarked import Rows
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transplant_quality import greedy

from mergepipe.tokenizer import read_vocabulary
from mergepipe.tokenizer.matching import Match
from mergepipe.transplant import Task, load_transplant

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
TEXT = QUICKSTART / "heldout" / "english.jsonl"
METHODS = (
    *("zero", "mean", "normal", "mvn", "nearest", "subword", "omp", "common_interpolation"),
    *("affine", "landmark_pca", "sparse_basis", "focus", "auto"),
)


def transplant(model: Path, donor: Path, method: str, out: Path) -> dict[str, Any]:
    """Run the command; give what it printed."""
    command = [sys.executable, "-m", "mergepipe", "transplant", model, "--tokenizer", donor]
    options = ["--method", method, "--text", TEXT, "--out", out / method, "--threads", "1"]
    done = subprocess.run(
        [*map(str, [*command, *options]), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{method}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(model: Path, donor: Path, heading: str, out: Path) -> None:
    """Print a table of all methods."""
    out.mkdir()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: transplant(model, donor, name, out), METHODS))
    facts = found[0]["transplant"]["matches"]
    print(f"{heading}: {facts['exact']} tokens shared, {facts['missing']} missing\n")
    print("| method | bits per byte |\n|---|---|")
    for number, (name, one) in enumerate(zip(METHODS, found, strict=True)):
        rows = [x for x in one["results"] if x["metric"] == "bits_per_byte"]
        if number == 0:
            print(f"| before | {rows[0]['value']:.3f} ± {rows[0]['stderr']:.3f} |")
        notes = one["transplant"]["tables"][0]["notes"]
        label = notes[-1] if name == "auto" and notes else name
        print(f"| {label} | {rows[-1]['value']:.3f} ± {rows[-1]['stderr']:.3f} |")
    print(flush=True)


def bits(model: Any, texts: list[torch.Tensor], size: int) -> float:
    """Bits per byte of texts, each without its first token."""
    total = 0.0
    with torch.inference_mode():
        for ids in texts:
            scores = model(ids[None, :-1]).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(scores, ids[1:], reduction="sum"))
    return total / math.log(2) / size


def held_out(seed: int, ours: torch.Tensor, theirs: torch.Tensor) -> Task:
    """Declare a tenth of the base's tokens missing."""
    own = read_vocabulary(QUICKSTART / "base", "base")
    pieces = np.array([n for n, t in own.tokens.items() if t.kind != "special"])
    longer = np.array([n for n in pieces if len(own.tokens[n].bytes) > 1])
    draws = np.random.Generator(np.random.Philox(key=seed))
    lost = np.sort(draws.permutation(longer)[: len(longer) // 10])
    kept = np.setdiff1d(pieces, lost)
    same = {int(n): int(n) for n in kept}
    return Task(
        side="input",
        match=Match(own, own, same, dict.fromkeys(same, "exact"), tuple(lost.tolist())),
        base=Rows(ours),
        donor=Rows(theirs),
        anchors=np.stack([kept, kept], axis=1),
        missing=lost,
        seed=seed,
        device=torch.device("cpu"),
        segment=greedy(own, set(lost.tolist())),
    )


def hold_out(draws: int = 5) -> None:
    """Print the table of made rows, mean and range over the draws."""
    model, german = (
        AutoModelForCausalLM.from_pretrained(QUICKSTART / name, dtype=torch.float32).eval()
        for name in ("base", "german")
    )
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "base" / "tokenizer.json"))
    lines = [json.loads(line)["text"] for line in TEXT.read_text("utf-8").splitlines()]
    texts = [torch.tensor(tokenizer.encode(line).ids[:256]) for line in lines]
    size = sum(len(line.encode()) for line in lines)
    table = model.get_input_embeddings().weight.data
    ours, theirs = table.clone(), german.get_input_embeddings().weight.data.clone()
    tasks = [held_out(seed, ours, theirs) for seed in range(draws)]
    count, seen = sum(map(len, texts)), torch.cat(texts).numpy()
    shares = [float(np.isin(seen, task.missing).mean()) for task in tasks]
    cosine = torch.cosine_similarity(ours, theirs).median()
    print(f"{len(tasks[0].missing)} tokens held out, {min(shares):.1%} to {max(shares):.1%} of")
    print(f"the {count} tokens of {len(texts)} texts; median cosine of the tables {cosine:.3f}\n")
    print("| rows made by | bits per byte | least | most |\n|---|---|---|---|")
    print(f"| original | {bits(model, texts, size):.4f} | | |")
    for name in METHODS:
        found = []
        method = load_transplant(name)
        for task in tasks:
            made = method.fit(task, method.parameters())(np.arange(len(task.missing)))
            table[task.missing] = made.rows
            found.append(bits(model, texts, size))
            table.copy_(ours)
        print(
            f"| {name} | {np.mean(found):.4f} | {min(found):.4f} | {max(found):.4f} |", flush=True
        )


def main() -> None:
    """Print all tables."""
    if "--hold-out" in sys.argv:
        hold_out()
        return
    with tempfile.TemporaryDirectory() as folder:
        out, english = Path(folder), material.glass("en", Path(folder, "en"))
        base = QUICKSTART / "base"
        compare(base, english, "quickstart base with glassllm's tokenizer", out / "there")
        compare(english, base, "glassllm with the quickstart's tokenizer", out / "back")


if __name__ == "__main__":
    main()
