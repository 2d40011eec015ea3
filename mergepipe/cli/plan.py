"""`mergepipe plan`: say what `run` would do, and touch nothing."""

from __future__ import annotations

from mergepipe.cli.options import (
    Compat,
    Device,
    Json,
    MaxMemory,
    Out,
    Plugin,
    RecipeFile,
    Set,
    Threads,
)

__all__ = ["plan"]


def plan(
    recipe: RecipeFile,
    out: Out = None,
    overrides: Set = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
    plugin: Plugin = None,
    compat: Compat = None,
    *,
    json: Json = False,
) -> None:
    """Say what `run` would do: every tensor, parameter, byte and warning. Touches nothing."""
    from mergepipe import pipeline
    from mergepipe.cli import plan_table
    from mergepipe.cli.console import print_warnings
    from mergepipe.errors import InputError, Problem
    from mergepipe.execute import Resources

    prepared = pipeline.prepare(
        recipe,
        settings=overrides or (),
        out=out,
        resources=Resources(threads, max_memory, device),
        local_files_only=True,
        plugins=plugin or (),
        compat=compat,
    )
    if prepared.ensemble is not None:
        what = "an ensemble is not merged, so there is nothing to plan"
        raise InputError(Problem(recipe.name, what, "`mergepipe run` scores it"))
    plan_table.show(prepared, json_only=json)
    print_warnings(() if json else prepared.warnings)
