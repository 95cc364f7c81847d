"""Runs a study in this process: puts together lease, Ray, controller, live view and guard."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console

from hpo.control.controller import Controller
from hpo.control.outage import LEDGER_ERRORS, RayLost
from hpo.control.telling import Observer
from hpo.observers.live import Board
from hpo.observers.logs import LogObserver, logged
from hpo.observers.trackers import make_trackers
from hpo.reading.prometheus import metrics_served
from hpo.search.ranking import feasible
from hpo.service.guard import INTERRUPTED, POLL_SECONDS, Guard
from hpo.service.launch import Launch
from hpo.service.opening import DEFAULT_RUNS
from hpo.study.config import StudyConfig
from hpo.study.hints import command
from hpo.study.load import config_of
from storage import LEASE_SECONDS, Lease, LeaseHeld, LeaseLost, StudyNotFound, in_one_line
from trainer.config.settings import is_url
from trainer.terminal import Quiet

logger = logging.getLogger("hpo.service")


@dataclass(frozen=True)
class Ending:
    """How a run of the service ended."""

    status: int  # exit status
    message: str  # one line for the person
    signalled: bool = False  # by a signal to this process


def run_study(launch: Launch, *, exits: bool = True) -> Ending:
    """Run a study until it is done, stopped or given up.

    It runs beside other controllers if the launch says to join them. Else LeaseHeld is raised while
    another controller lives.
    A second signal `exits` this process at once, or else raises KeyboardInterrupt.
    """
    config = config_of(launch.record)
    # A population is compared by one controller.
    join = launch.join and config.schedule is None
    lease = _acquire(launch, join=join)
    while True:
        try:
            ending = _run_under(launch, config, lease, exits=exits)
        finally:
            # A ledger that cannot be reached is why we leave; the lease then runs out by itself.
            with contextlib.suppress(*LEDGER_ERRORS):
                launch.ledger.release(lease)
        if ending is not None:
            return ending
        # Paused past its lease (a laptop's lid, a SIGSTOP), it found its trials taken.
        print("hpo: this controller's trials were taken over", file=sys.stderr)
        try:
            lease = _acquire(replace(launch, trials=None, hours={}), join=join)
        except LeaseHeld as error:
            return Ending(1, f"left the study to another: {error}")
        except StudyNotFound as error:
            return Ending(1, str(error))


def _run_under(launch: Launch, config: StudyConfig, lease: Lease, *, exits: bool) -> Ending | None:
    """Run the study under one lease; None if the lease was lost."""
    ledger, runs = launch.ledger, launch.runs
    record = ledger.study(launch.record.name)  # its budget may be another now
    # A controller's own files stay here: its log, and its trackers'.
    folder = Path(DEFAULT_RUNS if is_url(runs) else runs).absolute() / config.study
    try:
        with Quiet() as quiet:
            quiet.keep_in(folder / "log.txt")
            console = Console(file=quiet.output, emoji=False)
            with (
                logged(folder, record.name, lease.controller_id, quiet.follow),
                metrics_served(ledger, record, config, launch.place.metrics_port),
            ):
                logger.info("process %d on %s runs it", os.getpid(), socket.gethostname())
                ending = _run(
                    replace(launch, record=record), config, lease, folder, console, exits=exits
                )
                logger.info(ending.message if ending else "its lease was lost")
                return ending
    except (OSError, RayLost) as error:  # a full disk, for one
        with contextlib.suppress(*LEDGER_ERRORS):
            if launch.new and ledger.withdraw(record, lease):  # its name is free again
                return Ending(1, f"study {record.name} did not start: {in_one_line(error)}")
        again = _again(record.name, ledger.url)
        return Ending(1, f"left study {record.name}: {in_one_line(error)}; {again}")
    except KeyboardInterrupt:  # before the guard listens, or after, or from its second signal
        message = f"study {record.name} is stopped; {_again(record.name, ledger.url)}"
        return Ending(INTERRUPTED, message, signalled=True)


def _run(
    launch: Launch,
    config: StudyConfig,
    lease: Lease,
    folder: Path,
    console: Console,
    *,
    exits: bool,
) -> Ending | None:
    """Run the study with its live view and trackers, whose files go to `folder`."""
    ledger, record = launch.ledger, launch.record
    board = Board(
        console,
        record.name,
        config.objectives[0],
        record.budget_trials,
        config.constraints,
        again=_again(record.name, ledger.url),
    )
    trackers = make_trackers(config, ledger, record, folder, board.say)
    explore = None
    if config.schedule is not None:
        from hpo.workers.pbt import make_explore

        explore = make_explore(config.schedule, config.space, config.sampler.seed)
    observers: list[Observer] = [board, LogObserver(), *trackers]
    controller = Controller(ledger, record, config, lease, launch.runs, observers, explore)
    board.recall(controller.study)
    guard = Guard(controller, board, exits=exits)
    with ExitStack() as stack:
        for tracker in trackers:
            stack.callback(tracker.close)
        stack.enter_context(ledger.heartbeat(lease, controller.report_error))
        stack.enter_context(board.shown())
        if not controller.look_for_end():  # a study that is done needs no Ray
            from hpo.workers import dispatch, ray_start, session

            stack.enter_context(guard.listening())
            board.say("starting workers")
            own = stack.enter_context(
                ray_start.ray_session(
                    launch.place.ray_address,
                    f"hpo-{record.uid}-{lease.controller_id}",
                    output=console.file,
                    logs=folder / "ray",
                    stopped=lambda: guard.signalled,
                )
            )
            board.note = ""
            stack.enter_context(guard.watching())
            if not controller.stopping:
                dispatch.run_attempts(controller, own / session.TUNE)
            if isinstance(controller.broken, RayLost):
                session.keep_logs(own, folder / "ray")
    if isinstance(controller.broken, LeaseLost):
        # Whoever asked it to stop does not want it to begin again.
        name, url = record.name, ledger.url
        message = f"study {name} is stopped here; {_again(name, url)}"
        stopped = Ending(INTERRUPTED, message, guard.signalled)
        return stopped if guard.asked_to_stop else None
    return replace(_ending(controller, ledger.url), signalled=guard.signalled)


def _acquire(launch: Launch, *, join: bool) -> Lease:
    """Take a lease on the study, after waiting for a dead controller's lease to run out.

    Raises LeaseHeld if the other controller lives: it has renewed its lease meanwhile. Without a
    renewal for a full lease it is dead. With `join` there is nothing to wait for.
    """
    watched: dict[int, float] = {}
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        dead = watched if passed >= LEASE_SECONDS else {}
        try:
            return launch.ledger.acquire(
                launch.record,
                trials=launch.trials,
                attributes={f"budget_{of}": most for of, most in launch.hours.items()},
                runs=launch.runs,
                join=join,
                watched=dead,
            )
        except LeaseHeld as error:
            if watched and not error.leases.items() <= watched.items():
                raise
            if not watched:
                left = f"has {error.expires_in:.0f} s to run: waiting for them"
                if error.expires_in <= 0:
                    left = f"has run out: watching for {LEASE_SECONDS:.0f} s whether it is renewed"
                print(f"hpo: {error}, or was; its lease {left}", file=sys.stderr)
            watched = error.leases
            time.sleep(POLL_SECONDS)


def _ending(controller: Controller, url: str) -> Ending:
    name = controller.study.study_name
    again = _again(name, url)
    if controller.broken is not None:
        return Ending(1, f"left study {name}: {in_one_line(controller.broken)}; {again}")
    if controller.stopping:
        return Ending(INTERRUPTED, f"study {name} is stopped; {again}")
    complete = controller.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    gave_up = controller.gave_up
    if not complete:
        return Ending(1, f"study {name}: no trial completed{f': {gave_up}' if gave_up else ''}")
    if not feasible(complete):
        see = command(f"hpo trials {name}", url)
        return Ending(1, f"study {name}: no trial keeps its constraints; see: {see}")
    if controller.failing:
        return Ending(1, f"study {name} stopped: {gave_up}; {again}")
    return Ending(0, f"study {name} is done{f': {gave_up}' if gave_up else ''}")


def _again(name: str, url: str) -> str:
    return f"go on with: {command(f'hpo resume {name}', url)}"
