"""People who do something to a study while it runs, each in a process of their own."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from hpo.control.outage import LEDGER_ERRORS
from storage import Ledger, Point
from tests.simulation.controllers import NAME, Stage
from tests.simulation.faults import Fault
from tests.simulation.world import Process

Wish = Callable[[Stage, Ledger, Fault], None]


def enqueue(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo enqueue`."""
    ledger.enqueue(
        ledger.study(NAME), [Point({"optim.lr": 1e-3 * (1 + fault.pick)}, {"by": "hand"})]
    )


def stop(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo stop`."""
    ledger.request_stop(ledger.study(NAME))


def more_trials(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """`hpo resume --trials`: the next process that gets a lease takes it along."""
    record = ledger.study(NAME)
    stage.trials = record.budget_trials + 1
    stage.another_machine()


def fail(stage: Stage, ledger: Ledger, fault: Fault) -> None:
    """Another program ends a trial through Optuna."""
    study = optuna.load_study(study_name=NAME, storage=ledger.storage)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        trial = running[int(fault.pick * len(running))]
        stage.outside.add(trial._trial_id)  # whether or not the answer comes
        ledger.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


WISHES: dict[str, Wish] = {
    "enqueue": enqueue,
    "stop": stop,
    "more trials": more_trials,
    "fail": fail,
}


def come(stage: Stage, fault: Fault) -> None:
    """Let somebody come who does it, and who tries a few times."""
    wish = WISHES[fault.kind]
    process = Process(f"person who {fault.kind}")

    def act() -> None:
        ledger = stage.database.ledger()
        for _ in range(3):
            try:
                wish(stage, ledger, fault)
            except LEDGER_ERRORS as error:
                stage.world.note(f"is refused: {type(error).__name__}")
                stage.world.wait(5.0)
            else:
                stage.world.note("is content")
                return

    stage.world.spawn(process, process.name, act)
