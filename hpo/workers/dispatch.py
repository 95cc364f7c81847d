"""Has Ray Tune run attempts, by two adapters: one asks the controller, the other one tells it.

A Tune trial is one attempt. Tune places it, keeps its actors for the next attempt, and runs several
at a time. The controller decides what runs and what becomes of it; what Tune keeps is never read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from hpo.control.assignment import Assignment
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.control.outage import RayLost
from hpo.study.sections import Resources
from hpo.workers.gang import GangFailure
from hpo.workers.ray_daemon import DaemonWatch
from hpo.workers.trainable import GangTrainable

logger = logging.getLogger("hpo.dispatch")

_FOLDER = "attempts"  # Tune's, of which nothing is read but why an actor failed


class _Adapter:
    """Speaks for the controller; Tune pickles its adapters for a restore that never comes."""

    _controller: Controller

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ControllerSearcher(_Adapter, Searcher):  # type: ignore[misc]
    """The adapter that Tune asks for a configuration. It asks the controller for an attempt."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next attempt as Tune's config, None for not now, FINISHED for no more."""
        attempt = self._controller.next()
        if attempt is None:
            finished: str = Searcher.FINISHED
            return finished if self._controller.look_for_end() else None
        return {"assignment": attempt.assignment}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the scheduler adapter hears it first."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has it."""


class ControllerScheduler(_Adapter, FIFOScheduler):  # type: ignore[misc]
    """The adapter that passes every message to the controller, and the answer back to Tune."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Have all attempts share Tune's folder, of which it would else make one for each."""
        trial.relative_logdir = trial.storage.trial_dir_name = _FOLDER
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass on an evaluation; the answer says whether the attempt goes on."""
        decision: str = TrialScheduler.STOP
        if self._handle(trial, result["message"]):
            decision = TrialScheduler.CONTINUE
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass on the last message: perhaps an evaluation again, after which it was stopped."""
        self._handle(trial, result["message"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass on that the gang is lost, or its actor, perhaps with the whole node."""
        file = Path(trial.error_file)
        said = file.read_text().rpartition("(occurred at ")[2].partition("\n")[2]
        file.unlink()  # it would grow with each failure
        why = said.rpartition(f"{GangFailure.__name__}: ")[2]
        self._handle(trial, Message("worker_lost", detail=why.strip()))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Choose in the order they came. Once the study stops, no attempt waits for a place."""
        if self._controller.stopping:
            for trial in tune_controller.get_trials():
                if trial.status == trial.PENDING:
                    tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Pass on that an attempt was stopped before it had a place."""
        self._handle(trial, Message("stopped"))

    def _handle(self, trial: Any, message: Message) -> bool:
        assignment: Assignment = trial.config["assignment"]
        return self._controller.handle(assignment.job, assignment.attempt, message)


def run_attempts(controller: Controller, scratch: Path) -> None:
    """Run attempts until the controller has no more. `scratch` holds Tune's own files."""
    tuner = tune.Tuner(
        tune.with_resources(GangTrainable, _bundles(controller.config.resources)),
        tune_config=tune.TuneConfig(
            search_alg=ControllerSearcher(controller),
            scheduler=ControllerScheduler(controller),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_tune_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.absolute()),
            # Ranks write their runs' checkpoints; Tune's own would want a disk that nodes share.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # in a notebook Tune would draw a view of its own
            callbacks=[DaemonWatch()],
        ),
    )
    try:
        tuner.fit()
    except RayLost as error:
        controller.abandon(error)
    except RuntimeError as error:
        # Tune knows no answer to an actor that was killed because its node had no memory left.
        if not isinstance(error.__cause__, RayError):
            raise
        controller.abandon(RayLost(str(error.__cause__).splitlines()[0]))


def _tune_name(trial: Any) -> str:
    assignment: Assignment = trial.config["assignment"]
    return f"{assignment.label.replace(' ', '-')}-attempt-{assignment.attempt}"


def _bundles(resources: Resources) -> tune.PlacementGroupFactory:
    rank = {"CPU": resources.cpus_per_rank, "GPU": resources.gpus_per_rank}
    # Tune drops the empty head bundle, so that rank i is in bundle i.
    return tune.PlacementGroupFactory([{}, *[rank] * resources.ranks])
