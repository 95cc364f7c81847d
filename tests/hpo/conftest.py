"""What all tests of the service share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.control import judge


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database that is not there yet."""
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture(autouse=True)
def _no_pause_before_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost trial's next attempt is due at once."""
    monkeypatch.setattr(judge, "FIRST_BACKOFF_SECONDS", 0.0)


@pytest.fixture
def coarse_ax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ax look at few points before it proposes one: its models are as they are."""
    options = "ax.generators.torch.botorch_modular.optimizer_argparse"
    monkeypatch.setattr(f"{options}.NUM_RESTARTS", 2)
    monkeypatch.setattr(f"{options}.RAW_SAMPLES", 16)
