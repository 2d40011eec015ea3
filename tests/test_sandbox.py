"""Programs that nobody has read: what they may not do, and that a right one passes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergepipe.errors import EnvironmentFault
from mergepipe.evaluate import sandbox
from mergepipe.evaluate.sandbox import Limits, run_program

LIMITS = Limits(seconds=3, memory_bytes=512 << 20)


def reason(source: str) -> str:
    verdict = run_program(source, LIMITS)
    assert not verdict.passed
    return verdict.reason


def test_a_program_that_gets_to_its_end_passes():
    assert run_program("import json, re, math\nassert json.loads('[1]') == [1]", LIMITS).passed


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('é')", "ValueError: é"),
        ("import sys; sys.exit(0)", "exit status 0"),
        ("import os; os._exit(0)", "exit status 0"),
        ("input()", "EOFError"),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("print('forged'); raise SystemExit(0)", "forged"),
    ],
)
def test_one_that_does_not_says_why(source, said):
    assert said in reason(source)


def test_one_that_never_ends_is_stopped():
    start = time.monotonic()
    assert reason("while True: pass") == "timeout"
    assert time.monotonic() - start < LIMITS.seconds + 2


def test_what_it_writes_is_bounded():
    assert reason("while True: print('x' * 10000)") == 200 * "x"


def test_it_cannot_read_or_write_what_is_the_users(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    assert "PermissionError" in reason(f"print(open({str(secret)!r}).read())")
    assert "PermissionError" in reason(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert "PermissionError" in reason(f"import os; os.remove({str(secret)!r})")
    assert secret.read_text() == "s3cret"
    assert run_program("open('mine', 'w').write('x'); assert open('mine').read()", LIMITS).passed


def test_it_sees_no_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    assert run_program("import os; assert 'OPENAI_API_KEY' not in os.environ", LIMITS).passed


def test_there_is_no_network():
    program = "import socket; socket.create_connection(('{}', 80), 1)"
    for host in ("127.0.0.1", "1.1.1.1"):
        assert "Error" in reason(program.format(host))
    send = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('1.1.1.1', 53))"
    )
    assert "Error" in reason(send)


def test_its_children_end_with_it():
    mark = "mergepipe-orphan"
    assert run_program(
        f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    name = {mark!r}\n    time.sleep(60)",
        LIMITS,
    ).passed
    storm = "import os\nwhile True:\n    os.fork()"
    assert not run_program(storm, Limits(seconds=1)).passed
    time.sleep(0.2)
    found = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"confined.py" in _bytes(p)]
    assert not found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_without_isolation_to_be_had_nothing_is_run(monkeypatch, tmp_path):
    cage = tmp_path / "cage.py"
    source = Path(sandbox.__file__).with_name("confined.py").read_text()
    cage.write_text(
        source.replace("_NEW_USER, _NEW_PID", "_NEW_PID, _NEW_USER").replace(
            "version < 1", "version < 10**6"
        )
    )
    monkeypatch.setattr(sandbox, "_CAGE", cage)
    mark = tmp_path / "ran"
    with pytest.raises(EnvironmentFault, match="cannot be isolated here: this kernel has no"):
        run_program(f"open({str(mark)!r}, 'w')", LIMITS)
    assert not mark.exists()
    assert run_program("assert True", Limits(isolation="limits")).passed


def test_the_cage_is_a_script_that_needs_nothing():
    code = f"import runpy, sys; sys.argv = ['x', '{{}}']; runpy.run_path({str(sandbox._CAGE)!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
