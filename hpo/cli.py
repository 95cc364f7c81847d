"""The `hpo` command. Parses, calls, prints; everything heavy is imported by the command it is for.

Exit status: 0 done; 1 the study could not reach its goal; 2 the input is wrong, said in one line;
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from storage import Ledger, StudyRecord

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Tune LayerDrop language-model trainings; every trial is kept in one SQL ledger.",
)

data = typer.Typer(no_args_is_help=True, help="The published data sets.")
app.add_typer(data, name="data")

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="The ledger's database. Else $HPO_STORAGE, else the study file's, else "
        "sqlite:///hpo.db.",
    ),
]
Runs = Annotated[
    Path,
    typer.Option("--runs", metavar="FOLDER", help="Where trial folders go."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, metavar="N", help="The budget: trials in all."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="Join this Ray cluster instead of a local one."
    ),
]


@app.command()
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
    runs: Runs = Path("runs"),
    ray_address: RayAddress = None,
) -> None:
    """Start a new study and run it until its budget is spent."""
    from hpo.service import check_place
    from hpo.study import find_study_file, load_study
    from hpo.teachers import with_teachers

    path = find_study_file(study)
    config = load_study(path, settings=settings or (), name=name, trials=trials)
    url = storage or os.environ.get("HPO_STORAGE") or config.storage or DEFAULT_STORAGE
    taken = _taken_names(url)
    if study is None and name is None and config.study in taken:
        # The quickstart may be started again and again.
        config = config.model_copy(update={"study": _free_name(config.study, taken)})
    if config.study in taken:
        _fail(
            f"study {config.study} exists with {taken[config.study]} trials: "
            f"`hpo resume {config.study}` goes on with it, --name starts another"
        )
    config, teachers = with_teachers(config, str(path))
    check_place(config, runs, ray_address)
    ledger = _open(url, create=True)
    record = ledger.create_study(
        config.study,
        [objective.optuna_direction for objective in config.objectives],
        [objective.metric for objective in config.objectives],
        config.to_document(),
        config.budget.trials,
        teachers,
    )
    _run(ledger, record, runs, ray_address)


@app.command()
def resume(
    name: Name,
    storage: Storage = None,
    trials: Trials = None,
    runs: Runs = Path("runs"),
    ray_address: RayAddress = None,
) -> None:
    """Go on with a study that was stopped or killed, from its ledger alone."""
    from hpo.service import check_place
    from hpo.views import config_of

    ledger = _open(_url(storage))
    record = ledger.study(name)
    check_place(config_of(record), runs, ray_address)
    if trials is not None and trials < record.reserved_trials:
        _fail(f"--trials {trials}: study {name} has {record.reserved_trials} trials already")
    _run(ledger, record, runs, ray_address, trials)


@app.command()
def stop(name: Name, storage: Storage = None) -> None:
    """Have the study's controller checkpoint its running trials and leave."""
    import time

    ledger = _open(_url(storage))
    record = ledger.study(name)
    if not _controllers(ledger, record):
        _fail(f"study {name} is not being run")
    ledger.request_stop(record)
    _say(f"asked {_controllers(ledger, record)[0]} to stop; waiting for its checkpoints")
    while _controllers(ledger, record):
        time.sleep(0.5)
    _say(f"study {name} is stopped; go on with: hpo resume {name}")


@app.command("list")
def list_studies(storage: Storage = None, as_json: AsJson = False) -> None:
    """List the studies of the ledger."""
    from hpo import views

    found = views.study_list(_open(_url(storage)))
    if as_json:
        return _print_json(found)
    from hpo import tables

    return tables.studies(found)


@app.command()
def status(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """Say how far a study is, and who runs it."""
    from hpo import views

    found = views.study_status(_open(_url(storage)), name)
    if as_json:
        return _print_json(found)
    from hpo import tables

    return tables.status(found)


@app.command("trials")
def list_trials(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """List a study's trials."""
    from hpo import views

    found = views.trial_list(_open(_url(storage)), name)
    if as_json:
        return _print_json(found)
    from hpo import tables

    return tables.trials(found)


@app.command()
def show(
    name: Name,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one trial: parameters, metrics by step, attempts and their reasons."""
    from hpo import views

    found = views.trial_details(_open(_url(storage)), name, number)
    if as_json:
        return _print_json(found)
    from hpo import tables

    return tables.trial(found)


@app.command()
def best(name: Name, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the best trial of a study, or its Pareto front."""
    from hpo import views

    found = views.best_trials(_open(_url(storage)), name)
    if as_json:
        return _print_json(found)
    from hpo import tables

    return tables.best(name, found)


@app.command()
def schedule(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", metavar="FILE", help="Write it there. Default: standard output."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the best trial's learned schedule as a train config that trains from step 0."""
    from hpo.schedule import learned_schedule

    text = learned_schedule(_open(_url(storage)), name)
    if output is None:
        print(text, end="")
    else:
        _write(output, text)


@app.command()
def dashboard(
    storage: Storage = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: a free one.")
    ] = None,
) -> None:
    """Serve the Optuna dashboard on the ledger, on this machine only."""
    from hpo.dashboard import serve

    serve(_open(_url(storage)), port, _say)


@data.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ptb, wikitext-2 or wikitext-103.")],
    folder: Annotated[
        str | None,
        typer.Option(
            "--dir",
            metavar="FOLDER",
            help="Where data sets are kept. Else $HPO_DATA_DIR, else the cache, where trainings "
            "look too.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Another source: a zip or tar, or with {file} in it the address of each text.",
        ),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="words or bpe.")
    ] = "words",
    vocabulary_size: Annotated[
        int, typer.Option("--vocabulary-size", metavar="N", help="Tokens of bpe.")
    ] = 8192,
) -> None:
    """Fetch a data set, verify it, and tokenize it for the trainings of this machine."""
    from hpo.prepare import prepare

    vocabulary = {"tokenizer": tokenizer, "vocabulary_size": vocabulary_size}
    prepare({"name": name, "dir": folder, **vocabulary}, url, _say)


def main() -> NoReturn:
    """The console script: a user's mistake is one line on standard error, status 2."""
    try:
        app(prog_name="hpo")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        _fail(message)
    sys.exit(0)


DEFAULT_STORAGE = "sqlite:///hpo.db"


def _one_line(error: Exception) -> str | None:
    """What to tell the user of an error that is theirs or the database's; None for one of ours."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from storage import LedgerError
    from trainer.settings import ConfigError

    if isinstance(error, (ConfigError, LedgerError)):
        return str(error)
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    if isinstance(error, SQLAlchemyError):
        return "the database: " + " ".join(str(getattr(error, "orig", None) or error).split())
    return None


def _url(storage: str | None) -> str:
    return storage or os.environ.get("HPO_STORAGE") or DEFAULT_STORAGE


def _open(url: str, *, create: bool = False) -> Ledger:
    import optuna

    from storage import Ledger

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Ledger.open(url, create=create)


def _taken_names(url: str) -> dict[str, int]:
    """Studies in the database, if there is one, with their numbers of trials."""
    from storage.database import has_ledger

    if not has_ledger(url):
        return {}
    return {study.name: study.reserved_trials for study in _open(url).studies()}


def _free_name(name: str, taken: dict[str, int]) -> str:
    return next(free for n in range(2, 10**6) if (free := f"{name}-{n}") not in taken)


def _run(
    ledger: Ledger,
    record: StudyRecord,
    runs: Path,
    ray_address: str | None,
    trials: int | None = None,
) -> NoReturn:
    from hpo import tables, views
    from hpo.service import run_study

    ending = run_study(
        ledger, record, views.config_of(record), runs=runs, ray_address=ray_address, trials=trials
    )
    if ending.status == 0:
        tables.best(record.name, views.best_trials(ledger, record.name))
    print(ending.message, file=sys.stdout if ending.status == 0 else sys.stderr)
    sys.exit(ending.status)


def _controllers(ledger: Ledger, record: StudyRecord) -> list[str]:
    return [f"process {c.pid} on {c.host}" for c in ledger.controllers(record) if c.alive]


def _print_json(found: Any) -> None:
    print(json.dumps(found, indent=2))


def _write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        _fail(f"-o {path}: cannot be written: {error.strerror}")
    _say(f"wrote {path}")


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(message: str) -> NoReturn:
    print(f"hpo: {message}", file=sys.stderr)
    sys.exit(2)
