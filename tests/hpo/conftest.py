"""What all tests of the service share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpo.control import judge

torch.set_num_threads(1)  # Ax's models are too small to share, and the cores are busy


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database that is not there yet."""
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture(autouse=True)
def _no_pause_before_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost trial's next attempt is due at once."""
    monkeypatch.setattr(judge, "FIRST_BACKOFF_SECONDS", 0.0)
