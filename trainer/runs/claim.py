"""Who writes a run's folder, on a disk that machines may share, where a lock can be lost unseen.

Each attempt claims the folder under the number that the ledger gave it, in the file `.claim`, and
looks there before it writes. One that finds another's claim stops. So a rank that was cut off from
the disk, or paused, changes nothing that a later attempt goes on from.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from trainer.config.settings import ConfigError
from trainer.config.whole import whole_file

_NAME = ".claim"


class FolderInUse(ConfigError):
    """Another process trains in the run's folder, or has begun to."""


class Claim:
    """One attempt's claim to a folder."""

    def __init__(self, folder: Path, attempt: int | None) -> None:
        """Claim `folder` for `attempt`. Raises FolderInUse if a later one has claimed it.

        None, for a run that no ledger numbers, is as late as the latest.
        """
        self._path = folder / _NAME
        claimed = self._newest()
        if attempt is not None and claimed > attempt:
            raise self._refusal()
        number = claimed if attempt is None else attempt
        self._text = f"{number} {socket.gethostname()} {uuid.uuid4().hex}\n"
        with whole_file(self._path) as file:
            file.write(self._text.encode())

    def check(self) -> None:
        """Raise FolderInUse once another attempt has claimed the folder."""
        if self._read() not in ("", self._text):
            raise self._refusal()

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _newest(self) -> int:
        number = self._read().partition(" ")[0]
        return int(number) if number.isdecimal() else 0

    def _refusal(self) -> FolderInUse:
        number, host, *_ = *self._read().split(), "?", "?"
        return FolderInUse(
            f"output_dir: attempt {number} on {host} trains in {self._path.parent} now; "
            "stop it, or give another folder"
        )
