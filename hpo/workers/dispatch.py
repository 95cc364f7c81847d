"""Has Ray Tune run attempts, by two adapters: one asks the controller, the other one tells it.

A Tune trial is one attempt. Tune places it, keeps its actors for the next attempt, and runs several
at a time. The controller decides what runs and what becomes of it; what Tune keeps is never read.
"""

from __future__ import annotations

import logging
import os
import site
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from hpo.control.assignment import Assignment
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.control.outage import RayLost
from hpo.ours import ROOT
from hpo.study.sections import Resources, local_cpus
from hpo.workers.gang import GangFailure
from hpo.workers.ray_daemon import DaemonWatch
from hpo.workers.trainable import GangTrainable

logger = logging.getLogger("hpo.dispatch")

_TUNE_SETTINGS = {  # Tune's files would be a second store, and Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def configure_ray() -> None:
    """Change this process' environment, and Ray's and Tune's own settings, to what we need.

    Called before Ray is started or joined; a second call changes nothing more.
    """
    os.environ.update(_TUNE_SETTINGS)
    # A cluster demands a token by default, and Ray sends the one it has only when told to. Ray has
    # read RAY_AUTH_MODE when it was imported, perhaps long ago.
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    token = given or Path("~/.ray/auth_token").expanduser().exists()
    if token and "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()
    # Tune hands AWS keys to its actors in their runtime environment, which Ray writes into its
    # logs. A node's workers have the keys that the node was started with.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    )
    # Tune gives its actors PL_DISABLE_FORK, which is Lightning's. With a runtime environment of
    # their own, they and their ranks would not get the worker processes that Ray starts ahead.
    class_cache.DEFAULT_ENV_VARS.clear()
    # Tune reads a failed actor's error back from a pickle in its folder, which is in the study's.
    Trial.get_pickled_error = lambda trial: None


class _Job(JobConfig):  # type: ignore[misc]
    """What Ray tells its workers of us: where our packages are, unless every Python finds them.

    The working folder and that of a script are kept off their path, whose files may have the names
    of our packages, or of a library. A training function's own folder is in its assignment.
    """

    def __init__(self) -> None:
        everywhere = {os.path.realpath(path) for path in site.getsitepackages()}
        super().__init__(_py_driver_sys_path=[] if str(ROOT) in everywhere else [str(ROOT)])

    def _runtime_env_has_working_dir(self) -> bool:
        return True


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
        why = Path(trial.error_file).read_text().rpartition(f"{GangFailure.__name__}: ")[2]
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
            trial_dirname_creator=_tune_name,
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


@contextmanager
def ray_session(address: str | None, namespace: str) -> Iterator[None]:
    """Start a local Ray, or join the cluster at `address`, while the block runs. Raises RayLost."""
    configure_ray()
    try:
        ray.init(
            address=address or "local",
            namespace=namespace,
            job_config=_Job(),
            num_cpus=local_cpus() if address is None else None,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # it raises plain ones too, when a node takes too long
        raise RayLost(f"Ray did not start: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()


def cluster_size() -> tuple[float, float]:
    """Return the numbers of CPUs and GPUs of the Ray that this process has joined."""
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def places(resources: Resources) -> int:
    """Return for how many ranks the nodes of that Ray have room, each rank on one node."""
    wanted = {"CPU": resources.cpus_per_rank, "GPU": resources.gpus_per_rank}
    return sum(
        min(int(node["Resources"].get(kind, 0) // n) for kind, n in wanted.items() if n)
        for node in ray.nodes()
        if node["Alive"]
    )


def _tune_name(trial: Any) -> str:
    assignment: Assignment = trial.config["assignment"]
    return f"{assignment.label.replace(' ', '-')}-attempt-{assignment.attempt}"


def _bundles(resources: Resources) -> tune.PlacementGroupFactory:
    rank = {"CPU": resources.cpus_per_rank, "GPU": resources.gpus_per_rank}
    # Tune drops the empty head bundle, so that rank i is in bundle i.
    return tune.PlacementGroupFactory([{}, *[rank] * resources.ranks])
