"""Starting and resuming a study, for the command line and for Python alike.

Everything is checked before a row is written. `say` tells the person; this module prints nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpo.service.opening import Place, new_runs, open_ledger, storage_url
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
    runs: str  # where its run folders are: an absolute folder, or a URL
    trials: int | None = None  # its new budget
    join: bool = False  # beside its other controllers
    hours: Mapping[str, float] = field(default_factory=dict)  # its new budget of time
    new: bool = False  # it was written just now


def start(config: StudyConfig, source: str, place: Place, *, may_rename: bool, say: Say) -> Launch:
    """Make a new study in its ledger. Raises ConfigError and LedgerError, with nothing written.

    `source` names the file or the call that `config` is from. A study whose name is taken gets
    another name if it `may_rename`.
    """
    from hpo.reading.prometheus import check_port
    from hpo.service.preflight import check_place
    from hpo.service.teachers import with_teachers

    url = storage_url(place.storage, config.storage)
    runs = new_runs(place.runs)
    config = _named(config, url, runs, may_rename=may_rename)
    config, teachers = with_teachers(config, source, runs)
    check_port(place.metrics_port)
    check_place(config, place, runs)
    points = _warm_points(config, url, source, say)
    _warn_of_network_disk(url, say)
    ledger = open_ledger(url, create=True)
    record = create_study(ledger, config, teachers, points, runs)
    return Launch(ledger, record, place, runs, new=True)


def resume(
    name: str,
    place: Place,
    *,
    trials: int | None,
    hours: float | None = None,
    device_hours: float | None = None,
    same_machine: bool,
    say: Say,
    changed_code: bool = False,
) -> Launch:
    """Go on with a study. Raises ConfigError and LedgerError, with nothing written.

    With `changed_code` its training function may be another than it was.
    """
    from hpo.reading.prometheus import check_port
    from hpo.service.identities import check_identities
    from hpo.service.preflight import check_place, check_run_folders, runs_of
    from hpo.study.load import config_of
    from trainer.config.settings import ConfigError

    ledger = open_ledger(storage_url(place.storage))
    record = ledger.study(name)
    config = config_of(record)
    runs = runs_of(ledger, record, place.runs)
    check_port(place.metrics_port)
    check_place(config, place, runs)
    check_run_folders(ledger, record, runs)
    if trials is not None and config.is_evaluation:
        raise ConfigError(
            f"--trials {trials}: study {name} is an evaluation; `hpo evaluate` plans its trials"
        )
    if trials is not None and trials < record.reserved_trials:
        raise ConfigError(
            f"--trials {trials}: study {name} has {record.reserved_trials} trials already"
        )
    more = _more_time(ledger, record, {"hours": hours, "device_hours": device_hours})
    if changed_code:
        _check_alone(ledger, record, config)
    check_identities(ledger, record, config, runs, changed_code=changed_code)
    if not ledger.on_a_server:
        _warn_of_network_disk(ledger.url, say)
        if same_machine:
            _check_same_machine(ledger, record)
    join = ledger.on_a_server or same_machine
    if join:
        for other in running(ledger, record):
            say(f"study {name} is being run by {other}, too: joining it")
    if record.runs not in (None, runs):
        say(f"study {name}: its run folders go to {runs} from now on, and were in {record.runs}")
    return Launch(ledger, record, place, runs, trials, join, more)


def _more_time(
    ledger: Ledger, record: StudyRecord, given: Mapping[str, float | None]
) -> dict[str, float]:
    """Return the budgets of time that were given. Raises ConfigError for one that is spent."""
    from trainer.config.settings import ConfigError

    more = {of: most for of, most in given.items() if most is not None}
    spent = {"hours": ledger.seconds(record), "device_hours": ledger.device_seconds(record)}
    for of, most in more.items():
        if not spent[of] < most * 3600:
            raise ConfigError(
                f"--{of.replace('_', '-')} {most:g}: study {record.name} has taken "
                f"{spent[of] / 3600:.2f} hours already"
            )
    return more


def _check_same_machine(ledger: Ledger, record: StudyRecord) -> None:
    """Raise ConfigError if another machine runs the study, whose ledger is a SQLite file."""
    from trainer.config.settings import ConfigError

    here = socket.gethostname()
    others = [c for c in ledger.controllers(record) if c.alive and c.host != here]
    if others:
        raise ConfigError(
            f"--same-machine: study {record.name} is being run by {others[0]}, and this is {here}; "
            "for several machines, `hpo copy` the study to PostgreSQL"
        )


def _warn_of_network_disk(url: str, say: Say) -> None:
    from storage.database import shown
    from storage.disks import network_disk

    if disk := network_disk(url):
        say(
            f"warning: {shown(url)} is on a network disk ({disk}): let no other machine open it, "
            "or use a local disk or PostgreSQL"
        )


def running(ledger: Ledger, record: StudyRecord) -> list[str]:
    """Return who runs the study, as texts."""
    return [str(c) for c in ledger.controllers(record) if c.alive]


def create_study(
    ledger: Ledger,
    config: StudyConfig,
    teachers: list[TeacherRecord],
    points: list[Point],
    runs: str,
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
        runs,
    )


def _check_alone(ledger: Ledger, record: StudyRecord, config: StudyConfig) -> None:
    """Raise ConfigError unless the study's own training function may be another from now on."""
    from trainer.config.settings import ConfigError

    if config.trainer is None:
        raise ConfigError(f"--changed-code: study {record.name} has no `trainer` of its own")
    if others := running(ledger, record):
        raise ConfigError(
            f"--changed-code: study {record.name} is being run by {', '.join(others)}, with the "
            f"code as it was; stop it first: hpo stop {record.name}"
        )


def _named(config: StudyConfig, url: str, runs: str, *, may_rename: bool) -> StudyConfig:
    """Return the study under a name that neither its ledger nor its run folders have yet."""
    from hpo.service.identities import check_free, has_trials
    from storage.database import shown
    from trainer.config.settings import ConfigError

    taken = _taken_names(url)
    if config.study not in taken and not (may_rename and has_trials(runs, config.study)):
        check_free(runs, config.study, "--name NAME, ")
        return config
    if not may_rename:
        raise ConfigError(
            f"study {config.study} exists with {taken[config.study]} trials: "
            f"`{command(f'hpo resume {config.study}', shown(url))}` goes on with it, --name starts "
            "another"
        )
    names = (f"{config.study}-{n}" for n in range(2, 10**6))
    free = next(name for name in names if name not in taken and not has_trials(runs, name))
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
