"""The simulation itself: a seed decides everything, and what is broken is found."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, schedules_until_caught
from tests.simulation.schedules import Player
from tests.simulation.world import Lock, Process, World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", ["3", "17", "42"])
def test_a_seed_decides_everything(playing: Player, seed: str) -> None:
    first = playing.play(seed, logs=True)
    playing.play(f"{seed}-another")
    again = playing.play(seed, logs=True)
    assert first.log == again.log
    assert len(first.log) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["is_open always true", "claim always true"])
def test_a_broken_product_is_caught(name: str) -> None:
    assert schedules_until_caught(MUTANTS[name], 300) is not None


def test_time_jumps_to_the_next_wake_up() -> None:
    world, process = World("0"), Process("sleepers")
    woken: list[tuple[str, float]] = []

    def sleeper(name: str, seconds: float) -> None:
        began = world.now
        world.wait(seconds)
        woken.append((name, round(world.now - began)))

    world.spawn(process, "long", lambda: sleeper("long", 3600.0))
    world.spawn(process, "short", lambda: sleeper("short", 60.0))
    world.run()
    assert woken == [("short", 60), ("long", 3600)]


def test_one_actor_at_a_time_has_a_lock_and_a_killed_one_has_none() -> None:
    world, process = World("0", restless=1.0), Process("both")
    lock, inside, seen = Lock(world, "lock"), [0], []

    def enter() -> None:
        for _ in range(20):
            with lock:
                inside[0] += 1
                world.point("inside")
                seen.append(inside[0])
                inside[0] -= 1
            world.point("outside")

    world.spawn(process, "one", enter)
    world.spawn(process, "other", enter)
    world.at(0.1, lambda: world.kill(process))
    world.run()
    assert set(seen) == {1}
    assert 10 < len(seen) < 40
