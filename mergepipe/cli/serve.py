"""`mergepipe serve`: a pool of models that others may merge and ask, but never have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergepipe.cli.options import Device, MaxMemory, Threads
from mergepipe.cli.signals import stoppable

__all__ = ["serve"]


def serve(
    pool: Annotated[
        Path, typer.Argument(help="The pool, a YAML file; with --adapters a model's folder.")
    ],
    adapters: Annotated[
        Path | None,
        typer.Option(
            "--adapters",
            metavar="FOLDER",
            help="Serve one model, whose LoRA adapters clients load from FOLDER.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; others need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8765,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="A certificate (PEM), for https.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", help="Its private key (PEM).")
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Make a key, print it once, and exit."),
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    device: Device = None,
) -> None:
    """Serve merges of a pool, by coefficients, or a model with LoRA adapters loaded at run time."""
    from mergepipe.cli.console import messages
    from mergepipe.cli.progress import tell
    from mergepipe.errors import EnvironmentFault, InputError, Problem
    from mergepipe.execute import Resources

    try:
        from mergepipe.service import keys, serving
        from mergepipe.service.pool import lone_base, read_pool
    except ImportError as error:
        what, fix = f"needs a package: {error}", "pip install 'mergepipe[service]'"
        raise EnvironmentFault(Problem("mergepipe serve", what, fix)) from error

    found = read_pool(pool) if adapters is None else lone_base(pool, adapters)
    if new_key is not None:
        if found.keys is None:
            fix = "write `keys: ./keys` into a pool (with --adapters: a pool with `load_from`)"
            raise InputError(Problem(str(pool), "it names no keys file", fix))
        print(keys.add_key(found.keys, new_key))  # noqa: T201
        tell(f"{found.keys}: has its digest; the key itself is shown only this once")
        return
    address = serving.Address(host, port, tls_cert, tls_key)
    if not address.is_loopback and tls_cert is None:
        tell("warning: without --tls-cert keys and texts can be read on the way")
    with stoppable():
        resources = Resources(threads, max_memory, device)
        serving.serve(found, address, resources, announce=lambda: tell(f"serving {address.url}/v1"))
    messages.print("stopped")
