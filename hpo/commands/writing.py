"""The commands that write a study to a file: as a page to read, or as a table to work with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.common import Name, Storage, open_ledger, save, storage_url


def report(
    name: Name,
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The page: HTML.")],
    storage: Storage = None,
) -> None:
    """Write a page about a study: one HTML file, with pictures, that needs no network."""
    from hpo.reading.report import page

    save(page(open_ledger(storage_url(storage)), name), output)


def export(
    name: Name,
    output: Annotated[
        Path, typer.Option("-o", metavar="FILE", help="The table: .csv, .parquet or .json.")
    ],
    storage: Storage = None,
) -> None:
    """Write a study's trials as a table, one row a trial."""
    from hpo.reading.export import content_for

    save(content_for(output, open_ledger(storage_url(storage)), name), output)
