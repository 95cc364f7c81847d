"""Settings of a run and of a fork of it."""

from __future__ import annotations

PARENT = {"optim": {"schedule": "constant", "lr": 1e-2}, "layerdrop": {"policy": "static"}}
CHILD = {
    "optim": {"schedule": "constant", "lr": 3e-3},
    "layerdrop": {"policy": "static", "p_init": 0.2},
}
