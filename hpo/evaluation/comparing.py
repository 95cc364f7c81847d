"""A comparison from its recipes to its numbers, for the command line and for Python alike.

How it is trained, and how a person is told, is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hpo.compare import SUFFIX, Comparison, plan
from hpo.compared import check_against, conclude
from hpo.comparison_table import check_files
from hpo.launch import Say
from hpo.recipes import names_in
from hpo.views import View
from storage import Ledger


def compare(
    ledger: Ledger,
    name: str,
    recipes: str | None,
    seeds: int,
    *,
    against: str | None,
    target: float | None,
    files: Sequence[Path],
    study: str | None,
    runs: str,
    train: Callable[[Comparison], None],
    say: Say,
) -> View:
    """What `recipes`, joined by commas, come to in the settings of study `name`.

    `study` trains them; its tables can be written to `files`. Raises ConfigError, in one line,
    with nothing written.
    """
    check_files(files)
    wanted = [] if recipes is None else names_in(recipes)
    planned = plan(ledger, name, wanted, seeds, study or f"{name}{SUFFIX}", runs)
    check_against(against, planned.recipes)
    if planned.note:
        say(planned.note)
    train(planned)
    return conclude(ledger, planned, against, target)
