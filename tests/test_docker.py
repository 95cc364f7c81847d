"""docker/compose.yaml, without an engine: each command exists, and no secret is in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.scripts.scripts import cli as ray_cli

from hpo.cli import app

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GROUPS = {"hpo": typer.main.get_command(app), "ray": ray_cli}


def commands(service: dict[str, Any]) -> list[list[str]]:
    """What a service runs of ours and Ray's; of a script, each line that does, with each verb."""
    command = service.get("command", [])
    if command[:2] != ["sh", "-c"]:
        return [command] if command else []
    script = command[2].replace("exec ", "")
    lines = [line for verb in ("start", "resume")
             for line in script.replace("$$verb", verb).splitlines()]  # fmt: skip
    words = [shlex.split(line.partition("||")[0]) for line in lines]
    return [line for line in words if line and line[0] in GROUPS]


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_a_service_runs_a_command_that_takes_its_options(name: str) -> None:
    found = commands(COMPOSE["services"][name])
    assert found or name == "database"
    for program, command, *arguments in found:
        group = GROUPS[program]
        chosen = group.commands[command]  # type: ignore[attr-defined]
        chosen.make_context(command, list(arguments))  # refuses what it does not know


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_a_service_keeps_what_is_declared_and_opens_no_port_to_others(name: str) -> None:
    service = COMPOSE["services"][name]
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service.get("volumes", []):
        assert volume.startswith("/") or volume.partition(":")[0] in COMPOSE["volumes"]
    assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


def test_secrets_are_files_that_no_commit_and_no_image_has() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    ignored = (DOCKER.parent / ".gitignore").read_text().split()
    assert "docker/secrets/" in ignored
    copied = [line.split()[1:-1] for line in (DOCKER / "Dockerfile").read_text().splitlines()
              if line.startswith("COPY")]  # fmt: skip
    assert all((DOCKER.parent / name).exists() for names in copied for name in names)
    assert not {name for names in copied for name in names} & {".", "docker"}
