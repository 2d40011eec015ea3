"""Trials in a database of yours, seen by the dashboard; its password is seen nowhere."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from test_search_resume import command_in, real_trials
from toy_search import BUDGET, GENES, loop_of

from mergepipe.errors import EnvironmentFault, InputError
from mergepipe.search.study import open_study, shown_storage

PASSWORD = "correct-horse"


def test_a_storage_is_shown_without_what_is_secret_in_it():
    url = f"postgresql+psycopg://me:{PASSWORD}@host:5432/trials?password={PASSWORD}"
    assert shown_storage(url) == "postgresql+psycopg://me:***@host:5432/trials"
    assert shown_storage("sqlite:////tmp/trials.db") == "sqlite:////tmp/trials.db"


@pytest.mark.parametrize("url", [PASSWORD, f"postgresql://me@host:{PASSWORD}/trials", ""])
def test_a_storage_that_is_no_url_is_not_repeated(url):
    with pytest.raises(InputError, match="is no URL of a database") as caught:
        shown_storage(url)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_driver_that_is_missing_is_named():
    url = f"mysql+mysqldb://me:{PASSWORD}@host/trials"
    with pytest.raises(InputError, match="its driver is not installed") as caught:
        open_study(url, "toy", GENES, objectives=1, where=shown_storage(url))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def program(name):
    found = shutil.which(name) or next(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), None)
    if found is None:
        pytest.skip(f"NO POSTGRESQL: {name} is missing, `apt-get install postgresql` brings it")
    return str(found)


@pytest.fixture(scope="module")
def database():
    """The URL of a cluster that is private to these tests; PostgreSQL refuses to run as root."""
    folder, port = Path(tempfile.mkdtemp(prefix="cluster-")), free_port()
    (folder / "password").write_text(PASSWORD)
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    for path in (folder, folder / "password"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    user = {"user": owner.pw_uid, "group": owner.pw_gid} if os.geteuid() == 0 else {}
    data = ["-D", str(folder / "data")]
    login = ["-U", "me", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    initdb = [program("initdb"), *data, *login, "--no-sync", "--no-locale", "-E", "UTF8"]
    subprocess.run(initdb, cwd=folder, check=True, stdout=subprocess.DEVNULL, **user)
    where = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-F"]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [program("postgres"), *data, *where], cwd=folder, stdout=log, stderr=log, **user
    )
    try:
        while not (folder / f".s.PGSQL.{port}").exists():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # do not wait for clients
        server.wait(30)
        log.close()
        shutil.rmtree(folder)


def wait_for_trials(url, count, process):
    query = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        while process.poll() is None:
            with suppress(psycopg.errors.UndefinedTable):
                (found,) = connection.execute(query).fetchone()
                if found >= count:
                    return
            time.sleep(0.05)
    pytest.fail(f"it ended: {process.communicate()[1]}")


@pytest.mark.slow
def test_a_search_in_postgresql_goes_on_after_a_kill_and_says_no_password(database, tmp_path):
    whole = command_in(tmp_path, "whole", budget=12)
    assert whole.communicate(timeout=300) is not None
    assert whole.returncode == 0
    killed = command_in(tmp_path, "cut", budget=12, storage=database)
    wait_for_trials(database, 2, killed)
    killed.kill()
    said = [*killed.communicate()]
    again = command_in(tmp_path, "cut", budget=12, storage=database)
    said += again.communicate(timeout=300)
    assert again.returncode == 0, said[-1]
    assert real_trials(tmp_path, "cut") == real_trials(tmp_path, "whole")
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not any(PASSWORD.encode() in text for text in written)
    assert not any(PASSWORD in (text or "") for text in said)
    assert not (tmp_path / "cut.search" / "trials.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [("me:", "you:"), (PASSWORD, f"{PASSWORD}-no"), ("/postgres", "/x")]
)
def test_a_database_that_refuses_is_an_error_without_the_password(change, database):
    url = database.replace(*change)
    with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1.*cannot be kept") as caught:
        open_study(url, "toy", GENES, objectives=1, where=shown_storage(url))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@contextmanager
def dashboard(url):
    """Optuna's own dashboard on a storage: a function that asks its API."""
    port = free_port()
    words = [url, "--host", "127.0.0.1", "--port", str(port)]
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    server = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def ask(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as answer:
            return json.load(answer)

    try:
        for _ in range(600):
            assert server.poll() is None, server.communicate()[1]
            try:
                ask("studies")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield ask
    finally:
        server.terminate()
        server.communicate()


@pytest.mark.slow
def test_the_dashboard_of_optuna_shows_a_study(tmp_path):
    trials = loop_of(tmp_path).run()
    with dashboard(f"sqlite:///{tmp_path / 'trials.db'}") as ask:
        (study,) = ask("studies")["study_summaries"]
        assert (study["study_name"], study["directions"]) == ("toy", ["minimize"])
        shown = ask(f"studies/{study['study_id']}?after=0")["trials"]
    assert len(shown) == BUDGET
    for ours, theirs in zip(trials, sorted(shown, key=lambda one: one["number"]), strict=True):
        assert (theirs["state"], theirs["values"]) == ("Complete", [*ours.losses])
        assert {one["name"] for one in theirs["params"]} == {"x", "y"}
