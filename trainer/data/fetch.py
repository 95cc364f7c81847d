"""Fetch the published data sets: afterwards each text is in its place and verified, or not there.

Only the texts of the data set are taken from an archive, whatever paths the archive gives them.
The caller decides where data goes.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from trainer.config.settings import ConfigError
from trainer.config.whole import whole_file
from trainer.data.corpora import CORPORA
from trainer.data.download import Progress, download
from trainer.data.tokens import SPLITS

_Members = dict[str, Callable[[], IO[bytes] | None]]  # file names without folders: how to read each
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # of an encrypted zip
)


@dataclass(frozen=True)
class _Target:
    """Where a text goes, and the checksum that it must have, `algorithm:hex digits`."""

    path: Path
    checksum: str

    def is_there(self) -> bool:
        return self.path.is_file() and self.checksum_of(self.path) == self.checksum

    def checksum_of(self, path: Path) -> str:
        algorithm = self.checksum.partition(":")[0]
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def fetch(name: str, folder: Path, url: str | None, progress: Progress) -> bool:
    """Put the texts of the data set `name` into `folder`; False if they were there already.

    `url` replaces the data set's own source. It is an archive that has the texts or, with `{file}`
    in it, the address of each text. Raises ConfigError when the texts cannot be fetched or written,
    or are not the right ones.
    """
    try:
        wanted = bool(_missing(name, folder))
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock"):
                _fetch(name, folder, url or CORPORA[name].url, progress)
        for part in folder.glob(f".{name}-*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written: {error.strerror or error}; give another --dir"
        ) from None
    return wanted


def _missing(name: str, folder: Path) -> dict[str, _Target]:
    # By file name at the source. A text with a wrong checksum counts as missing.
    corpus = CORPORA[name]
    targets = {
        corpus.file_at_source(split): _Target(folder / corpus.file(split), corpus.checksums[split])
        for split in SPLITS
    }
    return {source: target for source, target in targets.items() if not target.is_there()}


def _fetch(name: str, folder: Path, url: str, progress: Progress) -> None:
    missing = _missing(name, folder)
    if "{file}" in url:
        for source_name, target in missing.items():
            address = url.replace("{file}", source_name)
            with _downloaded(address, folder / f".{name}", progress) as part:
                _install(part.open("rb"), target, address)
    elif missing:
        with _downloaded(url, folder / f".{name}", progress) as part, _members(part) as members:
            for source_name, target in missing.items():
                if source_name not in members:
                    raise ConfigError(f"{url}: there is no {source_name} in it; give another --url")
                _install(members[source_name](), target, f"{url}: {source_name}")


@contextmanager
def _downloaded(url: str, prefix: Path, progress: Progress) -> Iterator[Path]:
    """Yield the file downloaded from `url`; remove it if its content turns out to be useless."""
    part = download(url, prefix, progress)
    try:
        yield part
    except _DAMAGED:
        part.unlink()
        raise ConfigError(
            f"{url}: not a whole zip or tar archive; try again, or give another --url"
        ) from None
    except ConfigError:
        part.unlink()
        raise


@contextmanager
def _members(archive: Path) -> Iterator[_Members]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield {
                PurePosixPath(member.filename).name: partial(opened.open, member)
                for member in opened.infolist()
            }
    else:
        with tarfile.open(archive) as opened_tar:
            yield {
                PurePosixPath(member.name).name: partial(opened_tar.extractfile, member)
                for member in opened_tar
                if member.isfile()
            }


def _install(text: IO[bytes] | None, target: _Target, source: str) -> None:
    assert text is not None, "a file, as its archive says"
    target.path.parent.mkdir(exist_ok=True)
    with text, whole_file(target.path) as file:
        shutil.copyfileobj(text, file)
        file.flush()
        found = target.checksum_of(Path(file.name))
        if found != target.checksum:
            raise ConfigError(
                f"{source}: its checksum is {found}, not {target.checksum}; try again, or give "
                "another --url"
            )
