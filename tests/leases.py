"""Leases that run out when a test says so, however slow the machine."""

from __future__ import annotations

import sqlalchemy as sa

from storage import Lease, Ledger
from storage.models import ControllerRow

NOBODY = 2**30  # no machine has a process of this number


def lapse(ledger: Ledger, *leases: Lease, dead: bool = True) -> None:
    """These leases, or all, have run out; their processes are `dead`, or were away."""
    these = [lease.controller_id for lease in leases]
    with ledger.sessions() as session:
        expired = sa.update(ControllerRow).where(ControllerRow.state == "active")
        if these:
            expired = expired.where(ControllerRow.id.in_(these))
        dies = {"pid": NOBODY} if dead else {"seen_at": 0.0}
        session.execute(expired.values(expires_at=0.0, **dies))
        session.commit()


def steady(ledger: Ledger, lease: Lease) -> None:
    """This lease has been renewed without a gap for longer than it lasts."""
    with ledger.sessions() as session:
        mine = sa.update(ControllerRow).where(ControllerRow.id == lease.controller_id)
        session.execute(mine.values(steady_since=0.0))
        session.commit()
