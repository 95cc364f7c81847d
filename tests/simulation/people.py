"""People who do something to a study while it runs, each in a process of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpo.control.outage import LEDGER_ERRORS
from storage import Ledger, LedgerError, Point
from tests.simulation.controllers import Stage
from tests.simulation.faults import Fault
from tests.simulation.world import Process

Wish = Callable[[Stage, Ledger, Fault], None]


def enqueue(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo enqueue`."""
    ledger.enqueue(
        ledger.study(stage.name), [Point({"optim.lr": 1e-3 * (1 + fault.pick)}, {"by": "hand"})]
    )


def stop(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo stop`."""
    ledger.request_stop(ledger.study(stage.name))


def more_trials(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo resume --trials`: the next process that gets a lease takes it along."""
    record = ledger.study(stage.name)
    stage.trials = record.budget_trials + 1
    stage.another_machine()


def fail(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """Another program ends a trial through Optuna."""
    trial_id = _running(stage, ledger, fault)
    if trial_id is not None:
        ledger.storage.set_trial_state_values(trial_id, state=TrialState.FAIL)


def fail_in_dashboard(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """The dashboard's "Fail Trial"."""
    trial_id = _running(stage, ledger, fault)
    if trial_id is not None:
        with contextlib.suppress(LedgerError):  # it has ended just now
            ledger.fail_trial(ledger.study(stage.name), trial_id)


def _running(stage: Stage, ledger: Ledger, fault: Fault) -> int | None:
    study = optuna.load_study(study_name=stage.name, storage=ledger.storage)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not running:
        return None
    found: int = running[int(fault.pick * len(running))]._trial_id
    stage.outside.add(found)  # whether or not the answer comes
    return found


def rename(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """The dashboard's "Rename", which is refused while a controller runs the study."""
    record = ledger.study(stage.name)
    name = f"{record.name}-again"
    ledger.rename_study(record, name)
    stage.name = name


def delete(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """The dashboard's "Delete", which is refused while a controller runs the study."""
    stage.may_be_deleted = True
    ledger.delete_study(ledger.study(stage.name))


def erase(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """Optuna's own command deletes the study, whoever runs it; another study may get its ids."""
    stage.may_be_deleted = True
    optuna.delete_study(study_name=stage.name, storage=ledger.storage)
    if fault.pick < 0.5:
        record = stage.record
        study = ledger.create_study(
            "another", [StudyDirection.MINIMIZE], ["valid_ppl"], record.document, 5
        )
        stage.another = study.study_id


WISHES: dict[str, Wish] = {
    "enqueue": enqueue,
    "stop": stop,
    "more trials": more_trials,
    "fail": fail,
    "fail in the dashboard": fail_in_dashboard,
    "rename": rename,
    "delete": delete,
    "erase": erase,
}


def come(stage: Stage, fault: Fault) -> None:
    """Let somebody come who does it, and who tries a few times."""
    wish = WISHES[fault.kind]
    process = Process(f"person who {fault.kind}")

    def act() -> None:
        ledger = stage.database.ledger()
        for _ in range(6):
            try:
                wish(stage, ledger, fault)
            except (*LEDGER_ERRORS, KeyError) as error:  # Optuna's, where the study is gone
                stage.world.note(f"is refused: {type(error).__name__}")
                stage.world.wait(5.0)
            else:
                stage.world.note("is content")
                return

    stage.world.spawn(process, process.name, act)
