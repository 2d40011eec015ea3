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
            help="cat: the exact sum, of all ranks together; svd: the nearest of a lower rank. "
            "Default: svd if there is a --rank.",
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
    from mergepipe.lora import combine

    with stoppable():
        result = combine(
            adapters,
            _as_weights(weights) if weights else [1.0] * len(adapters),
            out,
            how=how,
            rank=rank,
            dtype=dtype,
            overwrite=overwrite,
        )
        lora_table.show(result, json_only=json)
