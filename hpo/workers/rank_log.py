"""Keeps with a run what its ranks' processes print, above all what libraries print.

In a run folder the log of a rank is one file for all attempts. Where the run is at a URL, the
output goes to a file without a name, which cannot outlive the process, and is uploaded whenever the
rank says so. No trial fails because of its log.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from tempfile import TemporaryFile

from trainer.config.settings import is_url
from trainer.runs.store import Store, StoreError, kept_in
from trainer.terminal import flush_output, send_output_to


class RankLog:
    """The log of one rank in one attempt at the run in `output_dir`."""

    def __init__(self, output_dir: str, rank: int, attempt: int) -> None:
        """Send all that this process prints from now on there. Raises StoreError."""
        self._name = f"rank-{rank}.log"
        self._store: Store | None = None
        if is_url(output_dir):
            self._store = Store(output_dir)
            self._name = f"rank-{rank}.attempt-{attempt}.log"
            with TemporaryFile() as unnamed:
                send_output_to(unnamed.fileno())
        else:
            path = Path(output_dir) / self._name
            with kept_in(output_dir, OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    send_output_to(file.fileno())

    def keep(self) -> None:
        """Upload what was printed so far, if the run is at a URL."""
        if self._store is not None:
            flush_output()
            with contextlib.suppress(StoreError):
                self._store.write(self._name, os.pread(1, os.fstat(1).st_size, 0))
