"""What the ledger refuses, each with a message of one line that a user can act on."""

from __future__ import annotations

from optuna.exceptions import StorageInternalError

from hpo.errors import HpoError


class LedgerError(HpoError):
    """The ledger cannot do what was asked; the message says why. Nothing was written."""


class StudyExists(LedgerError):
    """A study of that name is already in the ledger."""


class StudyNotFound(LedgerError):
    """No study of that name is in the ledger."""


class BudgetSpent(LedgerError):
    """Every trial of the study's budget has been created."""


class RolledBack(LedgerError):
    """A part of a transaction failed and was given up quietly; the whole was not written."""


class LeaseLost(LedgerError):
    """Another controller has taken this one's trials over: it may not write any more."""


class LeaseHeld(LedgerError):
    """Another controller's lease on the study has not run out."""

    def __init__(self, message: str, controller: int, expires_in: float) -> None:
        super().__init__(message)
        self.controller = controller
        self.expires_in = expires_in  # seconds, by the database's clock


def in_one_line(error: BaseException) -> str:
    """What an error says, a database's without its SQL and parameters; not without passwords."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())
