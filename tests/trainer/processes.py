"""Trainings, here and in fresh processes of their own, and what they left in their folders.

The processes, one per rank, are forked from one that has imported torch already.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests import forked
from trainer.config.train import resolve

forked.preload("tests.trainer.preloaded")

TIMEOUT_SECONDS = 120.0
_UNREPEATABLE = {"tokens_per_second", "step_seconds", "train_seconds", "peak_memory_bytes"}


@dataclass(frozen=True)
class Plan:
    """What the ranks do: train `documents` in order, asking to stop, or dying, on the way.

    Rank `by_rank` asks to stop after step `ask_to_stop_at`; it dies in its `die_call`-th call of
    the function named `die_in`, before or after that has done its work.
    """

    documents: tuple[dict[str, Any], ...]
    ask_to_stop_at: int | None = None
    by_rank: int = 0
    die_in: str | None = None
    die_call: int = 1
    die_after: bool = False


def train(document: dict[str, Any], *more: dict[str, Any], ranks: int = 1, **plan: Any) -> Any:
    """The reports of every `advance` on all ranks, by rank; of the last document if several."""
    return run_ranks(ranks, drive, Plan((document, *more), **plan))


def run_ranks(ranks: int, target: Callable[..., Any], *args: Any) -> list[Any]:
    """What `target(world, *args)` returns on each rank, or its exception; None where it died."""
    from trainer.engine.distributed import free_port

    port = free_port()
    pipes = [forked.CONTEXT.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        forked.CONTEXT.Process(
            target=_enter,
            args=(dict(os.environ), rank, ranks, port, pipe[1], target, args),
        )
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        return [_result(process, pipe[0]) for process, pipe in zip(processes, pipes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def drive(world: Any, plan: Plan) -> Any:
    """Train as `plan` says until each run ends; the last one's reports."""
    if plan.die_in is not None and world.rank == plan.by_rank:
        _die_in(plan.die_in, plan.die_call, plan.die_after)
    return [_reports(world, document, plan) for document in plan.documents][-1]


def _reports(world: Any, document: dict[str, Any], plan: Plan) -> list[Any]:
    from trainer.run import Run

    def on_step(info: Any) -> None:
        if info.step == plan.ask_to_stop_at and world.rank == plan.by_rank:
            run.request_stop()

    run = Run(resolve(document, "test"), world, on_step)
    return _advance(run)


def train_here(document: dict[str, Any], world: Any, on_step: Any = None) -> list[Any]:
    """All reports of a run in this process."""
    from trainer.run import Run

    return _advance(Run(resolve(document, "test"), world, on_step))


def _advance(run: Any) -> list[Any]:
    try:
        reports = [run.advance()]
        while reports[-1].kind == "evaluated":
            reports.append(run.advance())
    finally:
        run.close()
    return reports


def measured(folder: Path) -> list[dict[str, float]]:
    """What a run wrote of itself, without its times and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in _UNREPEATABLE and not name.startswith("seconds_")
        }
        for line in lines
    ]


def state(folder: Path) -> bytes:
    """Weights and moments of the newest checkpoint, to the bit."""
    newest = max((folder / "checkpoints").iterdir())
    return (newest / "state.safetensors").read_bytes()


def same(folder: Path, other: Path) -> bool:
    """Whether two runs measured the same and ended with the same weights, to the bit."""
    return measured(folder) == measured(other) and state(folder) == state(other)


def files(folder: Path) -> list[str]:
    """All files of a run, whatever is in them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _die_in(name: str, call: int, after: bool) -> None:
    owner, _, attribute = name.rpartition(".")
    holder, calls = pkgutil.resolve_name(owner), 0
    real = getattr(holder, attribute)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, attribute, dying)


def _enter(
    environment: dict[str, str], rank: int, ranks: int, port: int, pipe: Any, target: Any, args: Any
) -> None:
    from trainer.engine.distributed import join, leave

    os.environ.update(environment)
    world = join(rank, ranks, 0, "127.0.0.1", port)
    try:
        pipe.send(target(world, *args))
    except Exception as error:
        pipe.send(error)
        raise
    finally:
        leave()


def _result(process: Any, pipe: Any) -> Any:
    # The child's end of the pipe is open here too, so its death has to be watched for.
    wait([process.sentinel, pipe], TIMEOUT_SECONDS)
    assert pipe.poll() or process.exitcode is not None, "a rank hangs"
    return pipe.recv() if pipe.poll() else None
