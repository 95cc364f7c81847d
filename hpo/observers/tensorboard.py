"""Tracking with TensorBoard: each trial has a folder of event files, which is one run there.

When another process goes on with a trial, all its steps are written again from the ledger, after an
event that makes readers drop what they had. So a kill leaves neither a gap nor a repeated step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.observers.background import BackgroundTracker
from trainer.config.plain import dumped
from trainer.config.settings import get_path

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FLUSH_SECONDS = 0.5

# Returns the metrics of a trial by step, as the ledger has them.
History = Callable[[int], Mapping[int, Mapping[str, Any]]]


class TensorBoardTracker(BackgroundTracker):
    """Writes to `folder`/trial-0007 and so on. This needs no TensorBoard; only looking does."""

    name = "tensorboard"

    def __init__(
        self,
        folder: Path,
        searched: Sequence[str],
        metrics: Sequence[str],
        history: History,
        say: Callable[[str], None],
    ) -> None:
        """`searched` paths and objective `metrics` are what TensorBoard compares trials by."""
        self._folder = folder
        self._searched = searched
        self._metrics = metrics
        self._history = history
        self._writers: dict[int, SummaryWriter] = {}
        self._attempts: dict[int, int] = {}  # the last attempt that this process made at a trial
        super().__init__(say)

    def _begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        from tensorboardX import SummaryWriter

        goes_on = self._attempts.get(trial) == attempt - 1
        self._attempts[trial] = attempt
        self._end(trial, "RUNNING", None)
        self._writers[trial] = writer = SummaryWriter(
            str(self._folder / f"trial-{trial:04d}"),
            purge_step=None if goes_on else 0,
            flush_secs=FLUSH_SECONDS,
            # Files of the same second would overwrite each other; readers go by the suffix too.
            filename_suffix=f".{attempt:04d}",
        )
        if goes_on:
            return
        self._last_steps.pop(trial, None)
        writer.add_text("config", f"```yaml\n{dumped(dict(config))}\n```")
        self._add_hparams(writer, config, params)
        if attempt > 1:
            for step, metrics in self._history(trial).items():
                self._on_report(trial, step, dict(metrics))

    def _report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writers[trial].add_scalar(name, value, step)

    def _end(self, trial: int, state: str, reason: str | None) -> None:
        writer = self._writers.pop(trial, None)
        if writer is not None:
            writer.close()

    def _finish(self) -> None:
        for trial in list(self._writers):
            self._end(trial, "RUNNING", None)

    def _add_hparams(
        self, writer: SummaryWriter, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        # add_hparams() would write them as another run.
        from tensorboardX.summary import hparams

        metrics = dict.fromkeys(self._metrics, 0.0)
        # TensorBoard takes the table's columns from any one run, so each run must name all of them.
        searched = {path: get_path(config, path) for path in self._searched}
        columns, *_ = hparams(_plain({**searched, **params}), metrics)
        _, *values = hparams(_plain(params), metrics)
        for summary in (columns, *values):
            writer.file_writer.add_summary(summary)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {p: v if isinstance(v, (bool, int, float)) else str(v) for p, v in params.items()}
