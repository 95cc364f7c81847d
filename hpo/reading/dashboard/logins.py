"""Passwords of the dashboard's users: who guesses learns nothing from the time, and must wait.

A right password is kept as a digest under a key of this process, for bcrypt is slow on purpose and
a page asks for many things. A wrong one is answered after a fixed time, whatever was wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping

import bcrypt

GUESSES, GUESS_SECONDS = 10, 60.0  # wrong passwords from one address, in so much time
REFUSAL_SECONDS = 0.5  # a wrong password is answered no sooner
_ADDRESSES = 1000  # whose guesses are remembered


class Logins:
    """Which users, with which passwords, may come in, and from where nobody may try any more."""

    def __init__(self, users: Mapping[bytes, bytes]) -> None:
        self._users = users
        self._costliest = max(users.values(), key=lambda hashed: hashed[4:6])
        began = time.monotonic()
        bcrypt.checkpw(b"", self._costliest)
        self._refusal_seconds = max(REFUSAL_SECONDS, 2 * (time.monotonic() - began))
        self._key = secrets.token_bytes(32)
        self._right: set[bytes] = set()
        self._guesses: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, user: bytes, password: bytes, address: str) -> bool | None:
        """Return whether the password is the user's; None if `address` must wait before a guess."""
        digest = hmac.digest(self._key, b"%d:%b%b" % (len(user), user, password), hashlib.sha256)
        if digest in self._right:
            return True
        began = time.monotonic()
        if not self._may_guess(_network(address), began):
            return None
        if self._matches(user, password):
            self._right.add(digest)
            return True
        time.sleep(max(0.0, began + self._refusal_seconds - time.monotonic()))
        return False

    def _matches(self, user: bytes, password: bytes) -> bool:
        try:
            matches = bcrypt.checkpw(password, self._users.get(user, self._costliest))
        except ValueError:  # the password is longer than bcrypt takes, or has a NUL
            return False
        return matches and user in self._users

    def _may_guess(self, network: str, now: float) -> bool:
        """Count a guess from `network`, unless it has made too many."""
        with self._lock:
            guesses = self._guesses.setdefault(network, deque(maxlen=GUESSES))
            self._guesses.move_to_end(network)
            if len(self._guesses) > _ADDRESSES:
                self._guesses.popitem(last=False)
            if len(guesses) == GUESSES and now < guesses[0] + GUESS_SECONDS:
                return False
            guesses.append(now)
            return True


def _network(address: str) -> str:
    """Return whose an address is: of IPv6, one customer has a whole network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
