"""What a person sees of a run: a progress bar on a terminal, a line for each evaluation on a pipe.

What libraries print goes to the run folder's `log.txt` instead. Nothing here trains.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.config.train import TrainConfig

if TYPE_CHECKING:
    from trainer.run import Report, StepInfo


class Quiet:
    """A context in which whatever is written to standard output and error stays off the terminal.

    `output` is the real standard output, and `errors` the real standard error.
    """

    def __enter__(self) -> Quiet:
        with ExitStack() as undo:
            for stream in (1, 2):
                copy = os.dup(stream)
                undo.callback(os.close, copy)
                undo.callback(os.dup2, copy, stream)
            self._aside = undo.enter_context(tempfile.TemporaryFile())
            self.output, self.errors = (
                undo.enter_context(_Lasting(os.fdopen(os.dup(stream), "wb"), "utf-8"))
                for stream in (1, 2)
            )
            # A notebook shows what is printed, whatever the file descriptors point to.
            undo.enter_context(redirect_stdout(_on(1)))
            undo.enter_context(redirect_stderr(_on(2)))
            send_output_to(self._aside.fileno())
            undo.callback(flush_output)
            self._undo = undo.pop_all()
        return self

    def keep_in(self, path: Path) -> None:
        """Append what was written so far, and all that follows, to the file `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            flush_output()
            self._aside.seek(0)
            shutil.copyfileobj(self._aside, log)
            log.flush()
            send_output_to(log.fileno())
        self._kept_in = path

    def follow(self) -> None:
        """Go on in a new file if that of `keep_in` was moved away, as logrotate does."""
        with suppress(OSError):  # such as a full disk: what there is goes on
            if not (self._kept_in.exists() and os.path.samestat(self._kept_in.stat(), os.fstat(1))):
                with self._kept_in.open("ab") as log:
                    send_output_to(log.fileno())

    def __exit__(self, *_: object) -> None:
        self._undo.close()


class _Lasting(io.TextIOWrapper):
    """A stream that drops what cannot be written: its reader or its terminal may be gone."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Display:
    """Shows the run of `config` on `output`: live where that is a terminal, else in plain lines.

    Unless `shown`, it shows nothing, because one rank speaks for all. Lines begin with `name`.
    """

    def __init__(
        self, output: TextIO, config: TrainConfig, shown: bool = True, name: str = ""
    ) -> None:
        self._name = name
        self._steps = config.steps
        self._step_tokens = config.data.batch_size * config.data.context
        self._valid = ""
        self._console = Console(file=output, highlight=False, soft_wrap=True, quiet=not shown)
        self._bar = Progress(
            TextColumn(name or "training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=4,
            transient=True,  # the printed lines stay, and say all that the bar said
            redirect_stdout=False,  # what libraries print is kept elsewhere
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=self._steps, now="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(f"{self._name}: {text}" if self._name else text, markup=False)

    def step(self, info: StepInfo) -> None:
        """Show where training is."""
        if self._console.is_terminal:
            speed = f"{self._step_tokens / info.seconds:,.0f} tokens/s"
            now = f"loss {info.loss:.3f}  {self._valid}{speed}"
            self._bar.update(self._task, completed=info.step, now=now)

    def evaluated(self, report: Report) -> None:
        """Show what an evaluation measured."""
        metrics = report.metrics
        self._valid = f"valid_ppl {metrics['valid_ppl']:.2f}  "
        self.say(
            f"step {report.step}/{self._steps}  {self._valid}"
            f"train_loss {metrics['train_loss']:.4f}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s"
        )


def _on(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def send_output_to(descriptor: int) -> None:
    """Have all that this process prints go to the open file `descriptor`."""
    flush_output()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def flush_output() -> None:
    """Flush what was printed so far."""
    sys.stdout.flush()
    sys.stderr.flush()
