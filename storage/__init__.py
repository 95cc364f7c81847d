"""The ledger: the one SQL database, with Optuna's tables and ours, that records what happened.

This package imports neither ray nor torch, and workers never import it.
"""

from storage.availability import is_away, is_unwritable
from storage.errors import (
    BudgetSpent,
    Gone,
    LeaseHeld,
    LeaseLost,
    LedgerError,
    RolledBack,
    StudyExists,
    StudyNotFound,
    Unreachable,
    in_one_line,
)
from storage.leases import LEASE_SECONDS, Lease
from storage.ledger import Ledger
from storage.names import check_study_name
from storage.points import Point
from storage.reasons import Reason, TeacherState
from storage.records import Attempt, Controller, StudyRecord, TeacherRecord, Waiting
from storage.writing import Transaction

__all__ = [
    "LEASE_SECONDS",
    "Attempt",
    "BudgetSpent",
    "Controller",
    "Gone",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "Ledger",
    "LedgerError",
    "Point",
    "Reason",
    "RolledBack",
    "StudyExists",
    "StudyNotFound",
    "StudyRecord",
    "TeacherRecord",
    "TeacherState",
    "Transaction",
    "Unreachable",
    "Waiting",
    "check_study_name",
    "in_one_line",
    "is_away",
    "is_unwritable",
]
