"""Killed before and after every commit of the product, and resumed: the ledger ends the same.

The commits are those that the product's code holds (fail_points.py), and what is killed are studies
that together make each of them (plays.py).
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import optuna
import pytest

from storage import Ledger
from tests.hpo.fail_points import FailPoint, Moment, watch, writes
from tests.hpo.plays import PLAYS, Told, play_to_the_end

pytestmark = pytest.mark.slow

DATABASE = "storage/database.py"  # what opens a ledger: its commits are of a new one
OPTUNA_S_TABLES = f"{DATABASE}:open_storage, on its own"  # Optuna makes them, in its own commits
# What people do from outside of a controller: tests/simulation/people.py does it, and its processes
# are killed at their commits too. test_failed_start.py has the start that withdraws its study.
BY_PEOPLE = {
    f"storage/ledger.py:Ledger.{name}"
    for name in ("delete_study", "fail_trial", "rename_study", "withdraw")
}
PLACES = [*(p for write in writes()[0] if (p := str(write)) not in BY_PEOPLE), OPTUNA_S_TABLES]
REPORTS = "hpo/control/controller.py:Controller._write_trial"
NEW = "short"  # the play that begins without a database, and in which one is copied
OF_NEW = (DATABASE, "storage/copying.py", "storage/following.py")
HANGS_SECONDS = 60


@dataclass(frozen=True)
class Case:
    """A play in a process of its own, which may die on the way."""

    play: str
    url: str
    folder: Path
    doom: FailPoint | None = None

    def perform(self) -> None:
        """Play, and leave in the folder how it ended, and its commits by their places."""
        seen = watch(self.doom)
        told = play_to_the_end(self.play, self.url, self.folder)
        ending = json.dumps({"told": told, "seen": seen}, default=str)
        (self.folder / "ending.json").write_text(ending)

    @property
    def ending(self) -> Any:
        """What it left."""
        return json.loads((self.folder / "ending.json").read_text())


class Processes:
    """Plays each case in a fork of one process, in which all that a play needs is loaded."""

    def __init__(self, folder: Path) -> None:
        self._empty = folder / "empty"
        self._empty.mkdir()
        Ledger.open(f"sqlite:///{self._empty}/hpo.db", create=True)
        undisturbed = [self.case(name, folder / name) for name in PLAYS]
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._parent = spawn.Process(target=_serve, args=(theirs, undisturbed))
        self._parent.start()
        theirs.close()
        self._pipe.recv()
        self.endings = {case.play: case.ending for case in undisturbed}

    def case(self, play: str, folder: Path, doom: FailPoint | None = None) -> Case:
        """The play in a new folder, with an empty ledger, but for the one that makes its own."""
        database = folder / "database"
        if play == NEW:
            database.mkdir(parents=True)
        else:
            shutil.copytree(self._empty, database)
        return Case(play, f"sqlite:///{database}/hpo.db", folder, doom)

    def perform(self, case: Case) -> int:
        """The exit status, or minus the signal that killed it."""
        self._pipe.send(case)
        status: int = self._pipe.recv()
        return status

    def commits(self, place: str, plays: int) -> list[tuple[str, int]]:
        """The middle one of a place in each of those `plays` plays that make most."""
        counts = {
            play: self.endings[play]["seen"].get(place, 0)
            for play in PLAYS
            if (play == NEW) == place.startswith(OF_NEW)
        }
        most = [(play, count) for play, count in Counter(counts).most_common(plays) if count]
        return [(play, (count + 1) // 2) for play, count in most]

    def close(self) -> None:
        """End the parent of all."""
        self._pipe.close()
        self._parent.join()


def _serve(pipe: Connection, undisturbed: list[Case]) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for case in undisturbed:
        case.perform()
    gc.freeze()  # a fork then copies less
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            process = multiprocessing.get_context("fork").Process(target=pipe.recv().perform)
            process.start()
            process.join(HANGS_SECONDS)
            if process.is_alive():
                process.terminate()
                process.join()
            pipe.send(process.exitcode)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("plays"))
    yield made
    made.close()


def check_same_end(processes: Processes, case: Case, what: str) -> None:
    """Play `case` to its end, which must be that of the same play undisturbed."""
    assert processes.perform(case) == 0, what
    assert case.ending["told"] == processes.endings[case.play]["told"], what


def test_every_write_stands_in_a_transaction_and_some_play_makes_it(processes: Processes) -> None:
    made = {place for ending in processes.endings.values() for place in ending["seen"]}
    assert not made - set(PLACES), "written in no transaction"
    assert not set(PLACES) - made, "tests/hpo/plays.py has no play that makes them"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_killed_around_a_commit_and_resumed_a_study_ends_as_if_it_had_not_been(
    processes: Processes, tmp_path: Path, place: str, moment: Moment
) -> None:
    middle = processes.commits(place, plays=3)
    first = middle[0][0], 1
    for play, nth in sorted({first, *middle}):
        doom = FailPoint(place, moment, nth)
        case = processes.case(play, tmp_path / f"{play}-{nth}", doom)
        assert processes.perform(case) == -signal.SIGKILL, f"{play}: {doom}"
        check_same_end(processes, replace(case, doom=None), f"{play}: killed {doom}")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("place", [place for place in PLACES if place.startswith("hpo/")])
def test_a_connection_lost_around_a_commit_is_waited_out_to_the_same_end(
    processes: Processes, tmp_path: Path, place: str, moment: Moment
) -> None:
    for play, nth in processes.commits(place, plays=len(PLAYS)):
        doom = FailPoint(place, moment, nth, kills=False)
        case = processes.case(play, tmp_path / f"{play}-{nth}", doom)
        if place == REPORTS and PLAYS[play].decides:
            assert processes.perform(case) == 0, f"{play}: {doom}"
            check_all_is_told(case.ending["told"])
        else:
            check_same_end(processes, case, f"{play}: {doom}")


def check_all_is_told(told: Told) -> None:
    """Nothing is lost, or left: as much as holds where an evaluation could not decide."""
    assert told["reserved"] == len(told["trials"])
    assert not told["waiting"] + told["executed"] + told["controllers"]
    for trial in told["trials"]:
        assert trial["state"] in ("COMPLETE", "PRUNED", "FAIL")
        assert trial["curve"] == {step: m["valid_ppl"] for step, m in trial["metrics"].items()}


@pytest.mark.parametrize("play", ["endings", "population"])
def test_with_every_controller_killed_at_its_sixth_write_a_study_ends_the_same(
    processes: Processes, ledger_url: str, tmp_path: Path, play: str
) -> None:
    case = Case(play, ledger_url, tmp_path)
    lives, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        doom = FailPoint(None, ("before", "after")[lives % 2], 6)
        lives, status = lives + 1, processes.perform(replace(case, doom=doom))
    assert lives > 3
    assert status == 0
    assert case.ending["told"] == processes.endings[play]["told"]
