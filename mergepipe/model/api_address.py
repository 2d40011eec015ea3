"""Where requests and the key may go. A recipe can name an address; only the operator trusts one.

A host is trusted if it is that of `X_BASE_URL` in the environment, where the key is in `X_API_KEY`
(`OPENAI_BASE_URL` for `OPENAI_API_KEY`), or is passed in `trusted_hosts`. Without either, only
api.openai.com gets OPENAI_API_KEY; other hosts get no key, and must be public ones behind https.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from mergepipe.errors import InputError, Problem, printable

__all__ = ["Address", "checked_address", "default_url"]

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_OPENAI = ("OPENAI_API_KEY", "api.openai.com:443")
_OPENAI_URL = "https://api.openai.com/v1"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address; `key_env` names the variable with its key, None where it gets none."""

    base_url: str
    host: str  # with its port
    key_env: str | None
    loopback: bool

    def key(self) -> str | None:
        """The key; it is read from the environment each time and kept nowhere.

        Raises
        ------
        InputError
            if the variable is not set, or holds what cannot be a header.

        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key and self.loopback:
            return None
        if not key:
            fix = f"export {self.key_env}=..., or set key_env to none where the server wants no key"
            raise InputError(Problem(self.base_url, f"{self.key_env} is not set", fix))
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise InputError(f"{self.key_env} holds characters that no key has")
        return key


def checked_address(
    base_url: str, key_env: str | None, trusted_hosts: Collection[str] = ()
) -> Address:
    """Check where requests would go, and whether the key may go there.

    Raises
    ------
    InputError
        if the address is not one, or is not the operator's to trust with requests or the key.

    """
    if key_env is not None and not _NAME.fullmatch(key_env):
        what = "key_env must name an environment variable; what it holds is not shown"
        raise InputError(Problem("key_env", what, "write OPENAI_API_KEY, not the key itself"))
    parts = _split(base_url)
    host = _host(parts)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    ips = _addresses(parts.hostname or "")
    loopback = bool(ips) and all(ip.is_loopback for ip in ips)
    trusted = host in {*trusted_hosts, *_operators(key_env)} or (key_env, host) == _OPENAI
    given = key_env is not None and bool(os.environ.get(key_env))
    if not trusted:
        _check_untrusted(shown, parts.scheme, ips, key_env)
    if given and not trusted:
        name = _base_url_name(key_env)
        fix = f"export {name}={shown} if the key belongs there, or set key_env to none"
        raise InputError(Problem(shown, f"the key in {key_env} is not meant for this host", fix))
    if given and parts.scheme == "http" and not loopback:
        what = f"http would show the key in {key_env} to the network"
        raise InputError(Problem(shown, what, "use https, or an ssh tunnel to this machine"))
    return Address(shown.rstrip("/"), host, key_env, loopback)


def default_url(key_env: str | None) -> str:
    """Give the address that the environment binds the key in `key_env` to; else OpenAI's own."""
    return os.environ.get(_base_url_name(key_env)) or _OPENAI_URL


def _split(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        parts.port  # noqa: B018 (raises where it is no port)
    except ValueError:
        raise InputError(Problem("base_url", "is no address", "write https://HOST/v1")) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        what = f"'{printable(parts.scheme, 40)}' is no http address"
        raise InputError(Problem("base_url", what, "write https://HOST/v1"))
    if "@" in parts.netloc or parts.query or parts.fragment:
        what = "holds a user, a query or a fragment, which may be secret; they are not shown"
        raise InputError(
            Problem("base_url", what, "write https://HOST/v1 and put the key in key_env")
        )
    return parts


def _host(parts: SplitResult) -> str:
    return f"{(parts.hostname or '').lower()}:{parts.port or _PORTS.get(parts.scheme, 443)}"


def _base_url_name(key_env: str | None) -> str:
    return f"{(key_env or 'OPENAI_API_KEY').removesuffix('_API_KEY')}_BASE_URL"


def _operators(key_env: str | None) -> list[str]:
    said = os.environ.get(_base_url_name(key_env))
    return [_host(_split(said))] if said else []


def _addresses(hostname: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """What the name stands for; nothing where it cannot be looked up (the request will say so)."""
    try:
        found = socket.getaddrinfo(hostname, None)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]


def _check_untrusted(
    shown: str,
    scheme: str,
    ips: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    key_env: str | None,
) -> None:
    """Refuse this machine, its network, and plain http.

    A name that is looked up again later could lead inside, but has no certificate there.
    """
    variable = _base_url_name(key_env)
    fix = f"export {variable} with this address if that is meant (in Python: trusted_hosts)"
    if inside := [ip for ip in ips if not ip.is_global]:
        what = f"leads to {inside[0]}, inside this machine or its network"
        raise InputError(Problem(shown, what, fix))
    if scheme == "http":
        raise InputError(Problem(shown, "http is for trusted hosts only", f"use https; or {fix}"))
