"""Reads TensorBoard's event files with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_run(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of the run in `folder`, every step of it."""
    run = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return run.Reload()


def steps(folder: Path, metric: str = "valid_ppl") -> dict[str, list[int]]:
    """The steps of a metric by run, of all runs in `folder`."""
    return {
        run.name: [event.step for event in read_run(run).Scalars(metric)]
        for run in sorted(folder.iterdir())
    }
