"""Leases that run out when a test says so, however slow the machine."""

from __future__ import annotations

import sqlalchemy as sa

from storage import Lease, Ledger
from storage.models import ControllerRow


def lapse(ledger: Ledger, *leases: Lease) -> None:
    """These leases have run out, or all of the database: the next controller may reap them."""
    these = [lease.controller_id for lease in leases]
    with ledger.sessions() as session:
        expired = sa.update(ControllerRow).where(ControllerRow.state == "active")
        if these:
            expired = expired.where(ControllerRow.id.in_(these))
        session.execute(expired.values(expires_at=0.0))
        session.commit()
