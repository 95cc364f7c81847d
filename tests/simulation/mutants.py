"""python -m tests.simulation.mutants: breaks the product, and sees whether the schedules find it.

Prints how many schedules it took until each mutant was caught. Exits with 1 if one was not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from sqlalchemy.orm import Session

import storage.writing
from hpo.control.controller import Controller
from storage import Lease, LeaseLost, Ledger, Transaction
from storage.leases import reap
from tests.simulation.schedules import player

LIMIT = 1000  # schedules
Mutant = Callable[[], AbstractContextManager[Any]]


def _renew_without_fence(session: Session, lease: Lease) -> None:
    with contextlib.suppress(LeaseLost):
        _renew(session, lease)


def _claim_always(transaction: Transaction, trial_id: int) -> bool:
    _claim(transaction, trial_id)
    return True


_claim, _renew, _reserve = Transaction.claim, storage.writing.renew, Transaction.reserve_trial


def _reserve_alone(transaction: Transaction) -> None:
    _reserve(transaction)
    Session.commit(transaction._session)


def _reap_at_once(transaction: Transaction) -> None:
    lease = transaction._lease
    reap(transaction._session, lease.study_id, transaction._now(), lambda _: True)


def _replaced(owner: Any, name: str, by: Any) -> Mutant:
    return lambda: mock.patch.object(owner, name, by)


MUTANTS: dict[str, Mutant] = {
    "no fence in renew": _replaced(storage.writing, "renew", _renew_without_fence),
    "is_open always true": _replaced(Transaction, "is_open", lambda *_: True),
    "claim always true": _replaced(Transaction, "claim", _claim_always),
    "budget in a transaction of its own": _replaced(Transaction, "reserve_trial", _reserve_alone),
    "the cache not forgotten": _replaced(Ledger, "_forget_cached", lambda _: None),
    "reaping after an outage as it was": _replaced(Transaction, "reap", _reap_at_once),
    "no _let_go_of_unknown": _replaced(Controller, "_let_go_of_unknown", lambda _: None),
}


def schedules_until_caught(mutant: Mutant, limit: int = LIMIT) -> tuple[int, str] | None:
    """How many schedules it takes until one fails, and how; None if none of `limit` does."""
    with player() as playing, mutant():
        for number in range(limit):
            violation = playing.play(str(number)).violation
            if violation is not None:
                return number + 1, violation.kind
    return None


def main() -> int:
    print("| mutant | caught by schedule | as |\n|---|---|---|")
    missed = 0
    for name in sys.argv[1:] or MUTANTS:
        found = schedules_until_caught(MUTANTS[name])
        missed += found is None
        number, kind = found or ("none of 1,000", "")
        print(f"| {name} | {number} | {kind} |", flush=True)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
