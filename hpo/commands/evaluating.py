"""The command of the evaluation phase: the one that has the test split read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer

from hpo.commands.common import (
    AsJson,
    Name,
    RayAddress,
    Runs,
    Storage,
    answer,
    open_ledger,
    storage_url,
)


def evaluate(
    name: Name,
    top: Annotated[
        int, typer.Option("--top", min=1, max=1000, metavar="N", help="So many of the best trials.")
    ] = 1,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, max=1000, metavar="N", help="Trainings of each, seeds apart."
        ),
    ] = 3,
    storage: Storage = None,
    runs: Runs = "runs",
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train a study's best configurations again under fresh seeds, and test them.

    Typed again, it goes on, or says again what it found.
    """
    from hpo import tables
    from hpo.evaluate import conclude, enter, is_trained, plan
    from hpo.places import check_places
    from hpo.room import check_place
    from hpo.service import run_study
    from hpo.views import config_of

    ledger = open_ledger(storage_url(storage))
    planned = plan(ledger, name, top, seeds)
    check_place(planned.config, runs, ray_address)
    record, trials = enter(ledger, planned)
    if not is_trained(ledger, record):
        check_places(ledger, record, runs)
        with _on_standard_error(as_json):
            ending = run_study(
                ledger,
                record,
                config_of(record),
                runs=runs,
                ray_address=ray_address,
                trials=trials,
            )
        if ending.status:
            print(f"hpo: {ending.message}", file=sys.stderr)
            print(f"hpo: for the table, again: hpo evaluate {name}", file=sys.stderr)
            sys.exit(ending.status)
    answer(conclude(ledger, planned, record), as_json, partial(tables.evaluation, name))


@contextmanager
def _on_standard_error(there: bool) -> Iterator[None]:
    """Have the live view leave standard output alone, if it is to go `there`."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        if there:
            os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
