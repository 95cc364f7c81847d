"""A Ray that stands by, which studies of many tests join: each then starts a second sooner."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.util import get_node_ip_address

from tests.end_to_end.desk import MARK
from tests.hpo.scraping import free_port

START_SECONDS = 60.0


@dataclass(frozen=True)
class StandingRay:
    """A Ray cluster of one node with two CPUs."""

    address: str
    mark: str  # of its processes, its ranks among them

    @property
    def joined(self) -> tuple[str, str]:
        """The option with which `hpo` joins it."""
        return "--ray-address", self.address


@contextmanager
def ray_running(environment: dict[str, str]) -> Iterator[StandingRay]:
    """Have a Ray run in `environment` until the block ends."""
    port, mark = free_port(), uuid.uuid4().hex
    head = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--port", str(port),
         "--ray-client-server-port", str(free_port()), "--num-cpus", "2",
         "--include-dashboard", "false", "--disable-usage-stats"],
        env={**environment, MARK: mark}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        assert head.poll() is None, f"`ray start` ended with {head.returncode}"
        assert time.monotonic() < deadline, "`ray start` takes too long"
        time.sleep(0.1)
    try:
        yield StandingRay(f"{get_node_ip_address()}:{port}", mark)
    finally:
        head.terminate()
        head.wait(timeout=30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
