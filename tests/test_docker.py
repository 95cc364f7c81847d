"""docker/, without an engine: compose.yaml is well formed, pinned, and shows no secret."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.scripts.scripts import cli as ray_cli

from hpo.cli import app

pytestmark = pytest.mark.slow

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GROUPS = {"hpo": typer.main.get_command(app), "ray": ray_cli}
BIN = Path(sys.executable).parent
OF_CUDA = ("cuda-", "nvidia-", "triton")  # torch's own, by exact versions, where it has CUDA


def test_the_file_is_as_the_compose_specification_has_it() -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*check, DOCKER / "compose.yaml"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_looked_after_by_commands_that_there_are(name: str) -> None:
    service = SERVICES[name]
    command, health = service.get("command", ["postgres"]), service["healthcheck"]["test"]
    assert health[0] == "CMD"
    for program, *arguments in (command, health[1:]):
        if program in GROUPS:
            chosen = GROUPS[program].commands[arguments[0]]  # type: ignore[attr-defined]
            chosen.make_context(arguments[0], arguments[1:])  # refuses what it does not know
        elif program == "python":
            compile(arguments[1], "", "exec")
        else:
            assert program in ("hpo-controller", "pg_isready", "postgres")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_keeps_what_is_declared_and_opens_no_port_to_others(name: str) -> None:
    service = SERVICES[name]
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service.get("volumes", []):
        assert volume.startswith("./") or volume.partition(":")[0] in COMPOSE["volumes"]
    assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_what_is_made_elsewhere_is_pinned_and_ours_runs_as_nobody_special() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "\nFROM python:3.11.14-slim-bookworm@sha256:" in dockerfile
    assert dockerfile.index("\nUSER hpo") > dockerfile.rindex("\nRUN")
    for service in SERVICES.values():
        if "build" in service:
            assert service["cap_drop"] == ["ALL"]
        else:
            assert "@sha256:" in service["image"]


def test_the_lock_pins_whatever_our_packages_ask_for() -> None:
    lock = (DOCKER.parent / "requirements.lock").read_text().splitlines()[1:]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lock}
    needed, ahead = set(), [("layerdrop-hpo", ("postgres", "s3", "wandb", "dev"))]
    while ahead:
        name, extras = ahead.pop()
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            marker, found = wanted.marker, (canonicalize_name(wanted.name), tuple(wanted.extras))
            asked = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))
            if asked and found not in needed and not wanted.name.startswith(OF_CUDA):
                needed.add(found)
                ahead.append(found)
    assert {name for name, _ in needed} - pinned == set()


def test_secrets_are_files_that_no_commit_and_no_image_has() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    ignored = (DOCKER.parent / ".gitignore").read_text().split()
    assert "docker/secrets/" in ignored
    context = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    copied = {name for line in (DOCKER / "Dockerfile").read_text().splitlines()
              if line.startswith("COPY") for name in line.split()[1:-1]}  # fmt: skip
    assert "*" in context
    assert {line[1:] for line in context if line.startswith("!")} == copied
    assert all((DOCKER.parent / name).exists() for name in copied)


@dataclass
class Stage:
    """Runs controller.sh with stand-ins for `ray` and `hpo`, which note what they are told."""

    folder: Path

    def program(self, name: str, does: str) -> None:
        file = self.folder / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> told\n{does}\n')
        file.chmod(0o755)

    def controller(self) -> subprocess.Popen[bytes]:
        path = f"{self.folder}:{os.environ['PATH']}"
        asked = {"HPO_STUDY": "mine", "HPO_RUNS": "/runs", "HPO_RAY": "ray-head:6379"}
        return subprocess.Popen(
            [DOCKER / "controller.sh"], cwd=self.folder, env={**os.environ, **asked, "PATH": path}
        )

    def told(self, program: str) -> list[list[str]]:
        lines = (self.folder / "told").read_text().splitlines()
        return [words[1:] for words in map(str.split, lines) if words[0] == program]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.program("ray", "")
    stage.program("python", "")  # reaches the database
    return stage


@pytest.mark.parametrize(
    ("there", "file", "told"),
    [(True, True, ["resume", "mine"]), (False, False, ["start", "mine"]),
     (False, True, ["start", "studies/mine.yaml", "--name", "mine"])],
)  # fmt: skip
def test_a_study_is_resumed_or_started_from_its_file_or_by_name(
    stage: Stage, there: bool, file: bool, told: list[str]
) -> None:
    stage.program("hpo", f'[ "$1" != status ] || exit {0 if there else 2}')
    (stage.folder / "studies").mkdir()
    if file:
        (stage.folder / "studies" / "mine.yaml").touch()
    assert stage.controller().wait(timeout=30) == 0
    [[start, *arguments]] = stage.told("ray")
    ray_cli.commands[start].make_context(start, arguments)
    _, run = stage.told("hpo")
    assert run[: len(told)] == told
    GROUPS["hpo"].commands[run[0]].make_context(run[0], run[1:])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ended", "status"), [(0, 0), (1, 1), (2, 0), (75, 75), (130, 0), (137, 137)]
)
def test_the_controller_is_started_again_where_that_would_help(
    stage: Stage, ended: int, status: int
) -> None:
    stage.program("hpo", f"exit {ended}")
    assert stage.controller().wait(timeout=30) == status


def test_a_controller_that_lost_its_database_is_started_again_and_waits_for_it(
    stage: Stage,
) -> None:
    stage.program("python", "[ -e back ]")
    stage.program("hpo", "rm back; exit 75")
    controller = stage.controller()
    while not (stage.folder / "told").exists() or not stage.told("python"):
        time.sleep(0.1)
    assert controller.poll() is None, "it waits"
    (stage.folder / "back").touch()
    assert controller.wait(timeout=30) == 75


def test_a_controller_that_is_stopped_waits_for_the_checkpoints(stage: Stage) -> None:
    checkpoint = "sleep 0.5; echo hpo checkpointed >> told; exit 130"
    wait = "echo hpo trains >> told; while :; do sleep 0.1; done"
    stage.program("hpo", f"[ $1 != status ] || exit 2\ntrap '{checkpoint}' TERM; {wait}")
    controller = stage.controller()
    while not (stage.folder / "told").exists() or ["trains"] not in stage.told("hpo"):
        time.sleep(0.1)
    controller.terminate()
    assert controller.wait(timeout=30) == 0, "and is not started again"
    assert stage.told("hpo")[-1] == ["checkpointed"]
