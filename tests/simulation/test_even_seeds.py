"""The even ones of the first 300 schedules; two files, because a file is one worker's."""

from __future__ import annotations

import pytest

from tests.simulation.schedules import Player

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_no_schedule_violates_an_invariant(playing: Player, first: int) -> None:
    assert playing.first_violation(range(first, first + 50, 2)) is None
