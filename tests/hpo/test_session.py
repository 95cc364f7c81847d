"""The folder of a session of Ray's, wherever temporary files go."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hpo.workers.session import session_folder

pytestmark = pytest.mark.slow  # it imports what the service needs


@pytest.mark.parametrize("name", ["é", "x" * 100])
def test_a_place_that_ray_cannot_use_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix=name, dir="/tmp") as odd:
        monkeypatch.setattr(tempfile, "tempdir", odd)
        with session_folder() as folder:
            assert folder.parent == Path("/tmp")
        assert not folder.exists()
