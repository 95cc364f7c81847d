"""The commands that write what the ledger says to a file: a page to read, a table to work with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.common import Name, Storage, open_ledger, storage_url, write


def report(
    name: Name,
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The page: HTML.")],
    storage: Storage = None,
) -> None:
    """Write a page about a study: one HTML file, with pictures, that needs no network."""
    from hpo.reading.report import page

    write(page(open_ledger(storage_url(storage)), name), output)


def export(
    name: Name,
    output: Annotated[
        Path, typer.Option("-o", metavar="FILE", help="The table: .csv, .parquet or .json.")
    ],
    storage: Storage = None,
) -> None:
    """Write a study's trials as a table, one row a trial."""
    from hpo.reading.export import exported

    write(exported(open_ledger(storage_url(storage)), name, output), output)
