"""A session in which several of Optuna's small transactions commit together, or not at all.

Optuna opens, commits and closes a session of its own in each storage call. Inside `joined()` those
commits become flushes and the closes wait, so that a trial's creation, its parameters and our rows
about it are one transaction. A process killed at any line leaves all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session

from storage.errors import RolledBack

# Bulk statements need not update the session's objects: each transaction reads them anew.
UNSYNCED: dict[str, Any] = {"synchronize_session": False}


def changed(result: sa.Result[Any]) -> int:
    """Return how many rows an UPDATE or DELETE changed."""
    return cast("sa.CursorResult[Any]", result).rowcount


class JoinedSession(Session):
    """A session whose `commit` and `close` wait for the end of `joined()`, if inside one."""

    _joined = False
    _broken = False

    def commit(self) -> None:
        """Commit; inside `joined()`, flush and let readers see what bulk statements changed."""
        if not self._joined:
            return super().commit()
        self.flush()
        return self.expire_all()

    def rollback(self) -> None:
        """Roll back; inside `joined()`, roll all of it back, so that it cannot commit any more."""
        self._broken = self._joined
        super().rollback()

    def close(self) -> None:
        """Close the session; inside `joined()`, only forget its objects."""
        if not self._joined:
            return super().close()
        return self.expunge_all()


@contextmanager
def joined(sessions: scoped_session[JoinedSession]) -> Iterator[Session]:
    """Yield the calling thread's session; everything done in the block is one transaction.

    Must not be nested. Any exception rolls all of it back, and the caller gets it.
    """
    session = sessions()
    assert not session._joined, "joined() inside joined()"
    session._joined, session._broken = True, False
    try:
        yield session
        if session._broken:
            raise RolledBack("a statement inside the transaction failed and was rolled back")
        Session.commit(session)
    except BaseException:
        Session.rollback(session)
        raise
    finally:
        session._joined = False
        session.close()
