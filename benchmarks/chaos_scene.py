"""Where a study is attacked: a folder in which `hpo` is typed, its database and all its processes.

The ledger is read with plain SQL and never written: what is checked here must not rest on the code
that is under attack.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
import yaml

from benchmarks.postgres import PostgresServer

MARK = "HPO_CHAOS_MARK"  # in the environment of every process of a scene
STUDY = "chaos"
DISK_BYTES = 400 << 20


@dataclass(frozen=True)
class Command:
    """`hpo` with arguments, as somebody typed it."""

    words: str
    process: subprocess.Popen[bytes]
    log: Path  # what it prints

    @property
    def last_line(self) -> str:
        """The last that it printed."""
        return (self.log.read_text(errors="replace").strip().splitlines() or ["nothing said"])[-1]


@dataclass(frozen=True)
class Attempt:
    """An attempt as the ledger has it."""

    trial: int
    number: int
    first_step: int | None
    last_step: int | None
    ended: bool
    reason: str | None


@dataclass(frozen=True)
class Look:
    """The ledger at a moment."""

    trials: dict[int, str]  # states by number
    attempts: dict[int, Attempt]  # by id
    controllers: dict[int, tuple[int, str]]  # process and state, by id
    reports: int

    @property
    def running(self) -> int | None:
        """The oldest trial that runs."""
        return min((n for n, state in self.trials.items() if state == "RUNNING"), default=None)

    @property
    def progress(self) -> int:
        """What grows with every report and every trial's end."""
        return self.reports + sum(s not in ("RUNNING", "WAITING") for s in self.trials.values())


class Scene:
    """One study's folder, and the person or supervisor who types there."""

    def __init__(self, folder: Path, server: PostgresServer | None = None) -> None:
        """The ledger is in `server`, or else in the folder."""
        folder.mkdir(parents=True)
        self.folder, self.server = folder, server
        self.runs = folder / "runs"
        self.disk: Path | None = None  # a small file system, where the runs are on one
        self.url = server.new_database() if server else f"sqlite:///{folder / 'hpo.db'}"
        self.commands: list[Command] = []  # that may still run
        self.dashboard: str | None = None  # its address, if it runs
        self._dashboard: Command | None = None
        self.clicked: set[int] = set()  # trials that somebody ended in it
        self._typed = 0
        self._mark = uuid.uuid4().hex
        self._engine = sa.create_engine(
            self.url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool
        )

    @contextmanager
    def small_disk(self) -> Iterator[None]:
        """Have the runs on a file system that can be filled, where this machine lets us."""
        self.runs.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.runs)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
            print("no tmpfs can be mounted here (that takes root): no disk will be full")
            yield
            return
        self.disk = self.runs
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.runs)], check=True)

    def start(self, study: dict[str, Any]) -> Command:
        """Type `hpo start` with a study file."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study))
        return self._type("start", "study.yaml")

    def resume(self) -> Command:
        """Type `hpo resume`, beside a controller that runs."""
        return self._type("resume", STUDY, *([] if self.server else ["--same-machine"]))

    def open_dashboard(self) -> None:
        """Type `hpo dashboard`; it runs until the end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = self._type("dashboard", "--no-token", "--port", str(port), runs=False)
        self.commands.remove(command)
        self._dashboard = command
        self.dashboard = f"http://127.0.0.1:{port}"

    def close_dashboard(self) -> None:
        """End it; a shell may have had Ctrl-C ignored."""
        if self._dashboard is not None:
            self._dashboard.process.terminate()
            self._dashboard.process.wait()

    def active(self) -> list[int]:
        """The processes that hold a lease of the study."""
        look = self.look()
        controllers = look.controllers.values() if look else ()
        return [pid for pid, state in controllers if state == "active"]

    def ended(self) -> list[Command]:
        """The commands that have ended since this was last asked."""
        ended = [command for command in self.commands if command.process.poll() is not None]
        self.commands = [command for command in self.commands if command not in ended]
        return ended

    def look(self) -> Look | None:
        """The ledger now; None while it cannot be read, or is not there yet."""
        with suppress(sa.exc.SQLAlchemyError):
            return Look(
                dict(self.rows("SELECT number, state FROM trials")),
                {row[0]: Attempt(*row[1:]) for row in self.rows(_ATTEMPTS)},
                {row[0]: (row[1], row[2]) for row in self.rows(_CONTROLLERS)},
                self.rows("SELECT count(*) FROM hpo_metrics")[0][0],
            )
        return None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the ledger answers to a query in SQL."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def controller(self) -> Command | None:
        """The command, alive, that holds the study's lease."""
        active = self.active()
        return next((c for c in self.commands if c.process.pid in active), None)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Living processes of this scene, Ray's included, whose names begin with `name`."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                ours = process.environ().get(MARK) == self._mark
                if ours and process.name().startswith(name) and process.status() != "zombie":
                    found.append(process)
        return found

    def wait_for(self, what: Callable[[], Any], seconds: float) -> Any:
        """The first true answer of `what`, or its last one when the time is over."""
        deadline = time.monotonic() + seconds
        while not (answer := what()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return answer

    def clear(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._engine.dispose()

    def _type(self, *words: str, runs: bool = True) -> Command:
        self._typed += 1
        log = self.folder / f"typed-{self._typed:03d}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpo", *words, "--storage", self.url,
                 *(["--runs", str(self.runs)] if runs else [])],
                cwd=self.folder, env=self._environment(), stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        command = Command(f"hpo {words[0]}", process, log)
        self.commands.append(command)
        return command

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items()
                if k == "HPO_CACHE_DIR" or not k.startswith(("HPO_", "RAY_"))}  # fmt: skip
        return {**kept, "OMP_NUM_THREADS": "1", MARK: self._mark}


_ATTEMPTS = """
    SELECT a.id, t.number, a.number, a.first_step, a.last_step, a.ended_at IS NOT NULL, a.reason
    FROM hpo_attempts a JOIN trials t ON t.trial_id = a.trial_id ORDER BY a.id
"""
_CONTROLLERS = "SELECT id, pid, state FROM hpo_controllers ORDER BY id"
