"""The ledger's errors, each with a message of one line that a user can act on."""

from __future__ import annotations

from optuna.exceptions import StorageInternalError

from hpo.errors import HpoError


class LedgerError(HpoError):
    """The ledger cannot do what was asked; the message says why. Nothing was written."""


class Unreachable(LedgerError):
    """The database's server does not answer now: the same may go well later."""


class StudyExists(LedgerError):
    """A study of that name is already in the ledger."""


class StudyNotFound(LedgerError):
    """No study of that name is in the ledger."""


class Gone(LedgerError, KeyError):
    """Another program has deleted a study or a trial that was to be read or written."""

    __str__ = Exception.__str__  # a KeyError shows its message as code


class BudgetSpent(LedgerError):
    """Every trial of the study's budget has been created."""


class RolledBack(LedgerError):
    """Optuna rolled back a part of a transaction without an error, so none of it was written."""


class LeaseLost(LedgerError):
    """Another controller has taken over this controller's trials, so it may not write any more."""


class LeaseHeld(LedgerError):
    """Another controller's lease on the study has not run out, or its controller may yet live."""

    def __init__(self, message: str, leases: dict[int, float], expires_in: float) -> None:
        super().__init__(message)
        self.leases = leases  # by the controllers' ids: when each runs out
        self.expires_in = expires_in  # seconds, by the database's clock


def in_one_line(error: BaseException) -> str:
    """Return the error's message without SQL and parameters; a password in it stays there."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())
