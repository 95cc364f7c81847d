"""The commands that change a study: start, resume, stop, enqueue."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hpo.commands.common import (
    DeviceHours,
    Hours,
    MetricsPort,
    Name,
    RayAddress,
    Runs,
    Storage,
    Trials,
    fail,
    forget_output,
    open_ledger,
    say,
    storage_url,
)
from hpo.service.opening import Place
from hpo.study.hints import command

if TYPE_CHECKING:
    from hpo.service.launch import Launch


def start(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY.yaml]",
            help="A study file, or the name of one that ships. Default: quickstart.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change a train setting, such as steps=100."
        ),
    ] = None,
    storage: Storage = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Another name for the study.")
    ] = None,
    trials: Trials = None,
    runs: Runs = None,
    ray_address: RayAddress = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Start a new study and run it until its budget is spent."""
    from hpo.service import launch
    from hpo.study.load import find_study_file, load_study

    path = find_study_file(study)
    config = load_study(path, settings=settings or (), name=name, trials=trials)
    _run(
        launch.start(
            config,
            str(path),
            Place(storage, runs, ray_address, metrics_port),
            # The quickstart may be started again and again.
            may_rename=study is None and name is None,
            say=say,
        )
    )


def resume(
    name: Name,
    storage: Storage = None,
    trials: Trials = None,
    hours: Hours = None,
    device_hours: DeviceHours = None,
    runs: Runs = None,
    ray_address: RayAddress = None,
    metrics_port: MetricsPort = None,
    same_machine: Annotated[
        bool,
        typer.Option(
            "--same-machine", help="With SQLite, join a study that this very machine runs already."
        ),
    ] = False,
    changed_code: Annotated[
        bool,
        typer.Option(
            "--changed-code",
            help="Go on though the source file of the study's own training function has changed.",
        ),
    ] = False,
) -> None:
    """Go on with a study, from its ledger alone; with PostgreSQL, beside whoever runs it now."""
    from hpo.service import launch

    _run(
        launch.resume(
            name,
            Place(storage, runs, ray_address, metrics_port),
            trials=trials,
            hours=hours,
            device_hours=device_hours,
            same_machine=same_machine,
            changed_code=changed_code,
            say=say,
        )
    )


def stop(name: Name, storage: Storage = None) -> None:
    """Have the study's controllers checkpoint their running trials and leave."""
    from hpo.service.launch import running

    ledger = open_ledger(storage_url(storage))
    record = ledger.study(name)
    if not running(ledger, record):
        fail(f"study {name} is not being run")
    asked = {c.controller_id for c in ledger.controllers(record) if c.alive}
    ledger.request_stop(record)
    say(f"asked {', '.join(running(ledger, record))} to stop; waiting for checkpoints")
    while asked & {c.controller_id for c in ledger.controllers(record) if c.alive}:
        time.sleep(0.5)
    record, counts = ledger.study(name), ledger.trial_counts(record)
    unfinished = counts["RUNNING"] or record.reserved_trials < record.budget_trials
    again = f"stopped; go on with: {command(f'hpo resume {name}', ledger.url)}"
    say(f"study {name} is {again if unfinished else 'done'}")


def enqueue(
    name: Name,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH=VALUE",
            help="Searched settings, such as optim.lr=1e-3; the sampler draws the others.",
        ),
    ],
    storage: Storage = None,
) -> None:
    """Have a study, running or not, try a point of yours before it asks its sampler."""
    from hpo.search.points import point_by_hand
    from hpo.search.space import is_complete
    from hpo.service.launch import running
    from hpo.study.load import config_of

    ledger = open_ledger(storage_url(storage))
    record = ledger.study(name)
    config = config_of(record)
    if config.is_evaluation:
        fail(f"study {name} is an evaluation: a point by hand would be chosen by its test")
    if config.schedule is not None:
        fail(f"study {name} learns a schedule: points by hand have no place in its population")
    point = point_by_hand(config.space, values, name)
    if is_complete(config.space, point.params):
        config.check_params(dict(point.params))
    (number,) = ledger.enqueue(record, [point])
    say(f"trial {number} of {name}: {', '.join(f'{k}={v}' for k, v in point.params.items())}")
    record = ledger.study(name)
    needed = record.reserved_trials + ledger.trial_counts(record)["WAITING"]
    if needed > record.budget_trials:
        say(
            f"it waits, for the budget of {record.budget_trials} trials is taken: "
            f"{command(f'hpo resume {name} --trials {needed}', ledger.url)}"
        )
    elif not running(ledger, record):
        say(f"it comes first at: {command(f'hpo resume {name}', ledger.url)}")


def _run(launch: Launch) -> NoReturn:
    from hpo.reading import tables, views
    from hpo.service.run import run_study

    ending, name = run_study(launch), launch.record.name
    try:
        if ending.status == 0:
            tables.best(name, launch.ledger.url, views.best_trials(launch.ledger, name))
        print(ending.message, file=sys.stdout if ending.status == 0 else sys.stderr, flush=True)
    except (OSError, SystemExit):  # rich leaves where a pipe is closed
        forget_output()  # the terminal is gone, or full: the study is as it is all the same
    sys.exit(ending.status)
