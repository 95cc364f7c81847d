"""A user's folder in which the real `hpo` command is typed; it finds every process it started."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from typer.testing import CliRunner

from benchmarks.tiny import STUDY as TINY
from hpo.cli import app
from storage import Ledger
from tests import forked, planted
from tests.forked import Forked
from tests.leases import lapse

MARK = "HPO_TEST_MARK"

forked.preload("tests.end_to_end.preloaded")


class Command(Forked):
    """A command whose output, read at its end, holds no secret."""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it printed."""
        printed = super().communicate(timeout)
        planted.check(*printed)
        return printed


@dataclass
class Desk:
    """A user's folder: `hpo` is typed here."""

    folder: Path
    environment: dict[str, str]
    processes: list[Forked] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)  # of what was there already, and is joined

    def write_study(self, **changes: Any) -> Path:
        """TINY with `changes` to its top level; sections are merged."""
        document = json.loads(json.dumps(TINY))
        for key, value in changes.items():
            merged = isinstance(value, dict) and key in ("train", "resources", "budget")
            document[key] = {**document[key], **value} if merged else value
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    def start(self, *arguments: str) -> Command:
        """Start `hpo` with `arguments`."""
        process = Command("hpo", *arguments, cwd=self.folder, env=self.environment)
        self.processes.append(process)
        return process

    def start_anew(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `hpo` with `arguments` as a shell does, in a process that imports all itself."""
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", *arguments], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hpo(self, *arguments: str, status: int = 0, timeout: float = 240) -> str:
        """What `hpo` with `arguments` prints, having ended with `status`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == status, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out if status == 0 else err

    def read(self, *arguments: str) -> str:
        """What `hpo` with `arguments` prints; in this process, which is faster."""
        ours = {name: value for name, value in self.environment.items() if name.startswith("HPO_")}
        with chdir(self.folder):
            done = CliRunner(env=ours).invoke(app, [*arguments], catch_exceptions=False)
        assert done.exit_code == 0, f"{arguments}: {done.exit_code}\n{done.output}"
        planted.check(done.output)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What `hpo` with `arguments` and --json prints, read."""
        return json.loads(self.read(*arguments, "--json"))

    def study(self, name: str = "tiny") -> optuna.Study:
        """The study, read with plain Optuna."""
        url = f"sqlite:///{self.folder / 'hpo.db'}"
        return optuna.load_study(study_name=name, storage=url)

    def kill(self, controller: Forked) -> str:
        """Kill -9, and its lease out of the way; what it printed."""
        controller.kill()
        out, _ = controller.communicate()
        self.lapse()
        return out

    def lapse(self) -> None:
        """Let the lease of a killed controller run out, once its ranks are dead too."""
        self.wait_for(lambda: not self.ranks(), timeout=30)
        lapse(Ledger.open(f"sqlite:///{self.folder}/hpo.db"))

    def ours(self) -> list[psutil.Process]:
        """Every living process that a command of this desk started, Ray's included."""
        return self._marked(self.environment[MARK])

    def ranks(self) -> list[psutil.Process]:
        """The processes of living ranks, in the order they were started."""
        return sorted(
            (
                process
                for process in self._marked(self.environment[MARK], *self.marks)
                if process.name().startswith("ray::Rank")
            ),
            key=lambda process: process.create_time(),
        )

    def _marked(self, *marks: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) in marks
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    planted.check(*process.cmdline())
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    @contextmanager
    def dashboard(self) -> Iterator[Callable[[str], Any]]:
        """`hpo dashboard`, running; gives what its own HTTP API answers about a path."""
        process = self.start("dashboard")
        printed = process.stdout.readline()
        address = re.search(r"(http://127\.0\.0\.1:\d+)/dashboard\?(token=\S+)", printed)
        assert address is not None, printed
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

        def ask(path: str) -> Any:
            token = f"{'&' if '?' in path else '?'}{address[2]}"
            with browser.open(f"{address[1]}/api/{path}{token}", timeout=10) as answer:
                return json.load(answer)

        def responds() -> bool:
            with suppress(OSError):
                return bool(ask("studies"))
            return False

        self.wait_for(responds, timeout=60)
        yield ask
        process.terminate()
        process.wait(timeout=10)

    def wait_for(self, what: Callable[[], Any], timeout: float = 90) -> Any:
        """The first true answer of `what`."""
        deadline = time.monotonic() + timeout
        while (asked := time.monotonic()) < deadline:
            if answer := what():
                return answer
            # What is looked at wants the machine for itself.
            time.sleep(max(0.1, 3 * (time.monotonic() - asked)))
        raise AssertionError(f"waited {timeout} s for {what} in vain")

    def steps(self, trial: int, study: str = "tiny") -> list[int]:
        """Steps in the metrics.jsonl of a trial."""
        file = self.folder / "runs" / study / f"trial-{trial:04d}" / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line)["step"] for line in file.read_text().splitlines()]

    def interrupt(self, process: Forked) -> tuple[str, str]:
        """Ctrl-C, and what the command said."""
        process.send_signal(signal.SIGINT)
        return process.communicate(timeout=60)
