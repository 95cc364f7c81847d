"""What trackers have in common: a thread that makes their calls, and how errors are handled.

Nothing that happens to a tracker (no network, a full disk, a library that raises or hangs) fails,
delays or stops a trial.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

from hpo.control.telling import Observer
from storage import TeacherRecord
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, resolve

logger = logging.getLogger("hpo.tracking")

CLOSE_SECONDS = 20.0  # the longest that close() waits for what is still to be sent
QUEUE_SIZE = 10_000  # calls; a full queue means that the tracker hangs


class Tracker(Observer, Protocol):
    """Follows a study's trials. No method raises, and only `close` waits, for 20 s at most.

    A report of a step that is not later than the last reported step is left out.
    """

    def teacher(self, teacher: TeacherRecord) -> None:
        """Do nothing, because a teacher is not a trial."""
        return

    def close(self) -> None:
        """Send what is left. No method may be called afterwards."""


class BackgroundTracker(Tracker):
    """Puts calls into a queue, from which one background thread takes and makes them.

    After the first error, or once the queue is full, this tracking is turned off for good, and the
    person is told once. The abstract methods run in the thread, and may raise.
    """

    name: ClassVar[str]

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start the thread; `say` tells the person."""
        self._say = say
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_SIZE)
        self._off = threading.Event()
        self._configs: dict[int, TrainConfig | None] = {}
        self._last_steps: dict[int, int] = {}  # that this process reported, by trial
        self._thread = threading.Thread(target=self._work, name=f"hpo-{self.name}", daemon=True)
        self._thread.start()

    def begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        self._send(partial(self._on_begin, trial, attempt, dict(config), dict(params)))

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        self._send(partial(self._on_report, trial, step, dict(metrics)))

    def end(self, trial: int, state: str, reason: str | None) -> None:
        self._send(partial(self._on_end, trial, state, reason))

    def close(self) -> None:
        self._send(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._turn_off(f"it did not finish in {CLOSE_SECONDS:.0f} s")

    @abstractmethod
    def _begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        """An attempt at the trial starts."""

    @abstractmethod
    def _report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        """The trial was measured at a step that was not reported before."""

    @abstractmethod
    def _end(self, trial: int, state: str, reason: str | None) -> None:
        """An attempt ended, or a parked trial."""

    @abstractmethod
    def _finish(self) -> None:
        """Finish what is still open."""

    def _abandon(self) -> None:
        """Remove what would keep this process from ending; called from any thread."""
        return

    def _on_begin(
        self, trial: int, attempt: int, config: dict[str, Any], params: dict[str, Any]
    ) -> None:
        try:
            self._configs[trial] = resolve(config, "a trial")
        except ConfigError:  # the config is of a training function that is not ours
            self._configs[trial] = None
        self._begin(trial, attempt, config, params)

    def _on_report(self, trial: int, step: int, metrics: dict[str, float]) -> None:
        if step > self._last_steps.get(trial, -1):
            config = self._configs[trial]
            if config is not None and "drop_probability" in metrics:  # the trainer is ours
                metrics |= drop_probabilities(config, step, metrics)
            self._report(trial, step, metrics)
            self._last_steps[trial] = step

    def _on_end(self, trial: int, state: str, reason: str | None) -> None:
        self._end(trial, state, reason)
        if state != "RUNNING":
            self._configs.pop(trial, None)

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
            text = f"{self.name} tracking is off for the rest of this run: {reason}"
            logger.warning(text)
            self._say(text)
        self._abandon()

    def _work(self) -> None:
        try:
            while not self._off.is_set() and (call := self._calls.get()) is not None:
                call()
            self._finish()
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the trials go on
            self._turn_off(" ".join(f"{type(error).__name__}: {error}".split()))


def drop_probabilities(
    config: TrainConfig, step: int, metrics: Mapping[str, float]
) -> dict[str, float]:
    """Return each layer's drop probability in the last of `step` steps, by the run's policy."""
    from trainer.model.layerdrop import make_policy

    layers = range(1, config.model.layers + 1)
    measured = (metrics.get(f"sensitivity_layer_{layer}") for layer in layers)
    policy = make_policy(config, [rise for rise in measured if rise is not None])
    return {
        f"drop_probability/layer_{layer:02d}": policy.drop_probability(layer, step - 1)
        for layer in layers
    }
