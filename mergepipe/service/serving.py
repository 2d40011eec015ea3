"""The service on a socket: uvicorn, with a time limit for headers too."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.execute import Resources
from mergepipe.service.adapter_app import AdapterService, make_adapter_app
from mergepipe.service.adapters import Adapters
from mergepipe.service.app import Service, make_app
from mergepipe.service.candidates import Candidates
from mergepipe.service.guard import Guard
from mergepipe.service.keys import read_keys
from mergepipe.service.pool import Pool

__all__ = ["Address", "guarded", "serve", "server_of"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; `cert` and `key` are files of PEM, for https."""

    host: str = "127.0.0.1"
    port: int = 8765
    cert: Path | None = None
    key: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """The address that clients write."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.cert else 'http'}://{host}:{self.port}"


def guarded(pool: Pool, address: Address, resources: Resources) -> Guard:
    """Open a pool's models and give the application.

    Raises
    ------
    InputError
        if others than this machine could ask without a key; if a model or file is wrong.

    """
    keys = read_keys(pool.keys) if pool.keys is not None and pool.keys.exists() else {}
    if not keys and (pool.keys is not None or not address.is_loopback):
        fix = "`mergepipe serve POOL --new-key NAME` makes one; the pool names the file as `keys:`"
        raise InputError(Problem(str(pool.keys or address.host), "there are no keys", fix))
    own = f"[{address.host}]" if ":" in address.host else address.host
    names = {own.lower(), *pool.hosts} | (_LOOPBACK if address.is_loopback else set())
    hosts = frozenset(names - {"0.0.0.0", "[::]"})  # noqa: S104 -- these are no names to ask by
    if not hosts:
        fix = "list them in the pool: `hosts: [merge.example.org]`"
        raise InputError(Problem(address.host, "no host names are known to ask by", fix))
    if pool.load_from is not None:
        return make_adapter_app(AdapterService(Adapters(pool, resources), keys, hosts))
    return make_app(Service(Candidates(pool, resources), keys, hosts))


def server_of(app: Guard, address: Address, *, announce: Any = None) -> uvicorn.Server:
    """Give the server, not started; `announce()` is called when it listens.

    Raises
    ------
    InputError
        if the certificate cannot be used.

    """
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=_protocol(app.limits.header_seconds),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=app.limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=10,
        ssl_certfile=address.cert,
        ssl_keyfile=address.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(Problem(str(address.cert), f"cannot be used: {error.strerror}")) from error
    return _Server(config, announce)


class _Server(uvicorn.Server):
    """A server that says when it listens, and whether it could."""

    def __init__(self, config: uvicorn.Config, announce: Any) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            what = f"port {self.config.port} of {self.config.host} cannot be listened to"
            raise EnvironmentFault(Problem("serve", what, "choose another --port")) from None
        if self._announce is not None:
            self._announce()


def serve(pool: Pool, address: Address, resources: Resources, *, announce: Any) -> None:
    """Serve until a signal ends it; every request is a line of JSON in the log, on stderr."""
    log = logging.getLogger("mergepipe.service")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    server_of(guarded(pool, address, resources), address, announce=announce).run()


def _protocol(seconds: float) -> type[H11Protocol]:
    """Give uvicorn's protocol, which hangs up on who does not send whole headers in time."""

    class Timed(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if not waits and self._late is not None:
                self._late.cancel()
                self._late = None
            elif waits and self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

    return Timed
