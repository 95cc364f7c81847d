"""What several commands share: their options, opening the ledger, and how they answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hpo.commands.completion import study_names

if TYPE_CHECKING:
    from storage import Ledger

DEFAULT_STORAGE = "sqlite:///hpo.db"

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
    str,
    typer.Option(
        "--runs",
        metavar="FOLDER|URL",
        help="Where trial folders go; s3://bucket/prefix, say, where nodes share no disk.",
    ),
]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The study's name.", autocompletion=study_names)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, max=10**9, metavar="N", help="The budget: trials in all."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="Join this Ray cluster instead of a local one."
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=1,
        max=65535,
        metavar="PORT",
        help="Serve Prometheus metrics there, on this machine only.",
    ),
]


def storage_url(storage: str | None, in_file: str | None = None) -> str:
    """The ledger's URL: as typed, else the environment's, else the study file's, else ours."""
    return storage or os.environ.get("HPO_STORAGE") or in_file or DEFAULT_STORAGE


def open_ledger(url: str, *, create: bool = False) -> Ledger:
    """The ledger at `url`. Raises LedgerError."""
    import optuna

    from storage import Ledger

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Ledger.open(url, create=create)


def answer(found: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    """Print what a reading command found, as JSON or by its `table` for people."""
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        table(found)


def say(text: str) -> None:
    """Tell the person."""
    print(text, flush=True)


def fail(message: str) -> NoReturn:
    """Leave: the person's input is wrong."""
    print(f"hpo: {message}", file=sys.stderr)
    sys.exit(2)


def write(content: str | bytes, file: Path | None) -> None:
    """Print a text, or write `content` to `file`, whole or not at all."""
    if file is None:
        print(content, end="")
        return
    if file.is_dir():
        fail(f"-o {file}: is a folder; name a file in it")
    aside = file.with_name(f".{file.name}.writing")
    try:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())
        aside.replace(file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        fail(f"-o {file}: cannot be written: {error.strerror}")
    say(f"wrote {file}")
