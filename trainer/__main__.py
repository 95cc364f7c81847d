"""The command line: `python -m trainer CONFIG.yaml [path=value]...`, also under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.paths import absolute
from trainer.config.settings import ConfigError, is_url
from trainer.config.train import TrainConfig, load
from trainer.data.splits import check_data, check_length
from trainer.ending import end_soon
from trainer.runs.lock import in_use
from trainer.signals import StopSignals
from trainer.teaching.teacher import Teacher, find_teacher
from trainer.terminal import Display, Quiet

if TYPE_CHECKING:
    from trainer.engine.distributed import World
    from trainer.run import Run

_RANK_0_SPEAKS_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # between two looks at a teacher that another process trains
_DESCRIPTION = """\
Train one language model as CONFIG.yaml says, or go on from the newest checkpoint in its
output_dir. With torchrun in front, all of its processes train together:

  torchrun --nproc-per-node 2 -m trainer CONFIG.yaml optim.lr=1e-3

The output_dir gets config.yaml (every setting), metrics.jsonl (a line an evaluation),
checkpoints/, result.json and log.txt. SIGTERM and Ctrl-C checkpoint first; a second Ctrl-C
does not. A teacher that distillation.teacher names by its config is trained first, once for all
that name it.

Exit status: 0 trained; 1 diverged, or failed; 2 a setting is wrong; 143 or 130 stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train as `argv` says; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m trainer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="a train config")
    parser.add_argument(
        "settings", metavar="path=value", nargs="*", help="over the file's, such as optim.lr=1e-3"
    )
    arguments = parser.parse_args(argv)
    try:
        absolute(arguments.config, "CONFIG.yaml")  # the working folder may have been removed
        config = load(arguments.config, arguments.settings)
        config.check_tuning(arguments.config)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        config.check_ranks(ranks)
        check_data(config.data)
        check_length(config.data)
        teacher = find_teacher(config)
        if teacher is not None:
            teacher.check_ranks(ranks)
            config = teacher.named_in(config)
        return _train(config, teacher, StopSignals())
    except ConfigError as error:
        return _failed(error, status=2)


def _train(config: TrainConfig, teacher: Teacher | None, signals: StopSignals) -> int:
    # Imported here: torch takes seconds, and most of the user's mistakes are known by now.
    from trainer.engine.distributed import from_environment, leave
    from trainer.runs.checkpoint import CheckpointError
    from trainer.runs.store import StoreError

    try:
        with Quiet() as quiet, ExitStack() as leaving:
            world = from_environment(lambda text: print(text, file=quiet.output, flush=True))
            leaving.callback(leave)
            if teacher is not None and (status := _train_teacher(teacher, world, signals, quiet)):
                return status
            return _train_run(config, world, signals, quiet)
    except (CheckpointError, StoreError) as error:
        return _failed(error, status=1)


def _train_teacher(teacher: Teacher, world: World, signals: StopSignals, quiet: Quiet) -> int:
    """Train the teacher, or wait for another process that does; return 0 once it is trained."""
    from trainer.runs.claim import FolderInUse

    waiting = False
    while not world.on_rank_0(teacher.trained):
        # All ranks wait together, for short times: a collective cannot wait for hours.
        if world.on_rank_0(lambda: in_use(teacher.folder, _LOOK_SECONDS)):
            if not waiting:
                with Display(quiet.output, teacher.config, world.rank == 0, "teacher") as display:
                    display.say(f"waiting for the process that trains it in {teacher.folder}")
            waiting = True
            continue
        try:
            if status := _train_run(teacher.config, world, signals, quiet, "teacher"):
                return status
        except FolderInUse:
            continue
        signals.release()
    return 0


def _train_run(
    config: TrainConfig, world: World, signals: StopSignals, quiet: Quiet, name: str = ""
) -> int:
    from trainer.run import Run

    with (
        Display(quiet.output, config, world.rank == 0, name) as display,
        closing(Run(config, world, display.step, say=display.say)) as run,
    ):
        if not is_url(config.output_dir):
            quiet.keep_in(Path(config.output_dir) / "log.txt")
        signals.call(run.request_stop)
        if run.step:
            display.say(f"going on from step {run.step}")
        return _drive(run, signals, display)


def _drive(run: Run, signals: StopSignals, display: Display) -> int:
    while True:
        report = run.advance()
        if report.kind in ("evaluated", "finished"):
            display.evaluated(report)
        if report.kind == "finished":
            return 0
        if report.kind == "stopped":
            display.say(f"stopped at step {report.step}; the same command goes on from there")
            return signals.exit_status
        if report.kind == "diverged":
            display.say(f"diverged at step {report.step}: a loss is not finite or past loss_limit")
            return 1


def _failed(error: Exception, status: int) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"trainer: {error}", file=sys.stderr)
    else:
        # torchrun ends all ranks once one has ended; rank 0 must be able to say why before.
        time.sleep(_RANK_0_SPEAKS_SECONDS)
    return status


if __name__ == "__main__":
    end_soon()
    sys.exit(main())
