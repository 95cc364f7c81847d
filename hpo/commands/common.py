"""What several commands share: their options, opening the ledger, and how they answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from hpo.commands.completion import study_names
from hpo.service.opening import open_ledger as open_ledger
from hpo.service.opening import storage_url as storage_url

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
    str | None,
    typer.Option(
        "--runs",
        metavar="FOLDER|URL",
        help="Where trial folders go; s3://bucket/prefix, say, where nodes share no disk. Else "
        "$HPO_RUNS, else where the study's are, else runs.",
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
Hours = Annotated[
    float | None,
    typer.Option("--hours", metavar="H", help="The budget: hours that the study is run, in all."),
]
DeviceHours = Annotated[
    float | None,
    typer.Option("--device-hours", metavar="H", help="The budget: hours of all ranks, in all."),
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


def answer(found: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    """Print what a reading command found, as JSON or by its `table` for people."""
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        table(found)


def say(text: str) -> None:
    """Tell the person."""
    print(text, flush=True)


def forget_output() -> None:
    """Print nowhere from now on: nobody reads it, and Python would complain as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def fail(message: str, status: int = 2) -> NoReturn:
    """Exit with `status`: 2, because the person's input is wrong, or another."""
    print(f"hpo: {message}", file=sys.stderr)
    sys.exit(status)


def save(content: str | bytes, file: Path, *, quiet: bool = False) -> None:
    """Write `content` to `file`, all of it or nothing, and say so."""
    from hpo.reading.files import write_whole
    from trainer.config.settings import ConfigError

    try:
        write_whole(content, file)
    except ConfigError as error:
        fail(f"-o {error}")
    if not quiet:
        say(f"wrote {file}")
