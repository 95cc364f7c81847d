"""The faults of a chaos run, by name. Each does its harm once and says what it did.

None where it cannot be done just now: it is tried again. None of them looks at what becomes of it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import psutil

from benchmarks.chaos_scene import STUDY, Scene

Fault = Callable[[Scene, Random], str | None]

OUTAGE_SECONDS = 25.0  # of the database: longer than a lease, which is 15 s
FULL_SECONDS = 10.0  # of the disk
TAKEN_OVER_SECONDS = 100.0  # a lease is 15 s; one stopped as it wrote is let go of after 60
NOTICED_SECONDS = 40.0  # Ray misses its daemon after some 15 s


def kill_controller(scene: Scene, chance: Random) -> str | None:
    """Kill -9 of the `hpo` process."""
    controller = scene.controller()
    if controller is None:
        return None
    controller.process.kill()
    controller.process.wait()
    return f"killed the controller, process {controller.process.pid}"


def kill_rank(scene: Scene, chance: Random) -> str | None:
    """Kill -9 of one of a gang's processes."""
    ranks = scene.processes("ray::Rank")
    if not ranks:
        return None
    rank = chance.choice(ranks)
    with suppress(psutil.NoSuchProcess):
        rank.kill()
    return f"killed a rank, process {rank.pid}"


def kill_raylet(scene: Scene, chance: Random) -> str | None:
    """Kill -9 of Ray's local daemon. Its ranks outlive it by a while, and must not by more."""
    daemons = scene.processes("raylet")
    if not daemons:
        return None
    daemon = chance.choice(daemons)
    ranks = [child for child in daemon.children() if child.name().startswith("ray::Rank")]
    if not ranks:
        return None
    daemon.kill()
    scene.wait_for(lambda: not any(rank.is_running() for rank in ranks), NOTICED_SECONDS)
    return f"killed raylet, process {daemon.pid}"


def pause_controller(scene: Scene, chance: Random) -> str | None:
    """SIGSTOP of a controller until another has taken over; it wakes up among its late writes."""
    paused = scene.controller()
    if paused is None:
        return None
    paused.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:

        def taken_over() -> bool:
            others = [c for c in scene.commands if c is not paused]
            if not any(c.process.poll() is None for c in others):
                scene.resume()
            return paused.process.pid not in scene.active()

        taken = scene.wait_for(taken_over, TAKEN_OVER_SECONDS)
        time.sleep(chance.uniform(0, 5))
    finally:
        paused.process.send_signal(signal.SIGCONT)
    by = "it was taken over" if taken else "nobody took over"
    return f"stopped process {paused.process.pid} for {time.monotonic() - began:.0f} s: {by}"


def click_fail(scene: Scene, chance: Random) -> str | None:
    """The dashboard's red button on a running trial."""
    rows = scene.wait_for(lambda: scene.rows(_RUNNING), 0) if scene.look() else None
    if not rows or scene.dashboard is None:
        return None
    trial_id, number = chance.choice(rows)
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{scene.dashboard}/api/trials/{trial_id}/tell",
        json.dumps({"state": "Fail"}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60):  # noqa: S310
            scene.clicked.add(number)
    except OSError:
        return None  # it has just ended, say
    return f"clicked that trial {number} fails"


def stop_database(scene: Scene, chance: Random) -> str | None:
    """No writing to the database for some time."""
    if scene.server is None:
        return _hold_write_lock(scene.folder / "hpo.db")
    scene.server.stop()
    time.sleep(OUTAGE_SECONDS)
    scene.server.start()
    return f"stopped the database server for {OUTAGE_SECONDS:g} s"


def kill_database(scene: Scene, chance: Random) -> str | None:
    """Kill -9 of the database server, started again at once."""
    if scene.server is None:
        return _hold_write_lock(scene.folder / "hpo.db")
    scene.server.kill()
    scene.server.start()
    return "killed the database server and started it again"


def fail_over(scene: Scene, chance: Random) -> str | None:
    """The database's server takes no writes for some time, as one that is no primary any more."""
    if scene.server is None:
        return None
    with scene.server.read_only(scene.url):
        time.sleep(OUTAGE_SECONDS)
    return f"the database took no writes for {OUTAGE_SECONDS:g} s"


def truncate_checkpoint(scene: Scene, chance: Random) -> str | None:
    """The newest of a trial's checkpoints is cut, and every rank killed: it has to be read."""
    look, ranks = scene.look(), scene.processes("ray::Rank")
    if look is None or look.running is None or not ranks:
        return None
    folder = scene.runs / STUDY / f"trial-{look.running:04d}" / "checkpoints"
    if len(list(folder.glob("step-*"))) < 2:
        return None
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.kill()
    tensors = max(folder.glob("step-*")) / "state.safetensors"
    os.truncate(tensors, tensors.stat().st_size // 2)
    return f"killed all ranks, cut {tensors.parent.name} of trial {look.running}"


def fill_disk(scene: Scene, chance: Random) -> str | None:
    """A full disk under the run folders, for some time."""
    if scene.disk is None or not scene.processes("ray::Rank"):
        return None
    ballast = scene.disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0")
    size = ballast.stat().st_size
    time.sleep(FULL_SECONDS)
    ballast.unlink()
    return f"filled the disk with {size >> 20} MiB for {FULL_SECONDS:g} s"


FAULTS: dict[str, Fault] = {
    "kill controller": kill_controller,
    "kill rank": kill_rank,
    "kill raylet": kill_raylet,
    "pause controller": pause_controller,
    "stop database": stop_database,
    "kill database": kill_database,
    "fail over": fail_over,
    "cut checkpoint": truncate_checkpoint,
    "fill disk": fill_disk,
    "click fail": click_fail,
}

_RUNNING = "SELECT trial_id, number FROM trials WHERE state = 'RUNNING' ORDER BY number"


def possible(scene: Scene) -> list[str]:
    """The faults that can be done in `scene` at all."""
    cannot = {"kill database", "fail over"} if scene.server is None else set()
    if scene.disk is None:
        cannot.add("fill disk")
    return [name for name in FAULTS if name not in cannot]


def _hold_write_lock(file: Path) -> str:
    # Without `timeout` another writer's short lock would be an error here.
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        time.sleep(OUTAGE_SECONDS)
    return f"held the database's write lock for {OUTAGE_SECONDS:g} s"
