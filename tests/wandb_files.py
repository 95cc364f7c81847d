"""Reads wandb's offline files: version 0.31 ships their records' types, but no reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    position, payload = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # no chunk's header crosses a block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(payload)
            payload = b""


class Run:
    """What one offline folder says."""

    def __init__(self, found: list[Any]) -> None:
        kinds = [(record.WhichOneof("record_type"), record) for record in found]
        run = next(record.run for kind, record in kinds if kind == "run")
        self.id, self.name, self.group, self.tags = (
            run.run_id,
            run.display_name,
            run.run_group,
            list(run.tags),
        )
        self.config = {update.key: json.loads(update.value_json) for update in run.config.update}
        self.history = [
            {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for kind, record in kinds
            if kind == "history"
        ]
        self.summary = {
            item.key: json.loads(item.value_json)
            for kind, record in kinds
            if kind == "summary"
            for item in record.summary.update
        }
        self.exit_codes = [record.exit.exit_code for kind, record in kinds if kind == "exit"]

    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


def offline_runs(folder: Path) -> list[Run]:
    """The offline runs under `folder`/wandb that hold something yet, the oldest first."""
    files = (folder / "wandb").glob("offline-run-*/*.wandb")
    found = [list(records(path)) for path in sorted(files, key=lambda path: path.stat().st_mtime)]
    return [Run(some) for some in found if some]
