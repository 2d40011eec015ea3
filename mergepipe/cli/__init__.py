"""The command line: one thin file a command; arguments in, one call, messages out."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from mergepipe.cli import (
    card,
    combine_lora,
    convert,
    evaluate,
    evaluators,
    evolve_lora,
    extract_lora,
    init,
    inspect,
    lint,
    methods,
    plan,
    publish,
    report,
    reproduce,
    run,
    schema,
    search,
    serve,
    sign,
    tokens,
    transplant,
    verify,
)
from mergepipe.cli.console import print_error
from mergepipe.cli.streams import safe_streams
from mergepipe.errors import MergepipeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mergepipe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Merge language models: a recipe in, a checkpoint that loads anywhere out.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mergepipe {version('mergepipe')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Show the version and exit.",
    ),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback with every error."),
) -> None:
    if debug:
        os.environ["MERGEPIPE_DEBUG"] = "1"


app.command("run")(run.run)
app.command("search")(search.search)
app.command("plan")(plan.plan)
app.command("eval")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
app.command("lint")(lint.lint)
app.command("report")(report.report)
app.command("verify")(verify.verify)
app.command("reproduce")(reproduce.reproduce)
app.command("card")(card.card)
app.command("sign")(sign.sign)
app.command("publish")(publish.publish)
app.command("extract-lora")(extract_lora.extract_lora)
app.command("combine-lora")(combine_lora.combine_lora)
app.command("transplant")(transplant.transplant)
app.command("serve")(serve.serve)
app.command("evolve-lora")(evolve_lora.evolve_lora)
app.command("methods")(methods.methods)
app.command("evaluators")(evaluators.evaluators)
app.command("init")(init.init)
app.command("schema")(schema.schema)
app.add_typer(tokens.app, name="tokens")


def main() -> None:
    """Run the command line.

    Exits with 0 done, 2 wrong input, 3 environment, 4 a difference, 130 interrupted.
    """
    # Before torch is loaded: its threads would spin while they wait for each other, which costs
    # most of the time where others use the cores too. The numbers do not change.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with safe_streams():
        try:
            app()
        except MergepipeError as error:
            if os.environ.get("MERGEPIPE_DEBUG"):
                traceback.print_exc()
            print_error(error)
            sys.exit(error.exit_status)
