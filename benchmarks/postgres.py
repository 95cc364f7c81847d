"""A real PostgreSQL server of our own, on a free port of this machine: for tests and benchmarks.

It never touches a server that somebody else runs. As root it runs as `nobody`, since PostgreSQL
refuses root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

INSTALLED = all(shutil.which(tool) for tool in ("initdb", "pg_ctl", "postgres"))
START_SECONDS = 30.0  # a killed server's children hold its memory for a moment more


class PostgresServer:
    """One server and its data, in a folder."""

    def __init__(self, folder: Path, password: str = "") -> None:
        """Make the data; `start` starts the server. It trusts all; URLs have the `password`."""
        self._user = f"hpo:{password}" if password else "hpo"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder, self._data = folder, folder / "data"
        as_user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(folder, "nobody")
            for parent in folder.absolute().parents:
                if parent.owner() == "root" and parent.stat().st_mode & 0o005 != 0o005:
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._as_user = [*as_user, "env", "-C", str(folder.absolute())]
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "hpo")

    def start(self) -> None:
        """Start it, again after `stop` or `kill` perhaps, and wait until it answers."""
        options = f"-p {self._port} -k . -c listen_addresses=127.0.0.1 -c fsync=off"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def stop(self) -> None:
        """Stop it, its clients' connections with it."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """Kill -9; its children notice, and go."""
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)

    def new_database(self) -> str:
        """The URL of an empty database."""
        url = f"postgresql://{self._user}@127.0.0.1:{self._port}/"
        name = f"made_{os.urandom(4).hex()}"
        with psycopg.connect(f"{url}postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return url + name

    @contextmanager
    def read_only(self, url: str) -> Iterator[None]:
        """Cut every connection to the database, which takes no writes until the block ends."""
        with psycopg.connect(f"{url.rpartition('/')[0]}/postgres", autocommit=True) as connection:
            name = url.rpartition("/")[2]
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            connection.execute(cut, [name])
            yield
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    def _run(self, *command: str) -> None:
        # To a file: the server keeps what it is given, and a pipe would never end.
        subprocess.run([*self._as_user, *command], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip
