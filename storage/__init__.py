"""The ledger: one SQL database, Optuna's tables and ours, that says what happened.

Nothing here imports ray or torch, and no worker ever imports this.
"""

from storage.errors import (
    BudgetSpent,
    LeaseHeld,
    LeaseLost,
    LedgerError,
    StudyExists,
    StudyNotFound,
)
from storage.ledger import Lease, Ledger, Transaction
from storage.names import check_study_name
from storage.points import Point
from storage.reasons import Reason, TeacherState
from storage.records import Attempt, Controller, StudyRecord, TeacherRecord

__all__ = [
    "Attempt",
    "BudgetSpent",
    "Controller",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "Ledger",
    "LedgerError",
    "Point",
    "Reason",
    "StudyExists",
    "StudyNotFound",
    "StudyRecord",
    "TeacherRecord",
    "TeacherState",
    "Transaction",
    "check_study_name",
]
