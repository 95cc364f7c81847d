"""Imports what `hpo` needs; the process from which commands are forked imports this."""

from __future__ import annotations

import importlib

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
):
    importlib.import_module(slow)
