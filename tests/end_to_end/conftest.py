"""Runs the real `hpo` command in folders of their own, and finds every process that it started."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import planted
from tests.end_to_end.desk import MARK, Desk


@pytest.fixture
def desk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A user's empty folder; nothing that was started there outlives the test."""
    cache = tmp_path_factory.getbasetemp() / "token-cache"
    environment = {
        **planted.SECRETS,
        **{k: v for k, v in os.environ.items() if not k.startswith(("HPO_", "WANDB_", "RAY_"))},
        MARK: uuid.uuid4().hex,
        "HPO_CACHE_DIR": str(cache),
    }
    folder = tmp_path / "desk"
    folder.mkdir()
    desk = Desk(folder, environment)
    yield desk
    for process in (*desk.processes, *desk.ours()):
        process.kill()
