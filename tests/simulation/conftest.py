"""One player of schedules for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.schedules import Player, player


@pytest.fixture(scope="module")
def playing() -> Iterator[Player]:
    """Play schedules, one after the other, in one folder."""
    with player() as made:
        yield made
