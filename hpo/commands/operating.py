"""The commands for operating the service: copy a study, and find what is wrong."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from hpo.commands.common import (
    AsJson,
    Name,
    RayAddress,
    Runs,
    Storage,
    open_ledger,
    say,
    storage_url,
)


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
    from hpo.study.load import restore_study
    from storage.copying import copy_study
    from storage.database import shown
    from trainer.config.plain import dumped
    from trainer.config.settings import kept_document

    source = open_ledger(storage_url(storage))
    record = source.study(name)
    new_name = new_name or name
    settings = kept_document(record.document, f"study {name}")
    document = dumped({**settings, "study": new_name})
    restore_study(document, new_name)
    to = storage_url(to)
    counts = copy_study(source, record, to, name=new_name, document=document)
    for table, rows in counts.items():
        say(f"{table}: {rows} rows, the same in both")
    say(f"copied {name}; go on with: hpo resume {new_name} --storage {shown(to)}")


def doctor(
    storage: Storage = None,
    runs: Runs = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Look at what a study needs here, and say what to do where something is wrong."""
    import json

    from hpo.service.doctor import examine
    from hpo.service.opening import Place

    found = []
    for check, finding in examine(Place(storage, runs, ray_address)):
        found.append({"check": check, **asdict(finding)})
        if not as_json:
            do = f" -> {finding.do}" if finding.do else ""
            say(f"{finding.level:4}  {check:8}  {finding.says}{do}")
    if as_json:
        print(json.dumps(found, indent=2))
    sys.exit(any(finding["level"] == "fail" for finding in found))
