"""Evo-Merging against LoraHub and uniform weights: 23 adapters, and skills that none of them has.

The pool is recipes/search/evo: LoRA adapters of rank 4 of the quickstart base, most of which have
nothing to do with the target. Each method sees the loss of the same few pairs of the target skill;
the table has the loss and exact answers on pairs that were held out. A seed draws other pairs.

    python benchmarks/evo_merging.py [--seeds 5] [--targets NAME...] [--equal-budget]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

import torch

from mergepipe.lora.composed import ComposedModels
from mergepipe.lora.composing import open_adapters
from mergepipe.search.evo import EVO, Genome, evolve, lorahub, uniform

EVO_FOLDER = Path(__file__).parent.parent / "recipes" / "search" / "evo"
BASE = EVO_FOLDER.parent.parent / "quickstart" / "base"
SEARCHED, HELD_OUT = 32, 200
sys.path.insert(0, str(EVO_FOLDER))


def loss_of(model, pairs) -> float:
    """The mean cross-entropy of the labels' tokens, in nats."""
    scores = model.loglikelihood(pairs)
    return -sum(one.logprob for one in scores) / sum(one.tokens for one in scores)


def right(model, pairs) -> float:
    """The share of labels whose every token is the likeliest."""
    return fmean(one.greedy for one in model.loglikelihood(pairs))


def methods(models, seen, seed, *, equal):
    """What is compared: name -> (genome, evaluations)."""
    count = len(models.pool.labels)

    def losses(genomes):
        return [loss_of(models.composed(one.keep, one.weights), seen) for one in genomes]

    singles = [
        Genome((1.0,) * count, tuple(float(i == at) for i in range(count))) for at in range(count)
    ]
    yield "base", Genome((1.0,) * count, (0.0,) * count), 0
    yield "uniform", uniform(count), 0
    found = losses(singles)
    yield "best adapter", singles[found.index(min(found))], count
    budgets = {"LoraHub": 40}
    if equal:
        budgets["LoraHub, Evo's budget"] = EVO.denoising + EVO.scaling
    for name, budget in budgets.items():
        hub = lorahub(count, losses, budget=budget, seed=seed)
        yield name, hub.genome, hub.evaluations
    evo = evolve(count, losses, seed=seed)
    yield "Evo-Merging", evo.genome, evo.evaluations


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--targets", nargs="*", help="of skills.py; default: all")
    parser.add_argument("--equal-budget", action="store_true", help="LoraHub with it too; slow")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from skills import TARGETS, pairs

    torch.set_num_threads(1)
    names = sorted(path.name for path in (EVO_FOLDER / "pool").iterdir())
    pool = open_adapters({name: EVO_FOLDER / "pool" / name for name in names})
    models, rows = ComposedModels(BASE, pool), []
    for target in arguments.targets or TARGETS:
        draw = TARGETS[target]
        held_out = list(islice(pairs(draw, random.Random(1), held_out=True), HELD_OUT))
        for seed in range(arguments.seeds):
            seen = list(islice(pairs(draw, random.Random(f"{seed}"), held_out=False), SEARCHED))
            began = time.perf_counter()
            for name, genome, evaluations in methods(
                models, seen, seed, equal=arguments.equal_budget
            ):
                model = models.composed(genome.keep, genome.weights)
                row = {"target": target, "seed": seed, "method": name, "evaluations": evaluations}
                row |= {"seen": loss_of(model, seen), "loss": loss_of(model, held_out)}
                row |= {"right": right(model, held_out), "seconds": time.perf_counter() - began}
                top = sorted(zip(genome.weights, names, strict=True), key=lambda one: -abs(one[0]))
                row["largest"] = {name: round(weight, 2) for weight, name in top[:4]}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                began = time.perf_counter()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def table(rows) -> str:
    """Means and standard deviations over seeds, as Markdown."""
    lines = ["| target | method | evaluations | loss seen | loss held out | right | seconds |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    keys = dict.fromkeys((row["target"], row["method"]) for row in rows)
    for target, method in keys:
        mine = [row for row in rows if (row["target"], row["method"]) == (target, method)]
        spread = stdev([row["loss"] for row in mine]) if len(mine) > 1 else 0.0
        means = {key: fmean(row[key] for row in mine) for key in ("seen", "loss", "right")}
        cells = [
            target,
            method,
            f"{fmean(row['evaluations'] for row in mine):.0f}",
            f"{means['seen']:.3f}",
            f"{means['loss']:.3f} ± {spread:.3f}",
            f"{means['right']:.1%}",
            f"{fmean(row['seconds'] for row in mine):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
