"""Plays schedules: `python -m tests.simulation N`; or one of them: `... --seed S`.

The seeds are the numbers below N. Each of the processes keeps a note of how far it has come with
this code, so the same command goes on where it was interrupted. A schedule that fails is printed
with its log and the shortest list of faults that still fails; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.simulation.schedules import Outcome, player

ROOT = Path(__file__).parents[2]
MOST_FAILURES = 20  # of a process, which then ends


@dataclass
class Note:
    """How far a process has come."""

    code: str
    played: int = 0
    seconds: float = 0.0
    points: int = 0
    faults: int = 0
    failed: list[str] = field(default_factory=list)  # seed, and how


def code() -> str:
    """A digest of the code under simulation, and of the simulation."""
    files = [f for folder in ("hpo", "storage", "tests/simulation") for f in _sources(folder)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def show(outcome: Outcome) -> None:
    """Print a schedule with its log."""
    print("\n".join(outcome.log))
    print("faults:", *outcome.faults, sep="\n  ")
    print(f"seed {outcome.seed}, scenario {outcome.scenario}: {outcome.violation}", flush=True)


def play_one(seed: str, scenario: str | None) -> int:
    """Play one schedule; print it, and what is left of it when faults are left out."""
    with player(scenario) as playing:
        outcome = playing.play(seed, logs=True)
        if outcome.violation:
            outcome = playing.shortest(outcome)
        show(outcome)
    return outcome.violation is not None


def play_many(schedules: int, this: int, of: int, notes: Path, scenario: str | None) -> int:
    """Play every `of`-th schedule, from number `this` on."""
    file = notes / f"{this}-of-{of}.json"
    note = Note(code())
    if file.exists() and (known := Note(**json.loads(file.read_text()))).code == note.code:
        note = known
    notes.mkdir(parents=True, exist_ok=True)
    with player(scenario) as playing:
        for number in range(this + of * note.played, schedules, of):
            began = time.monotonic()
            outcome = playing.play(str(number))
            note.played += 1
            note.seconds += time.monotonic() - began
            note.points += outcome.points
            note.faults += len(outcome.faults)
            if outcome.violation is not None:
                note.failed.append(f"{number}: {outcome.violation.kind}")
                show(playing.shortest(outcome))
            if note.played % 20 == 0 or outcome.violation is not None:
                _keep(note, file)
            if len(note.failed) >= MOST_FAILURES:
                break
    _keep(note, file)
    rate = note.played / max(note.seconds, 1e-9)
    print(
        f"process {this} of {of}: {note.played} schedules, {rate:.1f} a second, "
        f"{note.points / max(note.played, 1):.0f} points each, {note.faults} faults, "
        f"failed: {note.failed or 'none'}",
        flush=True,
    )
    return bool(note.failed)


def _keep(note: Note, file: Path) -> None:
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(asdict(note)))
    aside.rename(file)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("schedules", type=int, nargs="?", default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--notes", type=Path, default=ROOT / ".simulation")
    parser.add_argument("--scenario", help="only this one")
    parser.add_argument("--seed", help="only this schedule, with its log")
    parser.add_argument("--this", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.seed is not None:
        return play_one(given.seed, given.scenario)
    if given.this is not None or given.processes == 1:
        this = given.this or 0
        return play_many(given.schedules, this, given.processes, given.notes, given.scenario)
    command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
    playing = [
        subprocess.Popen([*command, "--this", str(this)], cwd=ROOT)
        for this in range(given.processes)
    ]
    return max(process.wait() for process in playing)


if __name__ == "__main__":
    if "PYTHONHASHSEED" not in os.environ:  # the order of a set of texts is of the seed, too
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606
    sys.exit(main())
