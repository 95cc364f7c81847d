"""Runs the real `hpo` command in folders of their own, and finds every process that it started."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import planted
from tests.end_to_end.desk import MARK, Desk
from tests.end_to_end.rays import StandingRay, ray_running


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of all that is started here, with secrets that must be found nowhere."""
    return {
        **planted.SECRETS,
        **{k: v for k, v in os.environ.items() if not k.startswith(("HPO_", "WANDB_", "RAY_"))},
        "HPO_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "token-cache"),
    }


@pytest.fixture
def desk(tmp_path: Path, environment: dict[str, str]) -> Iterator[Desk]:
    """A user's empty folder; nothing that was started there outlives the test."""
    folder = tmp_path / "desk"
    folder.mkdir()
    desk = Desk(folder, {**environment, MARK: uuid.uuid4().hex})
    yield desk
    for process in (*desk.processes, *desk.ours()):
        process.kill()


@pytest.fixture(scope="session")
def standing_ray(environment: dict[str, str]) -> Iterator[StandingRay]:
    """A Ray that runs until the last test has ended; no test may harm it."""
    with ray_running(environment) as ray:
        yield ray


@pytest.fixture
def joined(desk: Desk, standing_ray: StandingRay) -> tuple[str, str]:
    """The option with which commands of the desk join the Ray that stands by."""
    desk.marks.append(standing_ray.mark)
    return standing_ray.joined
