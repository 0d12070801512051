"""The backends that the contract suite runs over; PostgreSQL is a real server of the machine's, started here."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aios_kernel.storage import PostgresStorage, SqliteStorage, Storage

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextlib.contextmanager
def running_postgres() -> Generator[str]:
    """A server of its own on a socket in a new folder; gives its URL. PostgreSQL refuses root: then as nobody."""
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="aios-pg-", dir="/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    settings = {"user": user.pw_uid, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
    initdb = [BINARIES[-1] / "initdb", "-D", folder / "data", "-U", "aios", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **settings)
    command = [BINARIES[-1] / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, **settings) as server:
        try:
            ready = [BINARIES[-1] / "pg_isready", "-h", folder, "-t", "1"]
            while subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql://aios@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for its clients
            server.wait(30)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def brief_postgres() -> Callable[[], AbstractContextManager[str]]:
    """Starts a server for a block."""
    if not BINARIES:
        pytest.skip("no PostgreSQL server here; fix: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="fix: pip install 'aios-kernel[postgres]'")
    return running_postgres


@pytest.fixture(scope="session")
def postgres_url(brief_postgres: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """A server for all tests."""
    with brief_postgres() as url:
        yield url


@pytest.fixture(params=["postgres", "sqlite"])
def make_storage(request: pytest.FixtureRequest) -> Callable[..., Storage]:
    """Makes the storage of a folder; a second one of the same folder has the same files."""
    if request.param == "sqlite":
        return lambda home, quota=0: SqliteStorage(home / "storage.db", quota)
    url = request.getfixturevalue("postgres_url")

    def make(home: Path, quota: int = 0) -> Storage:
        name = f"t{abs(hash(home))}"
        psql = [BINARIES[-1] / "psql", "-q", "-d", url, "-c"]
        subprocess.run([*psql, f"CREATE DATABASE {name}"], stderr=subprocess.DEVNULL, check=False)  # or it is there
        return PostgresStorage(url.replace("/postgres?", f"/{name}?"), quota)

    return make
