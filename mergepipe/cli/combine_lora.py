"""`mergepipe combine-lora`: several LoRA adapters of one base as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Json
from mergepipe.cli.signals import stoppable

__all__ = ["combine_lora"]


def _as_weights(text: str) -> list[float]:
    from math import isfinite

    try:
        weights = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not numbers with commas between them") from error
    if not all(map(isfinite, weights)):
        raise typer.BadParameter(f"'{text}': finite numbers are needed")
    return weights


def combine_lora(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="Folders, or org/name@revision.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new adapter's folder.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="W,W,...", help="A factor for each adapter; default: 1 for all."
        ),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            help="cat: the exact sum, of all ranks together; svd: the nearest of a lower rank; "
            "asymmetric: factors summed apart, of the same rank, as Evo-Merging and LoraHub do. "
            "Default: svd if there is a --rank.",
        ),
    ] = None,
    densities: Annotated[
        str | None,
        typer.Option(
            "--densities",
            metavar="D,D,...",
            help="With asymmetric: the share of each adapter's A that is kept; default: all.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", min=1, help="With svd: the largest rank.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16 or float16.")
    ] = "float32",
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the weighted sum of LoRA adapters as one adapter, exactly or at a lower rank."""
    from mergepipe.cli import lora_table
    from mergepipe.errors import InputError, Problem
    from mergepipe.lora import combine

    factors = _as_weights(weights) if weights else [1.0] * len(adapters)
    if densities and how != "asymmetric":
        raise InputError(Problem("--densities", "is for --how asymmetric"))
    with stoppable():
        if how == "asymmetric":
            if rank is not None:
                raise InputError(Problem("--rank", "an asymmetric composition keeps the rank"))
            keep = _as_weights(densities) if densities else [1.0] * len(adapters)
            _compose(adapters, keep, factors, out, dtype=dtype, overwrite=overwrite)
            return
        result = combine(
            adapters,
            factors,
            out,
            how=how,
            rank=rank,
            dtype=dtype,
            overwrite=overwrite,
        )
        lora_table.show(result, json_only=json)


def _compose(
    adapters: list[str],
    keep: list[float],
    weights: list[float],
    out: Path,
    *,
    dtype: str,
    overwrite: bool,
) -> None:
    from mergepipe.cli.progress import tell
    from mergepipe.errors import Problems
    from mergepipe.lora import adapter_named
    from mergepipe.lora.composing import open_adapters

    problems = Problems()
    places = {text: adapter_named(text, problems) for text in adapters}
    problems.raise_any()
    folders = {text: place.folder for text, place in places.items() if place is not None}
    pool = open_adapters(folders)
    pool.write(keep, weights, out, dtype=dtype, overwrite=overwrite)
    tell(f"{out}: {len(pool.modules)} updates of rank {pool.rank}")
