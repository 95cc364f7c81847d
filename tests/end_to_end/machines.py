"""Machines on this machine: each has its own network, address, cache, and Ray's temporary folder.

They are network and mount namespaces around a switch, and end with the processes in them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.end_to_end.desk import Desk

_UNSHARED = ["unshare", "--net", "--mount"]


def reason_against() -> str | None:
    """Why this machine cannot hold others; None if it can."""
    try:
        for command in ([*_UNSHARED, "mount", "-t", "tmpfs", "none", "/mnt"],
                        [*_UNSHARED, "ip", "link", "add", "switch", "type", "bridge"],
                        [*_UNSHARED, "ip", "link", "add", "pair", "type", "veth"]):  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    except subprocess.CalledProcessError as error:
        return f"no namespaces of our own here: {error.stderr.decode().strip()}"
    return None


@dataclass
class Machine:
    """A machine with an address of its own, which knows its caches and nothing of the user's."""

    desk: Desk
    holder: int  # the process that its namespaces live by
    address: str
    environment: dict[str, str]
    log: Path

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """`command`, running there, in the user's folder; what it prints is in `log`."""
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*_inside(self.holder), "env", "-C", self.desk.folder, *command],
                env=self.environment, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def run(self, *command: str | Path) -> str:
        """What `command` prints there."""
        found = subprocess.run(
            [*_inside(self.holder), *command], env=self.environment, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert found.returncode == 0, f"{command}: {found.stderr}"
        return found.stdout

    def has(self, process: psutil.Process) -> bool:
        """Whether the process runs there."""
        try:
            return _network(process.pid) == _network(self.holder)
        except OSError:  # it ended just now
            return False

    def lose(self) -> None:
        """Kill every process there, none of which hears of it; its address answers no more."""
        for process in [p for p in psutil.process_iter() if self.has(p)]:
            process.send_signal(signal.SIGKILL)


@dataclass
class Machines:
    """Those that a test has, on one network."""

    desk: Desk
    folder: Path  # of their caches and logs
    _count: int = 0
    _switch: int = 0

    def add(self, hidden: Sequence[Path] = (), **environment: str) -> Machine:
        """One more, which does not see the folders `hidden`."""
        if not self._switch:
            self._switch = self._hold()
            self._ip(self._switch, "link", "add", "switch", "type", "bridge")
            self._ip(self._switch, "link", "set", "switch", "up")
        self._count += 1
        name, address = f"machine{self._count}", f"10.99.0.{self._count}"
        holder = self._hold()
        peer = ("peer", "name", "eth0", "netns", str(holder))
        self._ip(self._switch, "link", "add", name, "type", "veth", *peer)
        self._ip(self._switch, "link", "set", name, "master", "switch", "up")
        self._ip(holder, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            self._ip(holder, "link", "set", device, "up")
        Path("/tmp/ray").mkdir(exist_ok=True)
        for folder in (Path("/tmp/ray"), *hidden):
            mount = ["mount", "-t", "tmpfs", "none", folder]
            subprocess.run([*_inside(holder), *mount], check=True)
        environment = {"HPO_CACHE_DIR": str(self.folder / name), **environment}
        environment = {**self.desk.environment, **environment}
        return Machine(self.desk, holder, address, environment, self.folder / f"{name}.log")

    def _hold(self) -> int:
        process = subprocess.Popen([*_UNSHARED, "sleep", "infinity"], env=self.desk.environment)
        self.desk.wait_for(lambda: _network(process.pid) != _network(os.getpid()), timeout=10)
        self.desk.wait_for(lambda: psutil.Process(process.pid).name() == "sleep", timeout=10)
        return process.pid

    def _ip(self, holder: int, *arguments: str) -> None:
        subprocess.run([*_inside(holder), "ip", *arguments], check=True)


def _inside(holder: int) -> list[str]:
    return ["nsenter", "--target", str(holder), "--net", "--mount"]


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
