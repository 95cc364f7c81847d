"""Running a study in this process: ledger, lease, Ray, live view and signals, put together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import optuna
from optuna.trial import TrialState
from rich.console import Console

from hpo.constraints import is_feasible
from hpo.controller import LEDGER_ERRORS, Controller
from hpo.live import Board
from hpo.logs import LogObserver, logged
from hpo.metrics import metrics_served
from hpo.outage import RayLost, in_one_line
from hpo.study import StudyConfig, check_machine, local_cpus
from hpo.tracking import check_tracking, make_tracker
from storage import Lease, LeaseHeld, LeaseLost, Ledger, StudyRecord
from trainer.settings import ConfigError, is_url
from trainer.store import StoreError, check_writable
from trainer.terminal import Quiet

logger = logging.getLogger("hpo.service")

INTERRUPTED = 130
POLL_SECONDS = 1.0
LOOKS_AT_OTHERS = 5  # polls from one look at what other controllers have finished to the next


@dataclass(frozen=True)
class Ending:
    """How a run of the service ended."""

    status: int  # exit status
    message: str  # one line for the person


def check_place(config: StudyConfig, runs: str, ray_address: str | None) -> None:
    """Raise ConfigError unless a trial fits, `runs` can be written, and wandb, if asked, is there.

    Asked before anything is written to the ledger.
    """
    check_tracking(config.tracking)
    if ray_address is None:
        check_machine(config, local_cpus(), _local_gpus(config), "this machine")
    else:
        _check_cluster(config, ray_address)
    _check_runs(runs)


def _check_runs(runs: str) -> None:
    if is_url(runs):
        try:
            check_writable(runs)
        except (ConfigError, StoreError) as error:
            raise ConfigError(f"--runs {error}") from None
        return
    folder = Path(runs).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--runs {runs}: {there} is not a folder that can be written to")


def cluster_resources(ray_address: str) -> tuple[float, float]:
    """CPUs and GPUs of the Ray cluster at `ray_address`. Raises ConfigError if it is not ours."""
    from hpo import dispatch

    with _visited(ray_address):
        return dispatch.cluster_size()


def _check_cluster(config: StudyConfig, ray_address: str) -> None:
    from hpo import dispatch

    wanted = config.resources
    with _visited(ray_address):
        (cpus, gpus), places = dispatch.cluster_size(), dispatch.places(wanted)
    check_machine(config, cpus, gpus, "the Ray cluster")
    if places < wanted.ranks:
        raise ConfigError(
            f"study {config.study}: resources.ranks: {wanted.ranks} ranks need as many "
            f"places, and the Ray cluster's nodes have {places}: one rank cannot be shared by two"
        )


@contextmanager
def _visited(ray_address: str) -> Iterator[None]:
    from hpo import dispatch

    host, _, port = ray_address.rpartition(":")
    try:
        # Ray itself would try for minutes where nobody answers.
        socket.create_connection((host, int(port)), timeout=10).close()
        with Quiet(), dispatch.ray_session(ray_address, "hpo-check"):
            yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--ray-address {ray_address}: no Ray cluster of ours answers there, or "
            f"$RAY_AUTH_TOKEN is not its token: {reason}"
        ) from None


def run_study(
    ledger: Ledger,
    record: StudyRecord,
    config: StudyConfig,
    *,
    runs: str,
    ray_address: str | None = None,
    trials: int | None = None,
    join: bool = False,
    metrics_port: int | None = None,
) -> Ending:
    """Run the study until it is done, stopped or given up; `trials` is its new budget, if given.

    Beside its other controllers, if it is to `join` them; else raises LeaseHeld while there is one.
    Its metrics are served on `metrics_port`, if given. `check_place` and `check_port` were asked
    before.
    """
    # A population is compared by one controller.
    join = join and config.schedule is None
    lease = _acquire(ledger, record, trials, join=join)
    while True:
        ending = _run_under(ledger, record, config, lease, runs, ray_address, metrics_port)
        if ending is not None:
            return ending
        # Paused past its lease (a laptop's lid, a SIGSTOP), it found its trials taken.
        print("hpo: this controller's trials were taken over", file=sys.stderr)
        try:
            lease = _acquire(ledger, record, None, join=join)
        except LeaseHeld as error:
            return Ending(1, f"left the study to another: {error}")


def _run_under(
    ledger: Ledger,
    record: StudyRecord,
    config: StudyConfig,
    lease: Lease,
    runs: str,
    ray_address: str | None,
    metrics_port: int | None,
) -> Ending | None:
    """Run the study under one lease; None if that was lost."""
    record = ledger.study(record.name)
    # A controller's own files stay here: its log, and what wandb has not sent yet.
    local = Path("runs" if is_url(runs) else runs).absolute()
    try:
        with Quiet() as quiet:
            quiet.keep_in(local / record.name / "log.txt")
            logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
            console = Console(file=quiet.output)
            with (
                logged(local / record.name, record.name, lease.controller_id),
                metrics_served(ledger, record, config, metrics_port),
            ):
                logger.info("process %d on %s runs it", os.getpid(), socket.gethostname())
                ending = _run(ledger, record, config, lease, runs, local, ray_address, console)
                logger.info(ending.message if ending else "its lease was lost")
                return ending
    except (OSError, RayLost) as error:  # a full disk, for one
        reason = " ".join(str(error).split())
        return Ending(
            1, f"left study {record.name}: {reason}; go on with: hpo resume {record.name}"
        )
    finally:
        # A ledger that cannot be reached is why we leave; the lease then runs out by itself.
        with contextlib.suppress(*LEDGER_ERRORS):
            ledger.release(lease)


def _run(
    ledger: Ledger,
    record: StudyRecord,
    config: StudyConfig,
    lease: Lease,
    runs: str,
    local: Path,
    ray_address: str | None,
    console: Console,
) -> Ending | None:
    from hpo import dispatch

    tracker = make_tracker(config.tracking, record.name, record.uid, local / record.name)
    board = Board(
        console, record.name, config.objectives[0], record.budget_trials, config.constraints
    )
    explore = None
    if config.schedule is not None:
        from hpo.pbt import make_explore

        explore = make_explore(config.schedule, config.space, config.sampler.seed)
    controller = Controller(
        ledger, record, config, lease, runs, (board, LogObserver(), tracker), explore
    )
    _recall(board, controller.study)
    guard = _Guard(ledger, record, lease, controller, board)
    with ExitStack() as stack:
        stack.callback(tracker.close)
        scratch = Path(
            stack.enter_context(TemporaryDirectory("-hpo-tune", ignore_cleanup_errors=True))
        )
        stack.enter_context(ledger.heartbeat(lease, controller.report_error))
        namespace = f"hpo-{record.uid}-{lease.controller_id}"
        stack.enter_context(dispatch.ray_session(ray_address, namespace))
        stack.enter_context(guard.watching())
        stack.enter_context(board.shown())
        dispatch.run_attempts(controller, Path(scratch))
    if isinstance(controller.broken, LeaseLost):
        # Whoever asked it to stop does not want it to begin again.
        name = record.name
        stopped = Ending(INTERRUPTED, f"study {name} is stopped here; {_again(name)}")
        return stopped if guard.asked_to_stop else None
    return _ending(controller)


class _Guard:
    """Watches over a running controller: signals, wishes to stop, a lost ledger, progress."""

    def __init__(
        self,
        ledger: Ledger,
        record: StudyRecord,
        lease: Lease,
        controller: Controller,
        board: Board,
    ) -> None:
        self._ledger = ledger
        self._record = record
        self._lease = lease
        self._controller = controller
        self._board = board
        self.asked_to_stop = False  # by a signal, or `hpo stop`
        self._signalled = False
        self._looks = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Answer signals and follow the ranks while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="guard", daemon=True)
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A handler may interrupt a print: it only leaves word for the thread that watches.
        if self._signalled:
            os._exit(INTERRUPTED)  # the second: leave at once, the checkpoints are what they are
        self._signalled = True

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(POLL_SECONDS):
            try:
                self._look()
            except Exception:
                # Whatever it was (Ray busy, say), the next look must still come.
                logger.exception("could not look after the trials")

    def _look(self) -> None:
        from hpo import gang

        self._controller.mend()
        if not self._controller.stopping:
            if self._signalled:
                self._stop("stopping: running trials write a checkpoint; again to leave at once")
            elif not self._controller.waits_for_database and self._asked_to_stop():
                self._stop("stopping: asked to by `hpo stop`")
        if isinstance(self._controller.broken, LeaseLost):
            gang.kill_all()  # others go on with their trials
        elif self._controller.stopping:
            gang.request_stop()
        self._looks += 1
        if not self._controller.waits_for_database and self._looks % LOOKS_AT_OTHERS == 0:
            self._count_others()
        self._board.progress(gang.progress())

    def _count_others(self) -> None:
        controllers = self._ledger.controllers(self._record)
        if sum(controller.alive for controller in controllers) > 1:
            _recall(self._board, self._controller.study)

    def _asked_to_stop(self) -> bool:
        asked_at = self._ledger.study(self._record.name).stop_requested_at
        return asked_at is not None and asked_at > self._lease.started_at

    def _stop(self, why: str) -> None:
        self.asked_to_stop = self._controller.stopping = True
        self._board.say(why)


def _acquire(ledger: Ledger, record: StudyRecord, trials: int | None, *, join: bool) -> Lease:
    """A lease on the study; waits for a dead controller's to run out. Raises LeaseHeld if it lives.

    To `join` others waits for none.
    """
    held: LeaseHeld | None = None
    while True:
        try:
            return ledger.acquire(record, trials=trials, join=join)
        except LeaseHeld as error:
            # A lease that has become longer was renewed: its controller lives.
            if held is not None and (
                error.controller != held.controller or error.expires_in > held.expires_in
            ):
                raise
            if held is None:
                left = f"its lease has {error.expires_in:.0f} s to run: waiting for them"
                print(f"hpo: {error}, or was; {left}", file=sys.stderr)
            held = error
            time.sleep(POLL_SECONDS)


def _recall(board: Board, study: optuna.Study) -> None:
    """Show what all controllers of the study have done."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    board.finished = dict(Counter(trial.state.name for trial in trials))
    for trial in trials:
        if trial.state is TrialState.COMPLETE and trial.values and is_feasible(trial):
            board.recall(trial.number, trial.values[0])


def _ending(controller: Controller) -> Ending:
    name = controller.study.study_name
    if controller.broken is not None:
        return Ending(1, f"left study {name}: {in_one_line(controller.broken)}; {_again(name)}")
    if controller.stopping:
        return Ending(INTERRUPTED, f"study {name} is stopped; {_again(name)}")
    complete = controller.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    gave_up = controller.gave_up
    if not complete:
        return Ending(1, f"study {name}: no trial completed{f': {gave_up}' if gave_up else ''}")
    if not any(is_feasible(trial) for trial in complete):
        return Ending(1, f"study {name}: no trial keeps its constraints; see: hpo trials {name}")
    if controller.failing:
        return Ending(1, f"study {name} stopped: {gave_up}; {_again(name)}")
    return Ending(0, f"study {name} is done{f': {gave_up}' if gave_up else ''}")


def _again(name: str) -> str:
    return f"go on with: hpo resume {name}"


def _local_gpus(config: StudyConfig) -> int:
    if not config.resources.gpus_per_rank:
        return 0
    import torch

    return torch.cuda.device_count()
