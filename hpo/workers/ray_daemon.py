"""Ends a run of Tune when Ray's daemon on this machine dies, for nothing can be placed then.

Tune itself would wait for a place without end.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

from hpo.control.outage import RayLost

LOOK_SECONDS = 2.0


class DaemonWatch(tune.Callback):  # type: ignore[misc]
    """Raises RayLost out of Tune's loop. Ray takes some 15 s to say that its daemon is dead."""

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._next_look = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look, now and then."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        if self._node not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            raise RayLost("Ray's daemon on this machine (raylet) died")
