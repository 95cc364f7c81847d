"""Three controllers of one study while the database is away for longer than their leases.

    python -m benchmarks.outage

A real study on PostgreSQL, run by three `hpo` processes. The server is stopped for 40 s, and later
takes no writes for 20 s. No controller may lose its lease, no trial may begin twice, and every
report is in the ledger once.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import tiny
from benchmarks.chaos_checks import Check, check
from benchmarks.chaos_scene import STUDY, Scene
from benchmarks.postgres import PostgresServer
from benchmarks.report import Result, report

CONTROLLERS = 3
STOPPED_SECONDS, READ_ONLY_SECONDS = 40.0, 20.0
READY_SECONDS = 180.0  # for three controllers to train
TRAIN_SECONDS = 30.0  # between the outages

CONFIG: dict[str, Any] = {
    **tiny.STUDY,
    "study": STUDY,
    "budget": {"trials": 12},
    "resources": {"ranks": 1, "cpus_per_rank": 1, "concurrent_trials": 1},
    "train": {**tiny.STUDY["train"], "steps": 3000, "eval_every": 60},
}


def main() -> None:
    """Run the study through both outages, and check what the ledger says then."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started must not outlive this
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="outage-")))
        (folder / "server").mkdir()
        server = PostgresServer(folder / "server")
        server.start()
        undo.callback(server.stop)
        scene = Scene(folder / "scene", server)
        undo.callback(scene.clear)
        study(scene, server)
        checks = [*check(scene, CONFIG), *undisturbed(scene)]
    for each in checks:
        for line in each.broken:
            print(f"broken: {each.promise}: {line}", flush=True)
    results = [
        Result(each.promise, len(each.broken), "broken", "0", not each.broken) for each in checks
    ]
    report("outage", results)
    sys.exit(0 if all(result.met for result in results) else 1)


def study(scene: Scene, server: PostgresServer) -> None:
    """Run the study; the database goes away twice meanwhile."""
    began = time.monotonic()

    def say(line: str) -> None:
        look = scene.look()
        now = f"{look.reports} reports, {look.controllers}" if look else "no answer"
        print(f"{time.monotonic() - began:6.1f} s  {line}: {now}", flush=True)

    scene.start(CONFIG)
    scene.wait_for(scene.active, READY_SECONDS)
    for _ in range(CONTROLLERS - 1):
        scene.resume()
    scene.wait_for(lambda: _training(scene) == CONTROLLERS, READY_SECONDS)
    say("three controllers train")
    server.stop()
    time.sleep(STOPPED_SECONDS)
    server.start()
    say(f"the server was stopped for {STOPPED_SECONDS:g} s")
    time.sleep(TRAIN_SECONDS)
    say("trained on")
    with server.read_only(scene.url):
        time.sleep(READ_ONLY_SECONDS)
    say(f"the server took no writes for {READ_ONLY_SECONDS:g} s")
    for command in list(scene.commands):
        command.process.wait()
        print(f"`{command.words}` ended with {command.process.returncode}: {command.last_line}")
    say("done")


def undisturbed(scene: Scene) -> list[Check]:
    """What no outage may do."""
    controllers = scene.rows("SELECT id, state FROM hpo_controllers ORDER BY id")
    again = scene.rows("SELECT trial_id, number, reason FROM hpo_attempts WHERE number > 1")
    kept = [f"controller {key} is {state}" for key, state in controllers if state != "released"]
    return [
        Check("controllers keep their leases", kept),
        Check("no controller besides", [f"{len(controllers)}"] * (len(controllers) != CONTROLLERS)),
        Check("no trial begun twice", [f"attempt {a}" for a in again]),
    ]


def _training(scene: Scene) -> int:
    look = scene.look()
    return sum(not a.ended and bool(a.last_step) for a in look.attempts.values()) if look else 0


if __name__ == "__main__":
    main()
