"""Candidates per minute: a search that merges in memory beside mergekit-yaml, load, evaluate.

    python benchmarks/search.py /tmp/bench-search [--large]

Both score the same candidates of the same recipe (TIES of three experts) on the same texts, one
candidate at a time, with one thread. The peer is what one scripts by hand: mergekit-yaml writes a
checkpoint, a Python process loads and scores it. Ours is `mergepipe search --workers 1`; the time
that it takes to begin is shown apart. The peer scores with our evaluator, so that only the way to
the weights differs. --large makes models of 0.1 billion parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from synthetic import SIZES, write_model

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"
EXPERTS = ("german", "python", "arithmetic")
ITEMS = {False: 16, True: 2}  # texts of each kind, for small and large models
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
SCORE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mergepipe.evaluate import parse_evaluation, score
from mergepipe.errors import Problems
from mergepipe.model.load import local_model
model = local_model(Path(sys.argv[1]), "merged")
found = [parse_evaluation("bits_per_byte", {"data": text}, name=Path(text).stem, base_dir=Path(),
         where="", problems=Problems(), limit=int(sys.argv[2])) for text in sys.argv[3:]]
print([row.value for row in score([model], found).rows if row.metric == "bits_per_byte"])
"""


def models(folder: Path, *, large: bool) -> dict[str, Path]:
    if not large:
        return {label: QUICKSTART / label for label in ("base", *EXPERTS)}
    for number, label in enumerate(("base", *EXPERTS)):
        if not (folder / label).exists():
            write_model(folder / label, SIZES["0.1b"], number, sparse=False)
            for file in QUICKSTART.joinpath("base").glob("*token*"):
                shutil.copy(file, folder / label)
    return {label: folder / label for label in ("base", *EXPERTS)}


def texts() -> list[str]:
    return [str(QUICKSTART / "heldout" / f"{name}.jsonl") for name in ("english", *EXPERTS[:2])]


def ours(folder: Path, named: dict[str, Path], count: int, items: int) -> tuple[float, list[dict]]:
    recipe = {
        "mergepipe": 1,
        "models": {label: str(path) for label, path in named.items()},
        "merge": {
            "method": "ties",
            "base": "base",
            "models": {
                label: {"density": 0.8, "weight": {"search": [0, 2], "init": 1}}
                for label in EXPERTS
            },
        },
        "evaluate": [
            {"use": "bits_per_byte", "name": Path(text).stem, "data": text, "limit": items}
            for text in texts()
        ],
        "search": {"optimizer": "CMA", "budget": count, "finalists": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.rmtree(folder / "ours.search", ignore_errors=True)
    words = ["search", str(folder / "recipe.yaml"), "--out", str(folder / "ours"), "--no-merge"]
    run = [sys.executable, "-m", "mergepipe", *words, "--workers", "1", "--threads", "1"]
    began = time.perf_counter()
    subprocess.run([*run, "--no-cache"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    trials = json.loads((folder / "ours.search" / "trials.json").read_text())["trials"]
    return seconds, trials


def peer(
    folder: Path, named: dict[str, Path], trial: dict, items: int
) -> tuple[float, float, list[float]]:
    weights = list(trial["values"].values())
    config = {
        "merge_method": "ties",
        "base_model": str(named["base"]),
        "dtype": "bfloat16",
        "models": [
            {"model": str(named[label]), "parameters": {"density": 0.8, "weight": weight}}
            for label, weight in zip(EXPERTS, weights, strict=True)
        ],
    }
    (folder / "peer.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(folder / "peer", ignore_errors=True)
    environment = {**os.environ, **ONE_THREAD}
    program = Path(sys.executable).with_name("mergekit-yaml")
    began = time.perf_counter()
    merge = [str(program), str(folder / "peer.yaml"), str(folder / "peer")]
    subprocess.run(merge, check=True, capture_output=True, env=environment)
    merged = time.perf_counter()
    score = [sys.executable, "-c", SCORE, str(folder / "peer"), str(items), *texts()]
    done = subprocess.run(score, check=True, capture_output=True, text=True, env=environment)
    return merged - began, time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--peers", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    named = models(options.folder, large=options.large)
    items = ITEMS[options.large]
    seconds, trials = ours(options.folder, named, options.candidates, items)
    steady = trials[1:]  # the first reads the files, and compiles
    each = sum(one["seconds"] for one in steady) / len(steady)
    merging = sum(one["merging"] for one in steady) / sum(one["seconds"] for one in steady)
    runs = [peer(options.folder, named, one, items) for one in trials[: options.peers]]
    theirs = sum(whole for _, whole, _ in runs) / len(runs)
    merged = sum(part for part, _, _ in runs) / len(runs)
    gap = max(
        abs(a - b)
        for one, (_, _, scores) in zip(trials, runs, strict=False)
        for a, b in zip(one["scores"].values(), scores, strict=True)
    )
    print("| | seconds a candidate | of these merging | candidates a minute |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| mergepipe search | {each:.2f} | {merging:.0%} | {60 / each:.1f} |")
    share, rate = merged / theirs, 60 / theirs
    print(f"| mergekit-yaml, load, evaluate | {theirs:.2f} | {share:.0%} | {rate:.1f} |")
    print(f"ratio {theirs / each:.1f}; scores differ by at most {gap:.4f} bits per byte")
    print(f"{options.candidates} candidates from start to verdict: {seconds:.1f} s")


if __name__ == "__main__":
    main()
