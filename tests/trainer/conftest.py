"""A process group of one in the tests' own process, and small trainings to run in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from trainer.distributed import World, free_port, join, leave


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """This process as the one rank of a world: DeepSpeed engines can be built in it."""
    before = dict(os.environ)
    world = join(0, 1, 0, "127.0.0.1", free_port())
    os.environ.clear()
    # DeepSpeed goes on reading its own; the others would make every child process a rank.
    os.environ.update(before | {"LOCAL_RANK": "0"})
    yield world
    leave()
