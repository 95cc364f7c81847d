"""The odd ones of the first 300 schedules; two files, because a file is one worker's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.schedules import Player, player

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def playing() -> Iterator[Player]:
    with player() as made:
        yield made


@pytest.mark.parametrize("first", range(1, 300, 50))
def test_no_schedule_violates_an_invariant(playing: Player, first: int) -> None:
    for seed in range(first, first + 50, 2):
        violation = playing.play(str(seed)).violation
        assert violation is None, f"python -m tests.simulation --seed {seed}: {violation}"
