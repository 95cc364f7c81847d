"""Drives a user's own training function from evaluation to evaluation, as trainer/run.py does ours.

The function is a generator. It trains between two yields. When it is closed, because its trial is
pruned, stopped or parked, it stands at a yield. This module checks what it yields, and
`own_folder.py` keeps it.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from hpo.study.functions import OwnFunction, find_function, source_digest
from hpo.training import TrainingRun
from hpo.workers.own_folder import OwnFolder, Saved
from trainer.config.settings import ConfigError
from trainer.engine.distributed import World
from trainer.engine.memory import release_freed
from trainer.run import Kind, Report
from trainer.runs.identity import Identity

Metrics = dict[str, float]


class OwnRun:
    """One rank's part of one attempt. All ranks build it and call `advance` together."""

    def __init__(
        self,
        own: OwnFunction,
        document: Mapping[str, Any],
        world: World,
        tick: Callable[[int | None], None],
        attempt: int,
        studies: tuple[str, ...],
    ) -> None:
        """`studies` is as `trainer.run.Run` has it.

        Raises ConfigError, and CheckpointError if the folder's checkpoints do not read.
        """
        function = find_function(own.name, own.folder)
        self._own, self._world, self._tick = own, world, tick
        self._steps: int = document["steps"]
        self._stop_requested = False
        self._folder: OwnFolder | None = None  # rank 0's
        with ExitStack() as closing:
            identity = Identity(studies, code=source_digest(function))
            saved = world.on_rank_0(lambda: self._open(document, identity, attempt, closing))
            self._history: list[Metrics] = [*saved.history] if saved else []
            self._step = int(self._history[-1]["step"]) if self._history else 0
            run = TrainingRun(
                rank=world.rank,
                ranks=world.ranks,
                device=str(world.device),
                folder=Path(document["output_dir"]),
                attempt=attempt,
                restored=(saved.step, saved.files) if saved else None,
                _checkpoint=self._checkpoint,
                _tick=tick,
            )
            self._evaluations = function(copy.deepcopy(dict(document)), run)
            closing.callback(release_freed, world.device)
            closing.callback(self._evaluations.close)
            self._closing = closing.pop_all()

    @property
    def step(self) -> int:
        """The step of the last evaluation."""
        return self._step

    def history(self) -> list[Report]:
        """What was reported at every evaluation so far, those before a resume too, oldest first."""
        return [Report("evaluated", int(each["step"]), dict(each)) for each in self._history]

    def request_stop(self) -> None:
        """Have `advance` return after the evaluation in progress, on every rank."""
        self._stop_requested = True

    def advance(self) -> Report:
        """Train to the next evaluation, or to the end; rank 0's report counts."""
        if self._world.largest(float(self._stop_requested)) > 0:
            return self._report("stopped")
        if self.step == self._steps:  # it was killed before it could say so
            return self._report("finished")
        yielded = self._next()
        if yielded is None:
            if not self._history and self._world.rank == 0:
                raise self._wrong("ended without an evaluation; it must yield at least one")
            return self._report("finished")
        step = self._checked_step(yielded)
        metrics = self._checked_metrics(yielded) if self._folder is not None else {}
        if metrics is None:
            return Report("diverged", step, self._report("diverged").metrics)
        self._keep({"step": step, **metrics})
        if step < self._steps:
            return self._report("evaluated")
        if self._next() is not None:
            raise self._wrong(f"goes on after its last step, `steps: {self._steps}`")
        return self._report("finished")

    def close(self) -> None:
        """End the function where it stands; this process is then ready for its next run."""
        self._closing.close()

    def _open(
        self, document: Mapping[str, Any], identity: Identity, attempt: int, closing: ExitStack
    ) -> Saved | None:
        self._folder = OwnFolder(document, identity, attempt)
        closing.callback(self._folder.close)
        return self._folder.resume()

    def _next(self) -> Any:
        """Return what the function yields next; None at its end."""
        try:
            yielded = next(self._evaluations)
        except StopIteration:
            if self._folder is not None:
                self._folder.place()
            return None
        except SystemExit as error:  # it would take this process along, as if it had died
            raise self._wrong(f"called sys.exit({error.code!r})") from error
        if not isinstance(yielded, Mapping):
            raise self._wrong(f"must yield a dict, step and metrics, not {yielded!r}")
        return yielded

    def _checked_step(self, yielded: Mapping[str, Any]) -> int:
        try:
            step = operator.index(yielded["step"])
        except KeyError:
            raise self._wrong(f"yielded no `step`, but {', '.join(map(str, yielded))}") from None
        except TypeError:
            raise self._wrong(f"yielded step {yielded['step']!r}, no whole number") from None
        if not self._step < step <= self._steps:
            raise self._wrong(
                f"yielded step {step} after {self._step}; steps must rise, from 1 to `steps: "
                f"{self._steps}`"
            )
        return step

    def _checked_metrics(self, yielded: Mapping[str, Any]) -> Metrics | None:
        """Return the finite metrics; None if one that the study needs is not finite any more."""
        metrics: Metrics = {}
        for name, value in yielded.items():
            if name == "step":
                continue
            try:
                metrics[str(name)] = float(value)
            except (TypeError, ValueError):
                raise self._wrong(f"yielded {name} {value!r}, no number") from None
        for name in self._own.metrics:
            if name not in metrics:
                raise self._wrong(f"yielded no {name}, which the study file names")
            if not math.isfinite(metrics[name]):
                return None
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _keep(self, metrics: Metrics) -> None:
        self._step = int(metrics["step"])
        self._history.append(metrics)
        if self._folder is not None:
            self._folder.evaluated(metrics)
        self._tick(self._step)

    def _checkpoint(self, step: int) -> AbstractContextManager[Path]:
        if self._folder is None:
            raise self._wrong("wrote a checkpoint on another rank than 0")
        if not 0 < step <= self._steps:
            raise self._wrong(f"wrote a checkpoint of step {step}; steps are 1 to {self._steps}")
        return self._folder.checkpoint(operator.index(step))

    def _report(self, kind: Kind) -> Report:
        return Report(kind, self.step, dict(self._history[-1]) if self._history else {})

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"{self._own.name}: {what}")
