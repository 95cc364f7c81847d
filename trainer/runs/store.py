"""Named objects at an fsspec URL, such as `s3://bucket/prefix`, and how to read and write them.

Whatever a store's library raises becomes a StoreError of one line. Credentials and endpoints come
from the environment, as that library reads them, and never from the URL, which ledgers and logs
keep. Nothing here knows a checkpoint, or imports torch.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from hpo.errors import HpoError
from trainer.config.settings import ConfigError

Alive = Callable[[], None]


class StoreError(HpoError, OSError):
    """A run's folder or store cannot be reached, read or written; the message is one line."""


@contextmanager
def kept_in(place: str | Path, *errors: type[Exception]) -> Iterator[None]:
    """Make each of `errors` that the block raises a StoreError, which names `place`."""
    try:
        yield
    except StoreError:
        raise
    except errors as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"{place}: {reason}") from error


class Store:
    """The objects under one URL, by their names relative to it."""

    def __init__(self, url: str, alive: Alive = lambda: None) -> None:
        """`alive` is called as parts of a file come or go. Raises ConfigError and StoreError."""
        if set(url) & set("@?#"):
            raise ConfigError(
                f"{url.partition('://')[0]}://...: give scheme://bucket/prefix and no more; "
                "credentials and endpoints come from the environment"
            )
        self.url = url.rstrip("/")
        self._alive = _Alive(alive)
        local = url.startswith(("file://", "local://"))
        with self._typed():
            self._files: Any
            self._files, root = url_to_fs(self.url, **({"auto_mkdir": True} if local else {}))
            self._root = root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """An object's content; None if there is none."""
        with self._typed(), suppress(FileNotFoundError):
            return bytes(self._files.cat_file(self._at(name)))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write `content` as the object `name`."""
        with self._typed():
            self._files.pipe_file(self._at(name), content)

    def upload(self, path: Path, name: str) -> None:
        """Write the file at `path` as the object `name`."""
        with self._typed():
            self._files.put_file(str(path), self._at(name), callback=self._alive)

    def download(self, name: str, path: Path) -> bool:
        """Write the object `name` to the file at `path`; False if there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._typed(), suppress(FileNotFoundError):
            self._files.get_file(self._at(name), str(path), callback=self._alive)
            return True
        return False

    def delete(self, names: Iterable[str]) -> None:
        """Delete the objects, one after the other; some may be gone already."""
        with self._typed():
            for name in names:
                with suppress(FileNotFoundError):
                    self._files.rm_file(self._at(name))

    def names(self, prefix: str) -> list[str]:
        """The objects in the folder `prefix`, by their whole names."""
        with self._typed(), suppress(FileNotFoundError):
            self._files.invalidate_cache()  # others write here too
            found = self._files.find(self._at(prefix))
            return [path.removeprefix(f"{self._root}/") for path in found]
        return []

    def folders(self) -> list[str]:
        """The names of the folders right under the URL."""
        with self._typed(), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            found = self._files.ls(self._root, detail=True)
            return [
                each["name"].rstrip("/").rpartition("/")[2]
                for each in found
                if each["type"] == "directory"
            ]
        return []

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _typed(self) -> AbstractContextManager[None]:
        return kept_in(self.url, Exception)  # each store's library raises exceptions of its own


class _Alive(Callback):  # type: ignore[misc]
    def __init__(self, alive: Alive) -> None:
        super().__init__()
        self._tell = alive

    def relative_update(self, inc: int = 1) -> None:
        self._tell()


def check_writable(url: str) -> None:
    """Raise ConfigError or StoreError unless objects can be written, read and deleted at `url`."""
    store = Store(url)
    name = f".hpo-{uuid.uuid4().hex}"
    store.write(name, bytes(1 << 20))  # a megabyte: there may be a quota
    if store.read(name) is None:
        raise StoreError(f"{url}: what is written there cannot be read")
    store.delete([name])
