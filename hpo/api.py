"""The commands in Python: `hpo.start`, `hpo.resume`, `hpo.load`, and what they return.

They do what the commands of these names do, and show the same while a study runs. Mistakes are
raised: ConfigError and LedgerError, one line each, before anything is written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpo.errors import HpoError
from hpo.reading import views
from hpo.reading.export import content_for, table
from hpo.reading.files import write_whole
from hpo.reading.views import View
from hpo.service.launch import Launch
from hpo.service.opening import Place, open_ledger, storage_url
from hpo.study.config import StudyConfig
from hpo.study.load import find_study_file, load_study, study_of
from trainer.config.plain import dumped
from trainer.config.settings import ConfigError, kept_document

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from hpo.evaluation.phase import Plan
    from storage import Ledger

SOURCE = "hpo.start"  # stands for a file's name where the study is no file


class Study:
    """A study in its ledger, read anew each time that something is asked of it."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        """Raises StudyNotFound, a LedgerError."""
        self.name = ledger.study(name).name
        self._ledger = ledger

    @property
    def best(self) -> View | None:
        """The best trial, as `hpo best --json` prints it; None before there is one.

        Raises ConfigError for a study with several objectives.
        """
        if len(self.optuna.directions) > 1:
            raise ConfigError(f"study {self.name}: has several objectives; see .front")
        return next(iter(self.front), None)

    @property
    def front(self) -> list[View]:
        """The Pareto front or, with one objective, the best trial alone."""
        return views.best_trials(self._ledger, self.name)

    @property
    def trials(self) -> pd.DataFrame:
        """A table with one row per trial, as `hpo export` writes it."""
        return table(self._ledger, self.name)

    @property
    def optuna(self) -> optuna.Study:
        """The same study as `optuna.Study`, to read and draw. Do not tell it trials: `hpo` does."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self._ledger.storage)

    def status(self) -> View:
        """Return how far the study is, and who runs it, as `hpo status --json` does."""
        return views.study_status(self._ledger, self.name)

    def show(self, number: int) -> View:
        """Return everything about one trial, as `hpo show --json` does."""
        return views.trial_details(self._ledger, self.name, number)

    def config(self, number: int) -> str:
        """Return the trial's train config as YAML for `python -m trainer`: `hpo show --config`."""
        return views.trial_config(self._ledger, self.name, number)

    def report(self, path: str | Path) -> Path:
        """Write the page that `hpo report` writes, and return its path."""
        from hpo.reading.report import page

        return write_whole(page(self._ledger, self.name), Path(path))

    def export(self, path: str | Path) -> Path:
        """Write the trials as the suffix says, .csv, .parquet or .json, and return the path."""
        return write_whole(content_for(Path(path), self._ledger, self.name), Path(path))

    def evaluate(
        self,
        top: int = 1,
        seeds: int = 3,
        *,
        runs: str | Path | None = None,
        ray_address: str | None = None,
    ) -> list[View]:
        """Train the `top` best trials again under fresh seeds, and test them: `hpo evaluate`.

        A second call goes on, or returns again what was found. Raises as `hpo.start` does.
        """
        from hpo.evaluation.evaluations import conclude_evaluation, plan_evaluation

        _check_thread("Study.evaluate")
        _check_least(top=top, seeds=seeds)
        planned = plan_evaluation(self._ledger, self.name, top, seeds)
        _train(self._ledger, planned, runs, ray_address)
        return conclude_evaluation(self._ledger, planned)

    def compare(
        self,
        recipes: Sequence[str] = (),
        seeds: int = 3,
        *,
        against: str | None = None,
        target: float | None = None,
        output: Sequence[str | Path] = (),
        name: str | None = None,
        runs: str | Path | None = None,
        ray_address: str | None = None,
    ) -> View:
        """Train `recipes` beside each other under the same seeds, and test them: `hpo compare`.

        The comparison is called `name`; its tables go to the files `output`, as their suffixes say.
        A second call goes on, or returns again what was found. Raises as `hpo.start` does.
        """
        from hpo.evaluation.comparison_results import ComparisonRequest, compare_recipes
        from hpo.reading import comparison_table

        _check_thread("Study.compare")
        _check_least(seeds=seeds, target=1 if target is None else target)
        files = [Path(file) for file in output]
        wanted = recipes if isinstance(recipes, str) else ",".join(recipes)
        found = compare_recipes(
            self._ledger,
            self.name,
            ComparisonRequest(wanted or None, seeds, against, target, files, name),
            _text(runs),
            lambda planned: _train(self._ledger, planned, runs, ray_address),
            print,
        )
        for file in files:
            write_whole(comparison_table.content_for(file, found), file)
        return found

    def __repr__(self) -> str:
        now = self.status()
        text = f"study {self.name}: {now['trials']} of {now['budget']} trials"
        if now["best"]:
            values = ", ".join(f"{k} {v:.6g}" for k, v in now["best"]["values"].items())
            text += f", best {values} (trial {now['best']['trial']})"
        return f"<{text}>"


class Unfinished(HpoError, RuntimeError):
    """A study ended early: it was stopped from elsewhere, or could not reach its goal.

    The message says why in one line; `study` is the study as it is.
    """

    def __init__(self, message: str, study: Study) -> None:
        super().__init__(message)
        self.study = study


def start(
    study: str | Path | Mapping[str, Any] | StudyConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    trials: int | None = None,
    runs: str | Path | None = None,
    ray_address: str | None = None,
    metrics_port: int | None = None,
) -> Study:
    """Start a new study and run it until its budget is spent: `hpo start`.

    `study` is a study file, the name of one that ships, or what such a file holds; relative paths
    in the last are from the working folder. `settings` are train settings by dotted path, which
    replace the study's own.

    Raises ConfigError and LedgerError with nothing written, Unfinished, and KeyboardInterrupt once
    running trials have written a checkpoint. Must be called from the main thread.
    """
    from hpo.service import launch

    _check_thread("hpo.start")
    config, source = _config(study, settings or {}, name, trials)
    return _run(
        launch.start(
            config,
            source,
            Place(storage, _text(runs), ray_address, metrics_port),
            may_rename=study is None and name is None,
            say=print,
        )
    )


def resume(
    name: str,
    *,
    storage: str | None = None,
    trials: int | None = None,
    hours: float | None = None,
    device_hours: float | None = None,
    runs: str | Path | None = None,
    ray_address: str | None = None,
    metrics_port: int | None = None,
    same_machine: bool = False,
    changed_code: bool = False,
) -> Study:
    """Go on with a study: `hpo resume`. Raises as `start` does.

    `trials`, `hours` and `device_hours`, where given, become its budget: all of them in all.
    """
    from hpo.service import launch

    _check_thread("hpo.resume")
    return _run(
        launch.resume(
            name,
            Place(storage, _text(runs), ray_address, metrics_port),
            trials=trials,
            hours=hours,
            device_hours=device_hours,
            same_machine=same_machine,
            changed_code=changed_code,
            say=print,
        )
    )


def load(name: str, *, storage: str | None = None) -> Study:
    """Return a study to read, without disturbing whoever runs it. Raises LedgerError."""
    return Study(open_ledger(storage_url(storage)), name)


def _config(
    study: str | Path | Mapping[str, Any] | StudyConfig | None,
    settings: Mapping[str, Any],
    name: str | None,
    trials: int | None,
) -> tuple[StudyConfig, str]:
    """Return the study, checked whole, and the name of its source."""
    given = [f"{path}={_plain(value, path)}" for path, value in settings.items()]
    if isinstance(study, StudyConfig):
        study = study.document()
    if isinstance(study, Mapping):
        # It is read as if from a file, which can only hold plain data.
        document = kept_document(_plain(dict(study), "the study"), SOURCE)
        config = study_of(document, Path(SOURCE), settings=given, name=name, trials=trials)
        return config, SOURCE
    path = find_study_file(None if study is None else str(study))
    return load_study(path, settings=given, name=name, trials=trials), str(path)


def _plain(value: Any, what: str) -> str:
    """Return the value as YAML."""
    try:
        return dumped(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{SOURCE}: {what}: must be plain data, as in a file, not {error.args[-1]!r}"
        ) from None


def _text(runs: str | Path | None) -> str | None:
    return None if runs is None else str(runs)


def _train(ledger: Ledger, plan: Plan, runs: str | Path | None, ray_address: str | None) -> None:
    from hpo.evaluation.phase import prepare_launch

    launch = prepare_launch(ledger, plan, Place(None, _text(runs), ray_address))
    if launch is not None:
        _run(launch)


def _run(launch: Launch) -> Study:
    from hpo.service.run import run_study

    study = Study(launch.ledger, launch.record.name)
    with _signals_put_back():
        ending = run_study(launch, exits=False)
    if ending.signalled:
        raise KeyboardInterrupt(ending.message)
    if ending.status:
        raise Unfinished(ending.message, study)
    return study


@contextmanager
def _signals_put_back() -> Iterator[None]:
    """Restore the signal handlers at the end: Ray replaces that of SIGTERM and leaves its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_thread(function: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            f"{function}: call it from the main thread, where Ctrl-C arrives; in another, run the "
            "command as a process"
        )


def _check_least(**given: float) -> None:
    for name, value in given.items():
        if not value >= 1:
            raise ConfigError(f"{name}: {value}: must be at least 1")
