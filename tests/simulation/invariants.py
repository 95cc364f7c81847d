"""What holds after each commit, and at the end, whatever happens."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from typing import Any

from tests.simulation.controllers import RUNS, Life, Stage
from tests.simulation.world import Actor, Violation

EVERY = 100


class Ledger:
    """The ledger's rows, read past every cache."""

    def __init__(self, reader: sqlite3.Connection, study_id: int) -> None:
        def rows(text: str) -> list[Any]:
            return reader.execute(text, (study_id,)).fetchall()

        of_trials = "JOIN trials t ON t.trial_id = r.trial_id WHERE t.study_id = ?"
        self.budget = rows(
            "SELECT reserved_trials, budget_trials FROM hpo_studies WHERE study_id = ?"
        )
        self.trials = {
            trial_id: (number, state)
            for trial_id, number, state in rows(
                "SELECT trial_id, number, state FROM trials WHERE study_id = ? ORDER BY trial_id"
            )
        }
        self.attempts: dict[int, list[Any]] = defaultdict(list)
        for trial_id, *attempt in rows(
            "SELECT r.trial_id, r.number, r.ended_at, r.reason, r.controller_id "
            f"FROM hpo_attempts r {of_trials} ORDER BY r.id"
        ):
            self.attempts[trial_id].append(tuple(attempt))
        self.waiting = {row[0] for row in rows(f"SELECT r.trial_id FROM hpo_waiting r {of_trials}")}
        self.steps: dict[int, dict[int, str]] = defaultdict(dict)
        for trial_id, step, metrics in rows(
            f"SELECT r.trial_id, r.step, r.metrics FROM hpo_metrics r {of_trials} ORDER BY r.step"
        ):
            self.steps[trial_id][step] = metrics
        self.reports: dict[int, dict[int, float]] = defaultdict(dict)
        for trial_id, step, value in rows(
            "SELECT r.trial_id, r.step, r.intermediate_value FROM trial_intermediate_values r "
            f"{of_trials} ORDER BY r.step"
        ):
            self.reports[trial_id][step] = value


class Invariants:
    """Checks one schedule."""

    def __init__(self, stage: Stage, single: bool) -> None:
        self._stage = stage
        self._reader = stage.database.reader
        self._study_id = stage.record.study_id
        self._single = single  # objective
        self._lost: set[int] = set()
        self._ended: dict[Any, Any] = {}  # attempts and trials, as they ended

    def after_commit(self, actor: Actor | None, written: set[str]) -> None:
        """Check what the commit of `actor` has left. It wrote to these tables."""
        self._look_whether_deleted()
        if self._stage.deleted:
            return
        if actor is not None and actor.process.life is not None:
            self._check_writer(actor.process.life, written)
        if "hpo_controllers" in written:
            self._check_leases()
        if written <= {"hpo_controllers"}:
            return
        ledger = Ledger(self._reader, self._study_id)
        self._check_budget(ledger)
        self._check_executed(ledger)
        self._check_ends(ledger)
        if actor is not None and actor.process.life is not None:
            self._check_cache(actor.process.life, ledger)
        self._check_reports(ledger)

    def at_end(self) -> None:
        """Check what the study has come to."""
        self._look_whether_deleted()
        if self._stage.deleted:
            self._check_another()
            return
        self.after_commit(None, {"all"})
        ledger = Ledger(self._reader, self._study_id)
        left = [a for attempts in ledger.attempts.values() for a in attempts if a[1] is None]
        if left:
            raise Violation("executed at the end", f"{left}")
        states = Counter(state for _, state in ledger.trials.values())
        if states["RUNNING"]:
            raise Violation("runs at the end", f"{states}")
        ((reserved, budget),) = ledger.budget
        if reserved != budget and self._stage.config.schedule is None:
            raise Violation("trials are missing", f"{reserved} of {budget}")
        for trial_id, (number, state) in ledger.trials.items():
            if (
                state == "COMPLETE"
                and max(ledger.steps[trial_id], default=0) != self._stage.config.train["steps"]
            ):
                raise Violation("complete too early", f"trial {number}: {ledger.steps[trial_id]}")

    def _look_whether_deleted(self) -> None:
        stage = self._stage
        there = "SELECT 1 FROM hpo_studies WHERE study_id = ? AND uid = ?"
        if not self._reader.execute(there, (self._study_id, stage.record.uid)).fetchall():
            if not stage.may_be_deleted:
                raise Violation("the study is gone", "nobody has deleted it")
            stage.deleted = True

    def _check_another(self) -> None:
        """Nobody has written into the study that got the ids of the deleted one."""
        for table in ("hpo_attempts", "hpo_metrics", "hpo_waiting", "trials"):
            (count,) = self._reader.execute(f"SELECT count(*) FROM {table}").fetchone()
            if count:
                raise Violation("rows of a deleted study", f"{count} in {table}")

    def _check_writer(self, life: Life, written: set[str]) -> None:
        if life.writes and written:
            mine = "SELECT state FROM hpo_controllers WHERE id = ?"
            (found,) = self._reader.execute(mine, (life.leases[-1],)).fetchall() or [("deleted",)]
            if found[0] in ("lost", "deleted"):
                text = f"{life.process} wrote {written}, its lease is {found[0]}"
                raise Violation("wrote without a lease", text)

    def _check_leases(self) -> None:
        lost = "SELECT id FROM hpo_controllers WHERE state = 'lost'"
        for (controller,) in self._reader.execute(lost).fetchall():
            if controller in self._lost:
                continue
            self._lost.add(controller)
            for life in self._stage.lives:
                if controller in life.leases[-1:] and life.undisturbed and life.process.lives:
                    text = f"controller {controller} ({life.process})"
                    raise Violation("lost a lease undisturbed", text)

    def _check_budget(self, ledger: Ledger) -> None:
        ((reserved, budget),) = ledger.budget
        asked = sum(state != "WAITING" for _, state in ledger.trials.values())
        if not reserved == asked <= budget:
            raise Violation("budget", f"{reserved} reserved, {asked} asked, of {budget}")
        numbers = [number for number, _ in ledger.trials.values()]
        if numbers != list(range(len(numbers))):
            raise Violation("numbers", f"{numbers}")

    def _check_executed(self, ledger: Ledger) -> None:
        for trial_id, (number, state) in ledger.trials.items():
            attempts = ledger.attempts[trial_id]
            if [each[0] for each in attempts] != list(range(1, len(attempts) + 1)):
                raise Violation("attempts", f"trial {number}: {attempts}")
            still = sum(attempt[1] is None for attempt in attempts)
            waits = trial_id in ledger.waiting
            if trial_id in self._stage.outside:
                continue
            if (still + waits) != (state == "RUNNING"):
                text = f"trial {number} is {state}: {still} open attempts, waiting: {waits}"
                raise Violation("executed", text)

    def _check_cache(self, life: Life, ledger: Ledger) -> None:
        """Optuna remembers nothing that was never written."""
        cached: Any = life.ledger.storage
        known = cached._studies.get(self._study_id)
        for trial in known.trials.values() if known else ():
            number, state = ledger.trials.get(trial._trial_id, (None, None))
            ended = trial.state.is_finished() and trial.state.name != state
            if number != trial.number or ended:
                text = f"{life.process}: trial {trial.number} {trial.state.name}, it is {state}"
                raise Violation("Optuna's cache", text)

    def _check_ends(self, ledger: Ledger) -> None:
        """What has ended stays as it ended."""
        now: dict[Any, Any] = {
            trial: state
            for trial, state in ledger.trials.values()
            if state not in ("RUNNING", "WAITING")
        }
        for trial_id, attempts in ledger.attempts.items():
            now |= {(trial_id, a[0]): a for a in attempts if a[1] is not None}
        for what, before in self._ended.items():
            if now.get(what) != before:
                raise Violation("ended anew", f"{what}: {before}, now {now.get(what)}")
        self._ended = now

    def _check_reports(self, ledger: Ledger) -> None:
        for trial_id, steps in ledger.steps.items():
            number, _ = ledger.trials[trial_id]
            found = [*steps]
            first = EVERY if self._stage.config.schedule is None else found[0]
            if found != list(range(first, found[-1] + 1, EVERY)):
                raise Violation("a gap in reports", f"trial {number}: {found}")
            names = {self._stage.record.name, self._stage.name}
            paths = [f"{RUNS}/{name}/trial-{number:04d}" for name in names]
            kept = {s for path in paths for s in self._stage.site.folder(path).measured}
            if not kept.issuperset(found):
                text = f"trial {number}: {found}, checkpointed {sorted(kept)}"
                raise Violation("reported before its checkpoint", text)
            if self._single and found != [*ledger.reports[trial_id]]:
                text = f"trial {number}: ours {found}, Optuna's {[*ledger.reports[trial_id]]}"
                raise Violation("Optuna's reports", text)
            for step, metrics in steps.items():
                value = ledger.reports[trial_id].get(step)
                if self._single and f'"valid_ppl": {value!r}' not in metrics:
                    text = f"trial {number} at {step}: ours {metrics}, Optuna's {value}"
                    raise Violation("Optuna's values", text)
