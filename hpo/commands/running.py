"""The commands that change a study: start, resume, stop, enqueue."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hpo.commands.common import (
    MetricsPort,
    Name,
    RayAddress,
    Runs,
    Storage,
    Trials,
    fail,
    open_ledger,
    say,
    storage_url,
)

if TYPE_CHECKING:
    from hpo.study import StudyConfig
    from storage import Ledger, Point, StudyRecord, TeacherRecord


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
    runs: Runs = "runs",
    ray_address: RayAddress = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Start a new study and run it until its budget is spent."""
    from hpo.metrics import check_port
    from hpo.room import check_place
    from hpo.study import find_study_file, load_study
    from hpo.teachers import with_teachers

    path = find_study_file(study)
    config = load_study(path, settings=settings or (), name=name, trials=trials)
    url = storage_url(storage, config.storage)
    # The quickstart may be started again and again.
    config = _named(config, url, may_rename=study is None and name is None)
    config, teachers = with_teachers(config, str(path), runs)
    check_port(metrics_port)
    check_place(config, runs, ray_address)
    points = _warm_points(config, url, str(path))
    ledger = open_ledger(url, create=True)
    record = _create(ledger, config, teachers, points)
    _run(ledger, record, runs, ray_address, None, metrics_port)


def resume(
    name: Name,
    storage: Storage = None,
    trials: Trials = None,
    runs: Runs = "runs",
    ray_address: RayAddress = None,
    metrics_port: MetricsPort = None,
    same_machine: Annotated[
        bool,
        typer.Option(
            "--same-machine",
            help="With SQLite, join a study that this very machine runs already.",
        ),
    ] = False,
) -> None:
    """Go on with a study, from its ledger alone; with PostgreSQL, beside whoever runs it now."""
    from hpo.metrics import check_port
    from hpo.phase import is_evaluation
    from hpo.places import check_places
    from hpo.room import check_place
    from hpo.views import config_of

    ledger = open_ledger(storage_url(storage))
    record = ledger.study(name)
    config = config_of(record)
    check_port(metrics_port)
    check_place(config, runs, ray_address)
    check_places(ledger, record, runs)
    if trials is not None and is_evaluation(config):
        fail(f"--trials {trials}: study {name} is an evaluation; `hpo evaluate` plans its trials")
    if trials is not None and trials < record.reserved_trials:
        fail(f"--trials {trials}: study {name} has {record.reserved_trials} trials already")
    join = ledger.on_a_server or same_machine
    if join:
        for other in _controllers(ledger, record):
            say(f"study {name} is being run by {other}, too: joining it")
    _run(ledger, record, runs, ray_address, trials, metrics_port, join=join)


def stop(name: Name, storage: Storage = None) -> None:
    """Have the study's controllers checkpoint their running trials and leave."""
    ledger = open_ledger(storage_url(storage))
    record = ledger.study(name)
    if not _controllers(ledger, record):
        fail(f"study {name} is not being run")
    asked = {c.controller_id for c in ledger.controllers(record) if c.alive}
    ledger.request_stop(record)
    say(f"asked {', '.join(_controllers(ledger, record))} to stop; waiting for checkpoints")
    while asked & {c.controller_id for c in ledger.controllers(record) if c.alive}:
        time.sleep(0.5)
    say(f"study {name} is stopped; go on with: hpo resume {name}")


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
    from hpo.phase import is_evaluation
    from hpo.space import is_complete
    from hpo.transfer import point_by_hand
    from hpo.views import config_of

    ledger = open_ledger(storage_url(storage))
    record = ledger.study(name)
    config = config_of(record)
    if is_evaluation(config):
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
            f"hpo resume {name} --trials {needed}"
        )
    elif not _controllers(ledger, record):
        say(f"it comes first at: hpo resume {name}")


def _named(config: StudyConfig, url: str, *, may_rename: bool) -> StudyConfig:
    """The study under a name that its ledger does not have yet."""
    taken = _taken_names(url)
    if config.study not in taken:
        return config
    if not may_rename:
        fail(
            f"study {config.study} exists with {taken[config.study]} trials: "
            f"`hpo resume {config.study}` goes on with it, --name starts another"
        )
    free = next(f for n in range(2, 10**6) if (f := f"{config.study}-{n}") not in taken)
    return config.model_copy(update={"study": free})


def _taken_names(url: str) -> dict[str, int]:
    """Studies in the database, if there is one, with their numbers of trials."""
    from storage.database import has_ledger

    if not has_ledger(url):
        return {}
    return {study.name: study.reserved_trials for study in open_ledger(url).studies()}


def _warm_points(config: StudyConfig, url: str, source: str) -> list[Point]:
    """What the study takes over from an earlier one, said."""
    if config.warm_start is None:
        return []
    from hpo.transfer import warm_points

    points, left_out = warm_points(config.warm_start, config.space, url, source)
    for line in left_out:
        say(line)
    say(f"warm start: {len(points)} points from study {config.warm_start.study} come first")
    return points


def _create(
    ledger: Ledger, config: StudyConfig, teachers: list[TeacherRecord], points: list[Point]
) -> StudyRecord:
    return ledger.create_study(
        config.study,
        [objective.optuna_direction for objective in config.objectives],
        [objective.metric for objective in config.objectives],
        config.to_document(),
        config.budget.trials,
        teachers,
        points,
    )


def _run(
    ledger: Ledger,
    record: StudyRecord,
    runs: str,
    ray_address: str | None,
    trials: int | None,
    metrics_port: int | None,
    *,
    join: bool = False,
) -> NoReturn:
    from hpo import tables, views
    from hpo.service import run_study

    ending = run_study(
        ledger,
        record,
        views.config_of(record),
        runs=runs,
        ray_address=ray_address,
        trials=trials,
        join=join,
        metrics_port=metrics_port,
    )
    if ending.status == 0:
        tables.best(record.name, views.best_trials(ledger, record.name))
    print(ending.message, file=sys.stdout if ending.status == 0 else sys.stderr)
    sys.exit(ending.status)


def _controllers(ledger: Ledger, record: StudyRecord) -> list[str]:
    return [str(c) for c in ledger.controllers(record) if c.alive]
