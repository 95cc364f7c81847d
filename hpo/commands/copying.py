"""The command that copies a study to another ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo.commands.common import Name, Storage, open_ledger, say, storage_url


def copy(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="The other ledger; made if there is none.")
    ],
    new_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Another name for the copy.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Copy a study that nobody runs to another ledger, to be resumed there."""
    import yaml

    from hpo.study import restore_study
    from storage.copying import copy_study
    from storage.database import shown

    source = open_ledger(storage_url(storage))
    record = source.study(name)
    new_name = new_name or name
    document = yaml.safe_dump(
        {**yaml.safe_load(record.document), "study": new_name}, sort_keys=False
    )
    restore_study(document, new_name)
    counts = copy_study(source, record, to, name=new_name, document=document)
    for table, rows in counts.items():
        say(f"{table}: {rows} rows, the same in both")
    say(f"copied {name}; go on with: hpo resume {new_name} --storage {shown(to)}")
