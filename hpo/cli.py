"""The `hpo` command: the names of its commands, and how errors are told.

Each command imports itself what is heavy. Exit status: 0 done; 1 the study could not reach its
goal; 2 the input is wrong, which one line says; 75 the database does not answer now, and the same
may go well later (sysexits' EX_TEMPFAIL); 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

from hpo.commands import data, evaluating, operating, reading, running, writing
from hpo.commands.common import fail, forget_output

AWAY = os.EX_TEMPFAIL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Tune LayerDrop language-model trainings; every trial is kept in one SQL ledger.",
)
app.command()(running.start)
app.command()(running.resume)
app.command()(running.stop)
app.command()(running.enqueue)
app.command()(evaluating.evaluate)
app.command()(evaluating.compare)
app.command()(operating.copy)
app.command("list")(reading.list_studies)
app.command()(reading.status)
app.command("trials")(reading.list_trials)
app.command()(reading.show)
app.command()(reading.best)
app.command()(reading.transfer)
app.command()(reading.schedule)
app.command()(reading.dashboard)
app.command()(writing.report)
app.command()(writing.export)
app.command()(operating.doctor)

data_app = typer.Typer(no_args_is_help=True, help="The published data sets.")
data_app.command("prepare")(data.prepare_data)
app.add_typer(data_app, name="data")


def main() -> NoReturn:
    """Run the console script; a user's mistake is one line on standard error, with status 2."""
    try:
        _check_working_folder()
        app(prog_name="hpo")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        _lose_output(error)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        fail(message, status=AWAY if _may_pass(error) else 2)
    finally:
        _flush()
    sys.exit(0)


def _check_working_folder() -> None:
    """Exit where the shell is in a folder that was removed: no relative path leads anywhere."""
    try:
        os.getcwd()
    except FileNotFoundError:
        fail("the working folder has been removed; go to another")


def _may_pass(error: Exception) -> bool:
    from storage import Unreachable, is_away

    return isinstance(error, Unreachable) or is_away(error)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # as in `hpo trials mine | head -1`, where nobody wants the rest
        forget_output()
    except OSError as error:
        _lose_output(error)


def _lose_output(error: OSError) -> NoReturn:
    """Let nobody believe that all was printed, nor Python complain as it ends."""
    print(f"hpo: standard output: {str(error.strerror).lower()}", file=sys.stderr)
    forget_output()
    sys.exit(1)


def _one_line(error: Exception) -> str | None:
    """Return what to say of an error of the user's or the database's; None for a bug of ours."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from storage import LedgerError, in_one_line
    from trainer.config.settings import ConfigError, one_line

    if isinstance(error, (ConfigError, LedgerError)):
        return one_line(str(error))
    if isinstance(error, (SQLAlchemyError, StorageInternalError)):
        return one_line(f"the database: {in_one_line(error)}")
    return None
