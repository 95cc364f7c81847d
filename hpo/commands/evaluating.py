"""The commands of the evaluation phase, which are the only two that read the test split."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.commands.common import (
    AsJson,
    Name,
    RayAddress,
    Runs,
    Storage,
    answer,
    open_ledger,
    save,
    storage_url,
)
from hpo.service.opening import Place
from hpo.study.hints import command

if TYPE_CHECKING:
    from hpo.evaluation.phase import Plan
    from storage import Ledger

Seeds = Annotated[
    int,
    typer.Option("--seeds", min=1, max=1000, metavar="N", help="Trainings of each, seeds apart."),
]


def evaluate(
    name: Name,
    top: Annotated[
        int, typer.Option("--top", min=1, max=1000, metavar="N", help="So many of the best trials.")
    ] = 1,
    seeds: Seeds = 3,
    storage: Storage = None,
    runs: Runs = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train a study's best configurations again under fresh seeds, and test them.

    Typed again, it goes on, or says again what it found.
    """
    from hpo.evaluation.evaluations import conclude_evaluation, plan_evaluation
    from hpo.reading import tables

    ledger = open_ledger(storage_url(storage))
    planned = plan_evaluation(ledger, name, top, seeds)
    place = Place(None, runs, ray_address)
    _train(ledger, planned, place, command(f"hpo evaluate {name}", ledger.url), as_json=as_json)
    table = partial(tables.evaluation, name, ledger.url)
    answer(conclude_evaluation(ledger, planned), as_json, table)


def compare(
    name: Name,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            metavar="A,B",
            help="Those that ship (baseline-a, baseline-b, linear, cosine, pld, sbld, kd), best, "
            "trial-N; joined by +.",
        ),
    ] = None,
    seeds: Seeds = 3,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="RECIPE", help="What the others are held against. Else the first."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            min=1.0,
            metavar="PPL",
            help="A perplexity on valid, to tell steps and seconds to. Else the study's, or the "
            "worst that one ended with.",
        ),
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option("-o", metavar="FILE", help="The tables: .md, .tex or .csv.")
    ] = None,
    as_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="The comparison's name. Else NAME.comparison."),
    ] = None,
    storage: Storage = None,
    runs: Runs = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train recipes beside each other under one budget and the same seeds, and test them.

    Typed again, it goes on, or says again what it found.
    """
    from hpo.evaluation.comparison_results import ComparisonRequest, compare_recipes
    from hpo.reading import tables
    from hpo.reading.comparison_table import content_for

    ledger = open_ledger(storage_url(storage))

    def train(planned: Plan) -> None:
        place = Place(None, runs, ray_address)
        _train(ledger, planned, place, command(f"hpo compare {name}", ledger.url), as_json=as_json)

    files = output or []
    found = compare_recipes(
        ledger,
        name,
        ComparisonRequest(recipes, seeds, against, target, files, as_name),
        runs,
        train,
        lambda note: print(f"hpo: {note}", file=sys.stderr),
    )
    answer(found, as_json, partial(tables.comparison, ledger.url))
    for file in files:
        save(content_for(file, found), file, quiet=as_json)


def _train(ledger: Ledger, planned: Plan, place: Place, again: str, *, as_json: bool) -> None:
    """Train the rest of the plan; exit with the service's status if that fails."""
    from hpo.evaluation.phase import prepare_launch
    from hpo.service.run import run_study

    launch = prepare_launch(ledger, planned, place)
    if launch is None:
        return
    with _on_standard_error() if as_json else nullcontext():
        ending = run_study(launch)
    if ending.status:
        print(f"hpo: {ending.message}", file=sys.stderr)
        print(f"hpo: for the table, again: {again}", file=sys.stderr)
        sys.exit(ending.status)


@contextmanager
def _on_standard_error() -> Iterator[None]:
    """Send the live view to standard error, which leaves standard output to the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
