"""Runs a Python program from standard input in a cage. It is a script, and imports nothing of ours.

    python -I confined.py '{"seconds": 5, "memory_bytes": ..., "isolation": "full"}' < program

Limits of time, memory, file size and processes hold always. With full isolation the program also
has namespaces of its own (users, processes, network: there is none), and Landlock lets it read
what Python needs, write in its working folder, and signal nobody outside. It exits with `CANNOT`
and says why where the system does not give that.
"""

# ruff: noqa: PTH109, PTH112, PTH120, PTH123 -- it starts in milliseconds without pathlib
from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

CANNOT = 97
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_FILE_RIGHTS = (1 << 0) | (1 << 1) | (1 << 2)  # execute, write, read
_READ = (1 << 0) | (1 << 2) | (1 << 3)  # execute, read, list
_TRUNCATE = 1 << 14
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights of files there are
_FIRST_WITH_NETWORK, _FIRST_WITH_SCOPES = 4, 6
_READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_MIB = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class CannotConfine(Exception):
    """The system does not give a limit that was asked for."""


def main() -> None:
    """Take the limits, and become the program."""
    limits = json.loads(sys.argv[1])
    try:
        if limits["isolation"] == "full":
            _leave()
            _limit(limits)
            _restrict(os.getcwd())
        else:
            _limit(limits)
    except (CannotConfine, OSError, ValueError) as error:
        sys.stderr.write(str(error))
        sys.exit(CANNOT)
    os.execve(sys.executable, [sys.executable, "-I", "-"], {"PYTHONHASHSEED": "0"})  # noqa: S606


def _limit(limits: dict[str, Any]) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, limits["seconds"] + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, _MIB),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    if limits["isolation"] == "full":  # in its own namespace only its own processes count
        resource.setrlimit(resource.RLIMIT_NPROC, (16, 16))


def _leave() -> None:
    """Enter namespaces of our own; the process that goes on is the first one there."""
    user, group = os.getuid(), os.getgid()
    _checked("namespaces", _libc.unshare(_NEW_USER | _NEW_PID | _NEW_NET))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    _checked("prctl", _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _write(file: str, text: str) -> None:
    with open(file, "w", encoding="ascii") as stream:
        stream.write(text)


def _restrict(folder: str) -> None:
    """Let Landlock allow what Python needs, and writing in `folder`."""
    version = _libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise CannotConfine("this kernel has no Landlock")
    count = _RIGHTS_BY_VERSION.get(version, max(_RIGHTS_BY_VERSION.values()))
    everything = (1 << count) - 1
    network = 3 if version >= _FIRST_WITH_NETWORK else 0
    scopes = 3 if version >= _FIRST_WITH_SCOPES else 0
    size = 24 if scopes else 16 if network else 8
    attributes = struct.pack("<QQQ", everything, network, scopes)[:size]
    rules = _checked("Landlock", _libc.syscall(_CREATE_RULESET, attributes, size, 0))
    readable = (*_READABLE, sys.base_prefix, sys.prefix, os.path.dirname(sys.executable))
    for path in dict.fromkeys(readable):
        _allow(rules, path, _READ)
    for path in _DEVICES:
        _allow(rules, path, _FILE_RIGHTS)
    _allow(rules, folder, everything)
    _checked("prctl", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked("Landlock", _libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS | _TRUNCATE
        rule = struct.pack("<Qi", rights, place)
        _checked("Landlock", _libc.syscall(_ADD_RULE, rules, 1, rule, 0))
    finally:
        os.close(place)


def _checked(what: str, result: int) -> int:
    if result < 0:
        raise CannotConfine(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
