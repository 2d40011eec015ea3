"""`mergepipe extract-lora`: a fine-tune as a LoRA adapter of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergepipe.cli.options import Device, Json
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.lora import Options

__all__ = ["extract_lora"]


def extract_lora(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The fine-tune: a folder, or org/name@revision.")
    ],
    base: Annotated[str, typer.Option("--base", help="The model it was fine-tuned from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter's folder.")],
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", min=1, help="Rank of every update; default: 32.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            help="In place of a rank: the least, for each matrix, that keeps this share of the "
            "squared singular values of its change, such as 0.9.",
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option("--max-rank", min=1, help="With --energy: the largest rank.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only matrices of that name; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="No matrix of that name; repeatable."),
    ] = None,
    save_module: Annotated[
        list[str] | None,
        typer.Option(
            "--save-module", metavar="NAME", help="Store a module whole, such as norm; repeatable."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="lora_alpha; default: the rank, so that all scales are 1."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; default: the fine-tune's."),
    ] = None,
    device: Device = None,
    *,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also embedding and output head, as updates.")
    ] = False,
    distribute_scale: Annotated[
        bool, typer.Option(help="Share singular values between A and B; else A has them all.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Write what a fine-tune changed as a LoRA adapter: the nearest of its rank, by SVD."""
    from mergepipe.lora import Options

    options = Options(
        rank=rank,
        energy=energy,
        max_rank=max_rank,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        save=tuple(save_module or ()),
        embeddings=embeddings,
        alpha=alpha,
        distribute_scale=distribute_scale,
        dtype=dtype,
        device=device,
    )
    with stoppable():
        _extract(model, base, out, options, overwrite=overwrite, json=json)


def _extract(
    model: str, base: str, out: Path, options: Options, *, overwrite: bool, json: bool
) -> None:
    from mergepipe.cli import lora_table
    from mergepipe.lora import extract, model_named

    with lora_table.progress() as advance:
        result = extract(
            model_named(model, "model"),
            model_named(base, "base"),
            out,
            options,
            overwrite=overwrite,
            advance=advance,
        )
    lora_table.show(result, json_only=json)
