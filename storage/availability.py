"""Which errors say that the database cannot serve for now, and which that it never will."""

from __future__ import annotations

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import Engine

from storage.errors import RolledBack

READ_ONLY = "25006"  # PostgreSQL's code: after a failover the old server takes no writes
# Of PostgreSQL's codes, the beginnings of those that stand for a state that passes: connections,
# conflicts of transactions, resources, locks, shutting down, a statement's time, the disk.
_PASSING = (READ_ONLY, "08", "40", "53", "55P03", "57", "58")


def is_away(error: Exception) -> bool:
    """Return whether `error` says that the database cannot be reached or cannot write, for now."""
    if isinstance(error, StorageInternalError):  # Optuna's, around what SQLAlchemy raised
        return not isinstance(error.__cause__, sa.exc.DBAPIError) or _passes(error.__cause__)
    return isinstance(error, (RolledBack, sa.exc.TimeoutError)) or _passes(error)


def _passes(error: BaseException | None) -> bool:
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    lost = error.connection_invalidated or state_of(error).startswith(_PASSING)
    return lost or isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))


def is_unwritable(error: Exception) -> bool:
    """Return whether `error` says that a value cannot be written, now or later."""
    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    wrong = isinstance(error, sa.exc.StatementError) and not isinstance(error, sa.exc.DBAPIError)
    return wrong or isinstance(error, (sa.exc.DataError, UnicodeError, OverflowError))


def state_of(error: sa.exc.DBAPIError) -> str:
    """Return PostgreSQL's code of the error, or nothing."""
    return getattr(error.orig, "sqlstate", None) or ""


def leave_read_only_servers(engine: Engine) -> None:
    """Have the engine connect anew once a server says that it takes no writes any more."""

    @sa.event.listens_for(engine, "handle_error")
    def _(context: sa.engine.ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
            context.is_disconnect = True
