"""`mergepipe evolve-lora`: one adapter out of many, by the loss on a few examples alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mergepipe.cli.options import Json
from mergepipe.cli.signals import stoppable

if TYPE_CHECKING:
    from mergepipe.lora.composing import AdapterPool
    from mergepipe.pipeline.evolving import Composed, Evolved

__all__ = ["evolve_lora"]

_SECONDS_BETWEEN_LINES = 10.0


def evolve_lora(
    data: Annotated[Path, typer.Argument(help='JSON Lines: {"prompt": ..., "label": ...}.')],
    adapters: Annotated[
        list[Path] | None, typer.Argument(metavar="[ADAPTER]...", help="Folders of one base.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base's folder; or api:URL#MODEL, see --folder."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the server loads adapters from, at run time."),
    ] = None,
    seen_as: Annotated[
        str | None,
        typer.Option("--seen-as", help="That folder as the server sees it; default: the same."),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option("--service", metavar="URL", help="A merge service, in place of these."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The new adapter's folder; of a service a JSON file."),
    ] = Path("evolved"),
    how: Annotated[
        Literal["evo", "lorahub"], typer.Option("--how", help="Evo-Merging, or LoraHub.")
    ] = "evo",
    denoising: Annotated[
        int, typer.Option("--denoising", min=1, help="Evaluations of the first stage.")
    ] = 400,
    scaling: Annotated[
        int, typer.Option("--scaling", min=1, help="Evaluations of the second stage.")
    ] = 800,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 42,
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output if it exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Compose LoRA adapters by evolution (Evo-Merging), or by LoraHub, for a new skill."""
    from mergepipe.errors import InputError, Problem
    from mergepipe.pipeline import evolving
    from mergepipe.search.evo import Preset

    if (service is None) == (base is None) or bool(adapters) != bool(base):
        raise InputError(Problem("evolve-lora", "give --base and adapters, or --service"))
    if (folder is not None) != (base or "").startswith("api:") or (seen_as and not folder):
        what = "--folder is where a server loads adapters from"
        raise InputError(Problem("evolve-lora", what, "give it with --base api:URL#MODEL"))
    if out.exists() and not overwrite:
        raise InputError(Problem(str(out), "exists", "give --overwrite to replace it"))
    with stoppable():
        pairs = evolving.read_pairs(data)
        if service is not None:
            source = _of_service(service)
        elif folder is not None:
            source = _on_server(str(base), adapters or [], folder, seen_as, out)
        else:
            source = _here(Path(str(base)), adapters or [])
        with source.session:
            evolved = evolving.evolve_adapters(
                source.composed,
                source.labels,
                pairs,
                how=how,
                preset=Preset(denoising, scaling),
                seed=seed,
                report=_told(),
            )
        source.write(evolved, out, overwrite=overwrite)
        _show(evolved, out, json_only=json)


@dataclass
class _Source:
    """Adapters here, asked here or on a server, or those of a service, whose weights stay there."""

    labels: tuple[str, ...]
    composed: Composed
    pool: AdapterPool | None = None
    session: AbstractContextManager[None] = field(default_factory=nullcontext)

    def write(self, evolved: Evolved, out: Path, *, overwrite: bool) -> None:
        from mergepipe.pipeline.evolving import write_report

        if self.pool is None:
            write_report(evolved, out)
            return
        genome = evolved.found.genome
        self.pool.write(genome.keep, genome.weights, out, overwrite=overwrite)
        write_report(evolved, out / "evolved.json")


def _of_service(url: str) -> _Source:
    from mergepipe.search.remote import remote_pool

    remote = remote_pool(url)
    return _Source(remote.adapters, remote.composed)


def _here(base: Path, adapters: list[Path]) -> _Source:
    from mergepipe.lora.composed import ComposedModels
    from mergepipe.lora.composing import open_adapters

    pool = open_adapters(_named(adapters))
    return _Source(pool.labels, ComposedModels(base, pool).composed, pool)


def _on_server(
    base: str, adapters: list[Path], folder: Path, seen_as: str | None, out: Path
) -> _Source:
    from mergepipe.cli.progress import tell
    from mergepipe.pipeline.adapter_serving import addressed_compositions

    made = addressed_compositions(base, _named(adapters), folder, seen_as, out)
    return _Source(tuple(made.adapters), made.composed, made.pool(), made.session(tell))


def _named(adapters: list[Path]) -> dict[str, Path]:
    from mergepipe.errors import InputError, Problem

    named = {str(folder): folder for folder in adapters}
    if len(named) < len(adapters):
        raise InputError(Problem("evolve-lora", "an adapter is given twice"))
    return named


def _told() -> Callable[[int, float], None]:
    """Give a function that says every ten seconds how far the search is."""
    import time

    from mergepipe.cli.progress import tell

    spoke = time.monotonic()

    def told(done: int, best: float) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= _SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            tell(f"{done} evaluations; the best loss is {best:.4f}")

    return told


def _show(evolved: Evolved, out: Path, *, json_only: bool) -> None:
    from mergepipe.cli.console import results
    from mergepipe.cli.progress import tell
    from mergepipe.errors import printable
    from mergepipe.pipeline.evolving import report_text

    if json_only:
        print(report_text(evolved), end="")  # noqa: T201
        return
    genome = evolved.found.genome
    rows = sorted(
        zip(evolved.labels, genome.keep, genome.weights, strict=True), key=lambda row: -abs(row[2])
    )
    lines = [f"{'adapter':30}  share  factor"]
    lines += [
        f"{printable(label)[-30:]:30}  {keep:5.2f}  {factor:+.3f}" for label, keep, factor in rows
    ]
    lines.append(f"{'loss (nats a token)':30}   seen  held out")
    lines += [
        f"{name:30}  {loss:5.3f}  {evolved.held_out[name]:.3f}"
        for name, loss in evolved.seen.items()
    ]
    results.print("\n".join(lines), markup=False, highlight=False)
    tell(f"{out}: after {evolved.found.evaluations} evaluations")
