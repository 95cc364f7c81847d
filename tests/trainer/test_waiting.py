"""Ranks that wait for others: a limit, a line, and an ear for signals; left-over variables."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.trainer.processes import run_ranks
from trainer.config.settings import ConfigError
from trainer.engine import distributed, waiting
from trainer.engine.distributed import free_port, from_environment

pytestmark = pytest.mark.slow


def test_a_signal_is_heard_while_others_are_waited_for() -> None:
    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.monotonic()
        with pytest.raises(SystemExit):
            waiting.heard(lambda: time.sleep(30), lambda: None)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ranks_that_do_not_come_are_told_and_end_the_wait_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = str(free_port())
    left_over = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**left_over, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    # Another test may have joined a group in this process.
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 1.0)
    monkeypatch.setattr(waiting, "SAY_SECONDS", 0.1)
    said: list[str] = []
    with pytest.raises(ConfigError) as wrong:
        from_environment(said.append)
    assert said == [f"rank 0 waits for all of 2 ranks at 127.0.0.1:{port}, for at most 1 s"]
    assert str(wrong.value).startswith("RANK=0 and WORLD_SIZE=2 in the environment: ")
    assert str(wrong.value).endswith("start with torchrun, or unset WORLD_SIZE")
    assert "\n" not in str(wrong.value)


def summed(world: Any) -> float:
    """The largest rank's number, as all ranks have it."""
    largest: float = world.largest(world.rank)
    return largest


def test_what_torchrun_has_left_in_the_environment_does_not_hold_up_a_gang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_over = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**left_over, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    assert run_ranks(2, summed) == [1.0, 1.0]
