"""Experiment tracking: one Weights & Biases run per trial, sent by the controller.

Tracking is a copy for people to look at and is never believed: nothing is read back from it, and
whatever happens to it (no network, wandb raising or hanging) never fails, delays or stops a trial.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from trainer.settings import ConfigError, Section

if TYPE_CHECKING:
    from storage import TeacherRecord

logger = logging.getLogger("hpo.tracking")

CLOSE_SECONDS = 20.0  # the longest that close() waits for what is still to be sent
FINISH_SECONDS = 10.0  # the longest that the end of one run waits for its upload
FLUSH_SECONDS = 0.5  # the most that a killed controller loses of an offline run; wandb's own is 15
QUEUE_SIZE = 10_000  # calls; a queue this long means that wandb hangs

Tag = Annotated[str, Field(min_length=1, max_length=64)]


class WandbConfig(Section):
    """Where the runs go. `auto` is online where wandb finds a key, and offline elsewhere."""

    project: str = "hpo"  # wandb's project
    entity: str | None = None  # user or team; the key's own if null
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with a key
    tags: tuple[Tag, ...] = ()  # on every run


class TrackingConfig(Section):
    """The trackers of a study."""

    wandb: WandbConfig | None = None


class Tracker(Protocol):
    """Follows a study's trials. No method raises, and none waits but `close`, 20 s at most."""

    def begin(self, trial: int, attempt: int, config: Mapping[str, Any]) -> None:
        """An attempt at `trial` starts, with the resolved train `config`."""

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        """`metrics` at an optimizer step; a step no later than the last reported is left out."""

    def end(self, trial: int, state: str, reason: str | None) -> None:
        """`trial` ended COMPLETE, PRUNED or FAIL, or stays RUNNING to be continued later."""

    def teacher(self, teacher: TeacherRecord) -> None:
        """Nothing: a teacher is no trial."""
        return

    def close(self) -> None:
        """Send what is left. Nothing may be called after it."""


class NullTracker(Tracker):
    """The tracker of a study that asks for none."""

    def begin(self, trial: int, attempt: int, config: Mapping[str, Any]) -> None:
        return

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        return

    def end(self, trial: int, state: str, reason: str | None) -> None:
        return

    def close(self) -> None:
        return


def check_tracking(config: TrackingConfig) -> None:
    """Raise ConfigError if wandb is asked for and not installed."""
    if config.wandb is None or config.wandb.mode == "disabled":
        return
    # A folder wandb/ of offline runs in the working directory is importable too, with no origin.
    if (spec := importlib.util.find_spec("wandb")) is None or spec.origin is None:
        raise ConfigError(
            "tracking.wandb: wandb is not installed; pip install layerdrop-hpo[wandb]"
        )


def run_id(study_uid: str, trial: int) -> str:
    """What wandb knows a trial's run by, in whatever process it goes on."""
    return hashlib.sha256(f"{study_uid}/{trial}".encode()).hexdigest()[:16]


def make_tracker(config: TrackingConfig, study: str, study_uid: str, folder: Path) -> Tracker:
    """The tracker `config` asks for; wandb's own files go to `folder`/wandb.

    `study_uid` tells apart two studies of one name. Raises ConfigError if wandb is not installed.
    """
    check_tracking(config)
    if config.wandb is None or config.wandb.mode == "disabled":
        return NullTracker()
    return WandbTracker(config.wandb, study, study_uid, folder)


class WandbTracker(Tracker):
    """One wandb run per trial. A trial resumed by another process continues its run, by its id;
    one begun again while its run is open goes on in it, and close() finishes the open ones.

    The callers' side only fills a queue; one background thread makes every call to wandb. After
    its first error, or once the queue is full, tracking is off for good, with one warning logged.
    """

    def __init__(self, config: WandbConfig, study: str, study_uid: str, folder: Path) -> None:
        self._config = config
        self._study = study
        self._study_uid = study_uid
        self._folder = folder
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_SIZE)
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hpo-wandb", daemon=True)
        self._wandb: Any = None  # the rest is the background thread's own
        self._mode: str = config.mode
        self._service: Any = None
        self._runs: dict[int, Any] = {}
        self._last_steps: dict[int, int] = {}
        self._thread.start()

    def begin(self, trial: int, attempt: int, config: Mapping[str, Any]) -> None:
        self._send(partial(self._begin, trial, attempt, dict(config)))

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        self._send(partial(self._report, trial, step, dict(metrics)))

    def end(self, trial: int, state: str, reason: str | None) -> None:
        self._send(partial(self._end, trial, state, reason))

    def close(self) -> None:
        self._send(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._turn_off(f"it did not finish in {CLOSE_SECONDS:.0f} s")

    def _send(self, call: Callable[[], None] | None) -> None:
        if self._off.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._turn_off(f"{QUEUE_SIZE} calls are waiting")

    def _turn_off(self, reason: str) -> None:
        if not self._off.is_set():
            self._off.set()
            logger.warning("wandb tracking is off for the rest of this run: %s", reason)
        self._kill_service()

    def _work(self) -> None:
        try:
            while not self._off.is_set() and (call := self._calls.get()) is not None:
                call()
            for run in self._runs.values():
                run.finish()
        except Exception as error:  # noqa: BLE001 - whatever wandb raises, the trials go on
            self._turn_off(" ".join(f"{type(error).__name__}: {error}".split()))

    def _begin(self, trial: int, attempt: int, config: dict[str, Any]) -> None:
        if self._wandb is None:
            self._start_wandb()
        if trial not in self._runs:
            self._runs[trial] = self._wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                tags=self._config.tags,
                mode=self._mode,
                group=self._study,
                name=f"{self._study}-{trial:04d}",
                id=run_id(self._study_uid, trial),
                resume="allow",
                reinit="create_new",  # several runs open at once in one process
                dir=str(self._folder),
                config=config,
            )
        self._runs[trial].summary["attempt"] = attempt

    def _report(self, trial: int, step: int, metrics: dict[str, float]) -> None:
        if step > self._last_steps.get(trial, -1):
            # Without commit wandb holds a step back until the next one.
            self._runs[trial].log(metrics, step=step, commit=True)
            self._last_steps[trial] = step

    def _end(self, trial: int, state: str, reason: str | None) -> None:
        run = self._runs.pop(trial, None)
        if run is not None:
            run.summary.update({"state": state, "reason": reason})
            run.finish(exit_code=1 if state == "FAIL" else 0)

    def _start_wandb(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # has no setting of its own
        import wandb
        from wandb.sdk.lib import wbauth

        self._folder.mkdir(parents=True, exist_ok=True)
        system_hooks = sys.exit, sys.excepthook
        session = wandb.setup(_quiet(wandb.Settings))
        sys.exit, sys.excepthook = system_hooks
        self._service = session.ensure_service()
        key = wbauth.authenticate_session(
            host=session.settings.base_url, source="hpo", prompt=False
        )
        if self._mode == "auto":
            self._mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
        if self._mode == "online" and key is None:  # wandb would ask for one at the terminal
            raise ConfigError("mode is online and wandb has no key; run `wandb login`")
        self._wandb = wandb

    def _kill_service(self) -> None:
        """End wandb's process, for which wandb itself would wait at exit, for ever if it hangs."""
        unregister_at_exit = getattr(self._service, "_cleanup", None)
        process = getattr(getattr(self._service, "_proc", None), "_process", None)
        if unregister_at_exit and process:
            unregister_at_exit()
            process.kill()


def _quiet(settings: Any) -> Any:
    """`settings` (wandb.Settings) that print nothing, capture nothing and look at nothing."""
    return settings(
        silent=True,
        console="off",
        finish_timeout=FINISH_SECONDS,
        stop_fn=lambda: None,  # else the stop button on wandb's page interrupts the controller
        disable_code=True,
        disable_git=True,
        save_code=False,
        label_disable=True,
        sagemaker_disable=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=FLUSH_SECONDS,
    )
