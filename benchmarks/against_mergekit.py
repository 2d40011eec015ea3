"""The same merge by mergepipe and by mergekit 0.1.5, at fp32: difference, time, peak memory.

    python benchmarks/synthetic.py /tmp/bench --size 1b --experts 2
    python benchmarks/against_mergekit.py /tmp/bench --methods linear ties

Runs whole processes, one after the other, on the models of `synthetic.py`; prints a Markdown table
for RESULTS.md. Peak memory is the kernel's (ru_maxrss). The two outputs are compared value by
value, block by block; then they are removed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from contest import Cost, beside_python, measure

from mergepipe.checkpoint import ModelSource, open_checkpoint, read_values
from mergepipe.errors import Problems
from mergepipe.method import BLOCK

NATIVE = """\
mergepipe: 1
models: {{base: ./base, expert1: ./expert1, expert2: ./expert2}}
merge:
{merge}output: {{path: ./ours, dtype: float32}}
"""
# method: (body of our `merge:`, mergekit's configuration)
MERGES = {
    "linear": (
        """\
  method: linear
  models: {base: {}, expert1: {weight: 2}, expert2: {}}
""",
        """\
models:
  - {model: BASE, parameters: {weight: 1}}
  - {model: EXPERT1, parameters: {weight: 2}}
  - {model: EXPERT2, parameters: {weight: 1}}
merge_method: linear
""",
    ),
    "task_arithmetic": (
        """\
  method: task_arithmetic
  base: base
  lambda: 0.5
  models: [expert1, expert2]
""",
        """\
models:
  - {model: EXPERT1, parameters: {weight: 1}}
  - {model: EXPERT2, parameters: {weight: 1}}
base_model: BASE
merge_method: task_arithmetic
parameters: {lambda: 0.5}
""",
    ),
    "slerp": (
        """\
  method: slerp
  base: base
  t: 0.4
  models: [expert1]
""",
        """\
models: [{model: BASE}, {model: EXPERT1}]
base_model: BASE
merge_method: slerp
parameters: {t: 0.4}
""",
    ),
    "ties": (
        """\
  method: ties
  base: base
  scope: tensor
  elect: mergekit
  models: {expert1: {density: 0.5}, expert2: {density: 0.5, weight: 0.7}}
""",
        """\
models:
  - {model: EXPERT1, parameters: {weight: 1, density: 0.5}}
  - {model: EXPERT2, parameters: {weight: 0.7, density: 0.5}}
base_model: BASE
merge_method: ties
""",
    ),
}


def run_ours(folder: Path, merge: str) -> Cost:
    recipe = folder / "ours.yaml"
    recipe.write_text(NATIVE.format(merge=merge))
    command = (sys.executable, "-m", "mergepipe", "run", str(recipe))
    return measure(command, folder / "log.txt", {})


def run_mergekit(folder: Path, config: str) -> Cost:
    for name in ("BASE", "EXPERT1", "EXPERT2"):
        config = config.replace(name, str(folder / name.lower()))
    (folder / "theirs.yml").write_text(config + "dtype: float32\n")
    paths = (str(folder / "theirs.yml"), str(folder / "theirs"))
    options = ("--no-copy-tokenizer", "--no-write-model-card")
    command = (beside_python("mergekit-yaml"), *paths, *options)
    return measure(command, folder / "log.txt", {})


def differences(ours: Path, theirs: Path) -> tuple[float, float]:
    """(largest |difference|, share of values that differ by more than 1e-6)."""
    problems = Problems()
    opened = [
        open_checkpoint(ModelSource(path.name, path, None, None, None), problems)
        for path in (ours, theirs)
    ]
    problems.raise_any()
    a, b = opened
    assert a is not None
    assert b is not None
    assert set(a.tensors) == set(b.tensors)
    worst, apart, total = 0.0, 0, 0
    for name, stored in a.tensors.items():
        assert stored.shape == b.tensors[name].shape
        for start in range(0, stored.numel, BLOCK):
            stop = min(start + BLOCK, stored.numel)
            pair = (read_values(c, name, start, stop) for c in (a, b))
            difference = torch.sub(*pair).abs()
            worst = max(worst, float(difference.max()))
            apart += int((difference > 1e-6).sum())
            total += stop - start
    return worst, apart / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", choices=MERGES, default=list(MERGES))
    options = parser.parse_args()
    folder = options.folder.resolve()
    ours, theirs = "time | CPU | memory", "mergekit's time | CPU | memory"
    print(f"| method | max difference | differ | {ours} | {theirs} |")
    print(f"| --- |{' ---: |' * 8}")
    for method in options.methods:
        outputs = folder / "ours", folder / "theirs"
        for old in outputs:
            shutil.rmtree(old, ignore_errors=True)
        native, config = MERGES[method]
        a, b = run_ours(folder, native), run_mergekit(folder, config)
        worst, apart = differences(*outputs)
        cells = [
            cell
            for cost in (a, b)
            for cell in (
                f"{cost.seconds:.0f} s",
                f"{cost.cpu_seconds:.0f} s",
                f"{cost.peak_bytes / 1e9:.2f} GB",
            )
        ]
        print(f"| {method} | {worst:.1e} | {apart:.2%} | {' | '.join(cells)} |", flush=True)
        for old in outputs:
            shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
