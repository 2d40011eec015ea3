"""The time of every method relative to linear, for the table in docs/methods.md.

    python benchmarks/method_times.py [--rounds 5] [--write]

Merges a small Llama-shaped base and three experts (bf16, 20 million parameters) in one process,
method by method in turn, and gives medians. Reading is from the page cache, so this is mostly the
arithmetic. `--write` puts the ratios where `docs/generate.py` finds them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from synthetic import SIZES, write_model

from mergepipe.execute import Resources
from mergepipe.method import load_method, method_names, post_step_names
from mergepipe.pipeline import prepare
from mergepipe.pipeline.merging import execute_plan

TIMES = Path(__file__).parent.parent / "docs" / "method_times.json"
EXPERTS = 3
LONG = 10.0  # seconds after which one round is enough


def recipe(method: str, then: list[str], folder: Path) -> Path:
    chosen = load_method(method)
    most = chosen.models[1] or EXPERTS
    labels = [f"expert{i}" for i in range(1, min(most, EXPERTS) + 1)]
    models = {label: str(folder / label) for label in ("base", *labels)}
    merge = {"method": method, "models": labels, "then": then}
    if chosen.uses_base(named=True):
        merge["base"] = "base"
    if method == "nearswap":
        merge["t"] = 0.01
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"mergepipe": 1, "models": models, "merge": merge}))
    return file


def seconds(method: str, then: list[str], folder: Path) -> float:
    prepared = prepare(recipe(method, then, folder), resources=Resources())
    with TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        execute_plan(prepared.plans[0], Path(out), prepared.resources, None)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    calls = {name: (name, []) for name in method_names()}
    calls |= {name: ("task_arithmetic", [name]) for name in post_step_names()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with TemporaryDirectory(prefix="mergepipe-times-") as scratch:
        folder = Path(scratch)
        for expert in range(EXPERTS + 1):
            name = f"expert{expert}" if expert else "base"
            write_model(folder / name, SIZES["0.02b"], expert, sparse=False)
        for round_ in range(options.rounds + 1):
            for name, (method, then) in calls.items():
                if taken[name] and taken[name][0] > LONG:
                    continue
                spent = seconds(method, then, folder)
                if round_ or spent > LONG:  # the first round warms up
                    taken[name].append(spent)
    ratios = {name: median(spent) / median(taken["linear"]) for name, spent in taken.items()}
    for name, ratio in sorted(ratios.items(), key=lambda item: item[1]):
        print(f"{name:22} {median(taken[name]):8.3f} s {ratio:8.1f}×")
    if options.write:
        rounded = {name: float(f"{ratio:.2g}") for name, ratio in ratios.items()}
        made = {"machine": f"{platform.machine()}, {Resources().threads or 'all'} cores"}
        TIMES.write_text(json.dumps({**made, "relative_to_linear": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
