"""Starting and resuming a study, for the command line and for Python alike.

Everything is checked before a row is written. `say` tells the person; this module prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpo.service.opening import Place, open_ledger, storage_url
from hpo.study.hints import command

if TYPE_CHECKING:
    from hpo.study.config import StudyConfig
    from storage import Ledger, Point, StudyRecord, TeacherRecord

Say = Callable[[str], None]


@dataclass(frozen=True)
class Launch:
    """A study that may run here and now."""

    ledger: Ledger
    record: StudyRecord
    place: Place
    trials: int | None = None  # its new budget
    join: bool = False  # beside its other controllers
    hours: Mapping[str, float] = field(default_factory=dict)  # its new budget of time


def start(config: StudyConfig, source: str, place: Place, *, may_rename: bool, say: Say) -> Launch:
    """Make a new study in its ledger. Raises ConfigError and LedgerError, with nothing written.

    `source` names the file or the call that `config` is from. A study whose name is taken gets
    another name if it `may_rename`.
    """
    from hpo.reading.prometheus import check_port
    from hpo.service.preflight import check_place
    from hpo.service.teachers import with_teachers

    url = storage_url(place.storage, config.storage)
    config = _named(config, url, may_rename=may_rename)
    config, teachers = with_teachers(config, source, place.runs)
    check_port(place.metrics_port)
    check_place(config, place)
    points = _warm_points(config, url, source, say)
    ledger = open_ledger(url, create=True)
    record = create_study(ledger, config, teachers, points)
    return Launch(ledger, record, place)


def resume(
    name: str,
    place: Place,
    *,
    trials: int | None,
    hours: float | None = None,
    device_hours: float | None = None,
    same_machine: bool,
    say: Say,
) -> Launch:
    """Go on with a study. Raises ConfigError and LedgerError, with nothing written."""
    from hpo.reading.prometheus import check_port
    from hpo.service.preflight import check_place, check_run_folders
    from hpo.study.load import config_of
    from trainer.config.settings import ConfigError

    ledger = open_ledger(storage_url(place.storage))
    record = ledger.study(name)
    config = config_of(record)
    check_port(place.metrics_port)
    check_place(config, place)
    check_run_folders(ledger, record, place.runs)
    if trials is not None and config.is_evaluation:
        raise ConfigError(
            f"--trials {trials}: study {name} is an evaluation; `hpo evaluate` plans its trials"
        )
    if trials is not None and trials < record.reserved_trials:
        raise ConfigError(
            f"--trials {trials}: study {name} has {record.reserved_trials} trials already"
        )
    given = {"hours": hours, "device_hours": device_hours}
    more = {of: most for of, most in given.items() if most is not None}
    spent = {"hours": ledger.seconds(record), "device_hours": ledger.device_seconds(record)}
    for of, most in more.items():
        if not spent[of] < most * 3600:
            raise ConfigError(
                f"--{of.replace('_', '-')} {most:g}: study {name} has taken "
                f"{spent[of] / 3600:.2f} hours already"
            )
    join = ledger.on_a_server or same_machine
    if join:
        for other in running(ledger, record):
            say(f"study {name} is being run by {other}, too: joining it")
    return Launch(ledger, record, place, trials, join, more)


def running(ledger: Ledger, record: StudyRecord) -> list[str]:
    """Return who runs the study, as texts."""
    return [str(c) for c in ledger.controllers(record) if c.alive]


def create_study(
    ledger: Ledger, config: StudyConfig, teachers: list[TeacherRecord], points: list[Point]
) -> StudyRecord:
    """Write the study to its ledger, with its teachers and the points that it begins with."""
    return ledger.create_study(
        config.study,
        [objective.optuna_direction for objective in config.objectives],
        [objective.metric for objective in config.objectives],
        config.to_document(),
        config.budget.trials,
        teachers,
        points,
    )


def _named(config: StudyConfig, url: str, *, may_rename: bool) -> StudyConfig:
    """Return the study under a name that its ledger does not have yet."""
    from storage.database import shown
    from trainer.config.settings import ConfigError

    taken = _taken_names(url)
    if config.study not in taken:
        return config
    if not may_rename:
        raise ConfigError(
            f"study {config.study} exists with {taken[config.study]} trials: "
            f"`{command(f'hpo resume {config.study}', shown(url))}` goes on with it, --name starts "
            "another"
        )
    free = next(f for n in range(2, 10**6) if (f := f"{config.study}-{n}") not in taken)
    return config.model_copy(update={"study": free})


def _taken_names(url: str) -> dict[str, int]:
    """Return the studies in the database, if there is one, with their numbers of trials."""
    from storage.database import has_ledger

    if not has_ledger(url):
        return {}
    return {study.name: study.reserved_trials for study in open_ledger(url).studies()}


def _warm_points(config: StudyConfig, url: str, source: str, say: Say) -> list[Point]:
    """Return the points that the study takes over from an earlier one, and say so."""
    if config.warm_start is None:
        return []
    from hpo.search.points import warm_points

    points, left_out = warm_points(config.warm_start, config.space, url, source)
    for line in left_out:
        say(line)
    say(f"warm start: {len(points)} points from study {config.warm_start.study} come first")
    return points
