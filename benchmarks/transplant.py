"""Processor time per token of orthogonal matching pursuit beside mergekit-tokensurgeon.

    python benchmarks/transplant.py --tokens 2048 --peer-tokens 64 --rounds 2

The vocabularies are Llama 3's (the base) and Qwen 2.5's (the donor): anchors are what both have,
targets a sample of what only the donor has. The embeddings are random but shaped as real ones:
variances of a power law, tokens in families, norms as in SmolLM2's table. mergepipe makes each
Gram row that it needs once: `with its Gram rows` adds the time of all of them, spread over all
missing tokens, to the time of a token whose rows are there.

    python benchmarks/transplant.py --whole /tmp/whole

gives a model of one layer with Llama 3's tokenizer that of Qwen 2.5, all missing tokens, by the
command that users have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from contest import beside_python, measure
from safetensors.torch import save_file
from synthetic import Shape, config, tensors, values

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Result = TypeVar("Result")
FAMILY = 8  # tokens that share part of their direction


def vocabulary(name: str) -> set[str]:
    """The ordinary tokens of a byte-level tokenizer, as it spells them."""
    import material

    stored = json.loads((material.tokenizer(name) / "tokenizer.json").read_text("utf-8"))
    return set(stored["model"]["vocab"])


def embeddings(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Rows with a spectrum of i^-0.8, families, and log-normal norms; less their mean."""
    draws = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, columns + 1) ** -0.4
    out = torch.empty(rows, columns)
    for part in out.split(8192):
        families = torch.randn(-(-len(part) // FAMILY), columns, generator=draws)
        own = torch.randn(part.shape, generator=draws)
        part.copy_(0.5 * families.repeat_interleave(FAMILY, 0)[: len(part)] + 0.87 * own)
        part.mul_(spectrum)
        sizes = torch.exp(0.18 * torch.randn(len(part), 1, generator=draws))
        part.mul_(sizes / part.norm(dim=1, keepdim=True))
    return out - out.mean(0)


def timed(run: Callable[..., Result], *given: object) -> tuple[float, Result]:
    """Processor seconds of all threads, which other programs on the machine change least."""
    start = time.process_time()
    result = run(*given)
    return time.process_time() - start, result


def relative(
    targets: torch.Tensor, atoms: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> float:
    """The mean residual of a combination, over the norms of its targets."""
    some = targets[: len(ids)]
    made = torch.einsum("nk,nkd->nd", weights, atoms[ids])
    return float(((made - some).norm(dim=1) / some.norm(dim=1)).mean())


def write_model(folder: Path, tokenizer: str, rows: int, hidden: int, seed: int) -> None:
    """A Llama of one layer with tied embeddings and a real tokenizer."""
    import material

    folder.mkdir(parents=True)
    for file in material.tokenizer(tokenizer).iterdir():
        shutil.copy(file, folder)
    shape = Shape(1, hidden, 2 * hidden, hidden // 64, hidden // 64, rows)
    (folder / "config.json").write_text(json.dumps(config(shape) | {"tie_word_embeddings": True}))
    made = {
        name: values(name, extent, seed).view(extent)
        for name, extent in tensors(shape)
        if extent[0] != rows
    }
    table = embeddings(rows, hidden, seed).to(torch.bfloat16)
    save_file({"model.embed_tokens.weight": table, **made}, folder / "model.safetensors")


def whole(folder: Path, hidden: int, k: int, threads: int) -> None:
    """Time and memory of `mergepipe transplant` for all that Llama 3 lacks of Qwen 2.5."""
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder / "base", "llama3", 128_256, hidden, 0)
    write_model(folder / "donor", "qwen2_5", 151_936, hidden, 1)
    words = ("--method", "omp", "--k", str(k), "--threads", str(threads))
    names = (str(folder / "base"), "--tokenizer", str(folder / "donor"), "--out", str(folder / "o"))
    command = (beside_python("mergepipe"), "transplant", *names, *words)
    cost = measure(command, folder / "log.txt", {})
    print((folder / "log.txt").read_text())
    print(f"{cost.seconds:.0f} s, {cost.cpu_seconds:.0f} s of CPU, {cost.peak_bytes / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--hidden", type=int, default=2048)
    add("--k", type=int, default=64)
    add("--tokens", type=int, default=256, help="pursued by mergepipe in a round")
    add("--peer-tokens", type=int, default=32, help="pursued by mergekit in a round")
    add("--rounds", type=int, default=2)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--whole", type=Path, metavar="FOLDER", help="the whole vocabulary, by the command")
    args = parser.parse_args()
    if args.whole:
        whole(args.whole, args.hidden, args.k, args.threads)
        return
    torch.set_num_threads(args.threads)

    from mergekit.tokensurgeon.omp import batch_omp

    from mergepipe.transplant.pursuit import Dictionary

    base, donor = vocabulary("llama3"), vocabulary("qwen2_5")
    shared, missing = len(base & donor), len(donor - base)
    wanted = min(missing, args.rounds * args.tokens)
    table = embeddings(shared + wanted, args.hidden, 0)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(1))
    targets, atoms = table[order[:wanted]], table[order[wanted:]]
    del table
    print(f"{shared} anchors, {missing} missing, {args.hidden} columns, k = {args.k}, ", end="")
    print(f"{args.threads} threads, torch {torch.__version__}, mergekit {version('mergekit')}")
    dictionary = Dictionary(atoms, threads=args.threads)
    Dictionary(atoms[:512], threads=1).pursue(targets[:4], 8)  # compiles
    print(
        "| round | mergekit | mergepipe | ratio | with its Gram rows | ratio | supports | error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number in range(args.rounds):
        ours = targets[number * args.tokens : (number + 1) * args.tokens]
        peer, (ids, weights) = timed(batch_omp, ours[: args.peer_tokens], atoms, args.k)
        peer *= 1e3 / args.peer_tokens
        before = dictionary.rows_made
        cold, found = timed(dictionary.pursue, ours, args.k)
        rows = dictionary.rows_made - before
        warm, again = timed(dictionary.pursue, ours, args.k)
        assert again.coefficients.tobytes() == found.coefficients.tobytes()
        # Over the whole vocabulary, a row is made once at most.
        gram = (cold - warm) / max(rows, 1) * len(atoms) / missing * 1e3
        warm *= 1e3 / len(ours)
        errors = relative(ours, atoms, ids, weights), float(found.residual[: len(ids)].mean())
        pairs = zip(ids.tolist(), found.ids.tolist(), strict=False)
        same = np.mean([set(a) == set(b) for a, b in pairs])
        print(
            f"| {number + 1} | {peer:.0f} | {warm:.1f} | {peer / warm:.1f} | {warm + gram:.1f} ",
            end="",
        )
        print(f"| {peer / (warm + gram):.1f} | {same:.0%} the same ", end="")
        print(f"| {errors[0]:.6f}, {errors[1]:.6f} |", flush=True)


if __name__ == "__main__":
    main()
