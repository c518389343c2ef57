"""A PostgreSQL server of our own: a cluster in a temporary folder, reached through a socket in it.

Needs the programs of Debian's `postgresql` package (or any other, on PATH or named by POSTGRES_BIN).
"""

import os
import shutil
import signal
import subprocess
import tempfile
from functools import cached_property
from itertools import count
from pathlib import Path

import psycopg

from tests.programs import skip_or_fail

_ACCOUNT = "postgres"
"""PostgreSQL refuses to run as root; its package makes this account."""


class PostgresMissing(Exception):
    def __init__(self) -> None:
        super().__init__("PostgreSQL is not installed: apt-get install postgresql, or set POSTGRES_BIN")


def postgres_or_skip(durable: bool = False) -> "PostgresServer":
    """A server that runs; without PostgreSQL see `skip_or_fail`."""
    try:
        return PostgresServer(durable).start()
    except PostgresMissing as error:
        skip_or_fail(str(error))


class PostgresServer:
    """Started by `start`; `stop` and `kill` leave the data, `remove` does not.

    With `durable` it syncs as in production; without, tests are several times faster.
    """

    def __init__(self, durable: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="npt-pg-"))
        self._data, self._log = self.folder / "data", self.folder / "log"
        self._durable = durable
        self._numbers = count()
        if os.geteuid() == 0:
            shutil.chown(self.folder, _ACCOUNT)
        self._run("initdb", "-D", str(self._data), "-U", _ACCOUNT, "-A", "trust", "--no-sync", "-E", "UTF8")

    @cached_property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs."""
        named = os.environ.get("POSTGRES_BIN")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
        for candidate in (named and Path(named) / "initdb", shutil.which("initdb"), *reversed(found)):
            if candidate and Path(candidate).exists():
                return Path(candidate).resolve().parent
        raise PostgresMissing

    def start(self) -> "PostgresServer":
        """Returns when it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c max_connections=200"
        if not self._durable:
            options += " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._log), "-w", "-o", options, "start")
        return self

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends connections, `immediate` is a crash that it recovers from at the next start."""
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """The server's main process, without a chance to tidy up."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def remove(self) -> None:
        """Stop it and forget its data."""
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"npt_{next(self._numbers)}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://{_ACCOUNT}@/{name}?host={self.folder}"

    def dsn(self, database: str) -> str:
        """For psycopg."""
        return f"host={self.folder} user={_ACCOUNT} dbname={database}"

    def _run(self, program: str, *arguments: str) -> None:
        account = ["runuser", "-u", _ACCOUNT, "--"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*account, str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}")
