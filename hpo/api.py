"""The commands in Python: `hpo.start`, `hpo.resume`, `hpo.load`, and what they return.

They do what the commands of these names do, and show the same while a study runs. Mistakes are
raised: ConfigError and LedgerError, one line each, before anything is written.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.errors import HpoError
from hpo.reading import views
from hpo.reading.export import exported, table
from hpo.reading.files import write_whole
from hpo.reading.views import View
from hpo.service.launch import Launch
from hpo.service.opening import open_ledger, storage_url
from hpo.study.config import StudyConfig
from hpo.study.load import find_study_file, load_study, study_of
from trainer.config.settings import ConfigError, parse_document

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
        """The best trial, as `hpo best --json` has it; None before there is one.

        Raises ConfigError for a study with several objectives.
        """
        if len(self.optuna.directions) > 1:
            raise ConfigError(f"study {self.name}: has several objectives; see .front")
        return next(iter(self.front), None)

    @property
    def front(self) -> list[View]:
        """The Pareto front; of one objective, the best trial."""
        return views.best_trials(self._ledger, self.name)

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial, as `hpo export` writes them."""
        return table(self._ledger, self.name)

    @property
    def optuna(self) -> optuna.Study:
        """The study as Optuna's, for its visualizations, say. Tell it nothing: `hpo` does."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self._ledger.storage)

    def status(self) -> View:
        """How far it is, and who runs it: `hpo status --json`."""
        return views.study_status(self._ledger, self.name)

    def show(self, number: int) -> View:
        """Everything about one trial: `hpo show --json`."""
        return views.trial_details(self._ledger, self.name, number)

    def config(self, number: int) -> str:
        """The trial's train config, YAML, which `python -m trainer` runs: `hpo show --config`."""
        return views.trial_config(self._ledger, self.name, number)

    def report(self, path: str | Path) -> Path:
        """Write the page that `hpo report` writes; where it is."""
        from hpo.reading.report import page

        return _written(page(self._ledger, self.name), Path(path))

    def export(self, path: str | Path) -> Path:
        """Write the trials as the suffix says, .csv, .parquet or .json; where they are."""
        return _written(exported(self._ledger, self.name, Path(path)), Path(path))

    def evaluate(
        self,
        top: int = 1,
        seeds: int = 3,
        *,
        runs: str | Path = "runs",
        ray_address: str | None = None,
    ) -> list[View]:
        """Train the `top` best trials again under fresh seeds, and test them: `hpo evaluate`.

        Called again, it goes on, or says again what it found. Raises as `hpo.start` does.
        """
        from hpo.evaluation.evaluations import conclude_evaluation, plan_evaluation

        _check_thread("Study.evaluate")
        _check_least(top=top, seeds=seeds)
        planned = plan_evaluation(self._ledger, self.name, top, seeds)
        _train(self._ledger, planned, str(runs), ray_address)
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
        runs: str | Path = "runs",
        ray_address: str | None = None,
    ) -> View:
        """Train `recipes` beside each other under the same seeds, and test them: `hpo compare`.

        The comparison is called `name`; its tables go to the files `output`, as their suffixes say.
        Called again, it goes on, or says again what it found. Raises as `hpo.start` does.
        """
        from hpo.evaluation.comparison_results import compare_recipes
        from hpo.reading.comparison_table import written

        _check_thread("Study.compare")
        _check_least(seeds=seeds, target=1 if target is None else target)
        files = [Path(file) for file in output]
        found = compare_recipes(
            self._ledger,
            self.name,
            (recipes if isinstance(recipes, str) else ",".join(recipes)) or None,
            seeds,
            against=against,
            target=target,
            files=files,
            study=name,
            runs=str(runs),
            train=lambda planned: _train(self._ledger, planned, str(runs), ray_address),
            say=print,
        )
        for file in files:
            _written(written(found, file), file)
        return found

    def __repr__(self) -> str:
        now = self.status()
        text = f"study {self.name}: {now['trials']} of {now['budget']} trials"
        if now["best"]:
            values = ", ".join(f"{k} {v:.6g}" for k, v in now["best"]["values"].items())
            text += f", best {values} (trial {now['best']['trial']})"
        return f"<{text}>"


class Unfinished(HpoError, RuntimeError):
    """A study left before it was done: stopped from elsewhere, or without reaching its goal.

    Says why in one line. What there is of it is in `study`.
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
    runs: str | Path = "runs",
    ray_address: str | None = None,
    metrics_port: int | None = None,
) -> Study:
    """Start a new study and run it until its budget is spent: `hpo start`.

    `study` is a study file, the name of one that ships, or what such a file holds; relative paths
    in that are from the working folder. `settings` are train settings by dotted path, over it.

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
            storage=storage,
            runs=str(runs),
            ray_address=ray_address,
            metrics_port=metrics_port,
            may_rename=study is None and name is None,
            say=print,
        )
    )


def resume(
    name: str,
    *,
    storage: str | None = None,
    trials: int | None = None,
    runs: str | Path = "runs",
    ray_address: str | None = None,
    metrics_port: int | None = None,
    same_machine: bool = False,
) -> Study:
    """Go on with a study, up to `trials` in all if given: `hpo resume`. Raises as `start` does."""
    from hpo.service import launch

    _check_thread("hpo.resume")
    return _run(
        launch.resume(
            name,
            storage=storage,
            trials=trials,
            runs=str(runs),
            ray_address=ray_address,
            metrics_port=metrics_port,
            same_machine=same_machine,
            say=print,
        )
    )


def load(name: str, *, storage: str | None = None) -> Study:
    """A study, to be read; whoever runs it is not disturbed. Raises LedgerError."""
    return Study(open_ledger(storage_url(storage)), name)


def _config(
    study: str | Path | Mapping[str, Any] | StudyConfig | None,
    settings: Mapping[str, Any],
    name: str | None,
    trials: int | None,
) -> tuple[StudyConfig, str]:
    """The study, checked whole, and where it is from."""
    given = [f"{path}={_plain(value, path)}" for path, value in settings.items()]
    if isinstance(study, StudyConfig):
        study = study.model_dump(mode="json")
    if isinstance(study, Mapping):
        # As if it were in a file, which holds plain data alone.
        document = parse_document(_plain(dict(study), "the study"), SOURCE)
        config = study_of(document, Path(SOURCE), settings=given, name=name, trials=trials)
        return config, SOURCE
    path = find_study_file(None if study is None else str(study))
    return load_study(path, settings=given, name=name, trials=trials), str(path)


def _plain(value: Any, what: str) -> str:
    """The value as JSON, which is YAML."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{SOURCE}: {what}: must be plain data, as in a file: {error}") from None


def _train(ledger: Ledger, plan: Plan, runs: str, ray_address: str | None) -> None:
    from hpo.evaluation.phase import launched

    launch = launched(ledger, plan, runs, ray_address)
    if launch is not None:
        _run(launch)


def _run(launch: Launch) -> Study:
    study = Study(launch.ledger, launch.record.name)
    with _signals_put_back():
        ending = launch.run(exits=False)
    if ending.signalled:
        raise KeyboardInterrupt(ending.message)
    if ending.status:
        raise Unfinished(ending.message, study)
    return study


@contextmanager
def _signals_put_back() -> Iterator[None]:
    """Ray takes SIGTERM, and does not give it back."""
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


def _written(content: str | bytes, path: Path) -> Path:
    write_whole(content, path)
    return path
