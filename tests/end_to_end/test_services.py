"""docker/compose.yaml's own commands and health checks, as processes of this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState
from ray.util import get_node_ip_address

from benchmarks.postgres import PostgresServer
from tests.end_to_end.conftest import Desk

DOCKER = Path(__file__).parents[2] / "docker"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DOCKER / "compose.yaml").read_text())[
    "services"
]


@dataclass
class Engine:
    """Starts services as Compose would; `names` has what theirs are on this machine."""

    desk: Desk
    names: dict[str, str]

    def up(self, name: str) -> subprocess.Popen[bytes]:
        """The service's command, once those of Ray's that it waits for are healthy."""
        waits_for = SERVICES[name].get("depends_on", {})
        for other in [ray for ray in ("ray-head", "ray-worker") if ray in waits_for]:
            self.desk.wait_for(lambda other=other: self.healthy(other))
        return self._start(name, SERVICES[name]["command"])

    def healthy(self, name: str) -> bool:
        """What the service's health check says."""
        return self._start(name, SERVICES[name]["healthcheck"]["test"][1:]).wait(timeout=30) == 0

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        service, path = SERVICES[name], f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {k: v for k, v in self.desk.environment.items() if k != "RAY_AUTH_TOKEN"}
        given = {k: self._here(v) for k, v in service["environment"].items() if v}
        with (self.desk.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                [self._here(word) for word in command], cwd=self.desk.folder,
                env={**own, "PATH": path, **given}, stdout=log, stderr=log,
            )  # fmt: skip

    def _here(self, text: str) -> str:
        for there, here in self.names.items():
            text = text.replace(there, here)
        return text


@pytest.fixture
def engine(desk: Desk, postgres_server: PostgresServer, tmp_path: Path) -> Engine:
    """One with secrets, a database, and the study `tiny` in the folder of studies."""
    study = desk.write_study(resources={"ranks": 1})
    (desk.folder / "studies").mkdir()
    shutil.move(study, desk.folder / "studies" / "tiny.yaml")
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "ray_token").write_text(secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    desk.environment["RAY_ADDRESS"] = f"{get_node_ip_address()}:{port}"  # of `ray status`
    return Engine(desk, {
        "ray-head:6379": desk.environment["RAY_ADDRESS"],
        "6379": port,
        "hpo-controller": str(DOCKER / "controller.sh"),
        "postgresql://hpo@database/hpo": postgres_server.new_database(),
        "/run/secrets": str(folder),
        "${HPO_STUDY:-quickstart}": "tiny",
        "${HPO_RUNS:-/runs}": "runs",
    })  # fmt: skip


@pytest.mark.timeout(240)
def test_the_services_run_a_study_which_is_stopped_and_resumed(desk: Desk, engine: Engine) -> None:
    for name in ("ray-head", "ray-worker"):
        engine.up(name)
    controller = engine.up("controller")
    desk.wait_for(lambda: engine.healthy("controller"))
    desk.wait_for(lambda: desk.steps(0))
    controller.terminate()  # as `docker compose stop` does
    assert controller.wait(timeout=60) == 0, "nobody starts again what was stopped"
    assert not desk.ranks()
    controller = engine.up("controller")
    assert controller.wait(timeout=120) == 0
    desk.environment["HPO_STORAGE"] = engine.names["postgresql://hpo@database/hpo"]
    assert desk.json("status", "tiny")["states"] == {TrialState.COMPLETE.name: 2}
