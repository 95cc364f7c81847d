"""The commands that only read the ledger."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.common import AsJson, Name, Storage, answer, open_ledger, save, say, storage_url


def list_studies(storage: Storage = None, as_json: AsJson = False) -> None:
    """List the studies of the ledger."""
    from hpo.reading import tables, views

    answer(views.study_list(open_ledger(storage_url(storage))), as_json, tables.studies)


def status(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """Say how far a study is, and who runs it."""
    from hpo.reading import tables, views

    ledger = open_ledger(storage_url(storage))
    answer(views.study_status(ledger, name), as_json, partial(tables.status, ledger.url))


def list_trials(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """List a study's trials."""
    from hpo.reading import tables, views

    answer(views.trial_list(open_ledger(storage_url(storage)), name), as_json, tables.trials)


def show(
    name: Name,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    config: Annotated[
        bool,
        typer.Option("--config", help="Print its train config, which `python -m trainer` runs."),
    ] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one trial: parameters, metrics by step, attempts and their reasons."""
    from hpo.reading import tables, views

    ledger = open_ledger(storage_url(storage))
    if config:
        print(views.trial_config(ledger, name, number), end="")
        return
    answer(views.trial_details(ledger, name, number), as_json, tables.trial)


def best(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the best trial of a study, or its Pareto front."""
    from hpo.reading import tables, views

    ledger = open_ledger(storage_url(storage))
    answer(views.best_trials(ledger, name), as_json, partial(tables.best, name, ledger.url))


def transfer(
    small: Annotated[str, typer.Argument(metavar="SMALL", help="The small models' study.")],
    big: Annotated[str, typer.Argument(metavar="BIG", help="The big models' study.")],
    storage: Storage = None,
    big_storage: Annotated[
        str | None,
        typer.Option("--big-storage", metavar="URL", help="BIG's ledger, if it is another."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a small study ranks configurations as a big one does."""
    from hpo.reading import correlation, tables

    url = storage_url(storage)
    ledger, others = open_ledger(url), open_ledger(big_storage or url)
    found = correlation.rank_correlation((ledger, small), (others, big))
    answer(found, as_json, tables.transfer)


def schedule(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", metavar="FILE", help="Write it there. Default: standard output."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the best trial's learned schedule as a train config that trains from step 0."""
    from hpo.reading.learned_schedule import learned_schedule

    config = learned_schedule(open_ledger(storage_url(storage)), name)
    if output is None:
        print(config, end="")
    else:
        save(config, output)


def dashboard(
    storage: Storage = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Where to listen; elsewhere it wants --users."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: a free one.")
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            "--users", metavar="FILE", help="Who may open it: a file of `htpasswd -B`, mode 600."
        ),
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Let every account of this machine open and change it."),
    ] = False,
) -> None:
    """Serve the Optuna dashboard on the ledger: on this machine, or to users with passwords."""
    from hpo.reading.dashboard.server import serve

    serve(open_ledger(storage_url(storage)), host, port, users, say, token=not no_token)
