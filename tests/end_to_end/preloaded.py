"""Imports what `hpo` needs; the process from which commands are forked imports this."""

from __future__ import annotations

import importlib
from pathlib import Path

for slow in (
    "hpo.cli",
    "hpo.evaluation.comparisons",
    "hpo.evaluation.evaluations",
    "hpo.reading.dashboard.server",
    "hpo.reading.prometheus",
    "hpo.reading.tables",
    "hpo.service.launch",
    "hpo.service.preflight",
    "hpo.service.run",
    "hpo.service.teachers",
    "hpo.study.load",
    "hpo.workers.dispatch",
    "hpo.workers.ray_start",
):
    importlib.import_module(slow)


def _search_first() -> None:
    """Have a session's folder searched for secrets before it is removed: Ray's logs are in it."""
    from hpo.workers import session
    from tests import planted

    clear = session._clear

    def searched(folder: Path) -> None:
        planted.note(folder)
        clear(folder)

    session._clear = searched


_search_first()
