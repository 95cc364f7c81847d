"""Files and folders that are there whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file to write in; at the end of the block it becomes `path`.

    A kill leaves `.NAME.writing` beside it, which the next call writes over; an error leaves
    nothing. With `durable`, the content is on the disk before the rename.
    """
    aside = path.with_name(f".{path.name}.writing")
    try:
        with aside.open("wb") as file:
            yield file
        put_in_place(aside, path, durable=durable)
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def whole_folder(path: Path, aside: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield `aside`, an empty folder to fill; at the end of the block it becomes `path`.

    A kill or an error leaves `aside`, and the next call empties it. With `durable`, the list of its
    files is on the disk before the rename, and then the rename; the caller syncs their content.
    """
    yield empty_folder(aside)
    put_in_place(aside, path, durable=durable)
    if durable:
        sync(path.parent)


def empty_folder(path: Path) -> Path:
    """Make `path` an empty folder, whatever a killed process has left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def put_in_place(aside: Path, path: Path, *, durable: bool = True) -> None:
    """Rename `aside`, a file or folder, to `path`; `durable` syncs it to the disk before."""
    if durable:
        sync(aside)
    aside.replace(path)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
