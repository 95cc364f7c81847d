"""Files and folders that are there whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file to write in; at the end of the block it becomes `path`.

    A kill leaves `.NAME.writing` beside it, which the next call writes over; an error leaves
    nothing. With `durable`, the content is on the disk before the rename, and then the rename.
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

    A kill or an error leaves `aside`, and the next call empties it. With `durable`, all that is in
    it is on the disk before the rename, and then the rename.
    """
    yield empty_folder(aside)
    if durable:
        for each in aside.rglob("*"):
            sync(each)
    put_in_place(aside, path, durable=durable)


def empty_folder(path: Path) -> Path:
    """Make `path` an empty folder, whatever a killed process has left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def put_in_place(aside: Path, path: Path, *, durable: bool = True) -> None:
    """Rename `aside`, a file or folder, to `path`.

    With `durable`, `aside` is on the disk before, and its new name when this returns.
    """
    if durable:
        sync(aside)
    aside.replace(path)
    if durable:
        sync(path.parent)


def since_boot(path: Path) -> bool:
    """Whether `path` was written since this machine started.

    What was written before may have been cut or emptied, if the machine lost its power since.
    """
    return bool(path.stat().st_mtime >= psutil.boot_time())


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
