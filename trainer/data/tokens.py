"""Texts as token ids, in cache folders that all trials of a machine map into memory.

A cache entry is built aside under a lock and renamed into place, so it is whole or absent. After
this machine has started anew, an entry's digests are verified once: a power cut can leave files of
the right size and wrong content. Texts are read as a stream: memory holds the vocabulary, never a
whole text. This module does not know where a text comes from, and opens only the splits that it is
asked for. An entry has the test split only if it was asked for when the entry was built.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from hpo.errors import HpoError
from trainer.config.whole import sha256, since_boot, whole_folder
from trainer.data.bpe import BytePairs
from trainer.data.vocabulary import Lines, Vocabulary, words_of

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TUNING: tuple[Split, ...] = ("train", "valid")  # what a search may read
Tokens = npt.NDArray[np.integer[Any]]

TOKENIZER_VERSION = 1  # part of every cache key: increase it when the ids of a text change

_MANIFEST = "manifest.json"
_PIECE_WORDS = 2**16  # encoded and written at a time


class SplitWithheld(HpoError, RuntimeError):
    """A run asked for a split that its phase may not read."""


@dataclass(frozen=True)
class Splits:
    """A data set as token ids, each split mapped from the cache when it is asked for."""

    vocabulary: Vocabulary | BytePairs
    folder: Path
    readable: tuple[Split, ...] = SPLITS

    def tokens(self, split: Split) -> Tokens:
        """The split as a read-only memory map of shape (tokens,), uint16 or int32.

        Raises SplitWithheld for a split that is not `readable`.
        """
        self._check(split)
        return np.memmap(_token_file(self.folder, split), _dtype(self.vocabulary), mode="r")

    def words(self, split: Split) -> int:
        """Words of the text, with an `<eos>` for each line, however they were cut into tokens."""
        self._check(split)
        return int(json.loads((self.folder / _MANIFEST).read_text())["words"][split])

    def _check(self, split: Split) -> None:
        if split not in self.readable:
            raise SplitWithheld(
                f"the {split} split is not read while tuning: `hpo evaluate` trains and tests"
            )


def cached_splits(
    folder: Path,
    lines: Callable[[Split], Lines],
    min_count: int = 1,
    byte_pairs: int | None = None,
    wanted: tuple[Split, ...] = SPLITS,
) -> Splits:
    """The splits `wanted` from the cache entry `folder`, built from `lines(split)` if needed.

    The vocabulary is the words seen `min_count` times in the train split, or `byte_pairs` tokens
    learned from that split. Any number of processes may call this at once for one folder: one
    builds, the others wait.
    """
    if not _whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _whole(folder):
                _build(folder, lines, min_count, byte_pairs, wanted)
    kind = Vocabulary if byte_pairs is None else BytePairs
    return Splits(kind.from_bytes((folder / kind.file_name).read_bytes()), folder, wanted)


def check_entry(folder: Path) -> None:
    """Raise OSError unless the cache entry `folder` is there, or can be made there."""
    if not _whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder.parent):
            pass


def _build(
    folder: Path,
    lines: Callable[[Split], Lines],
    min_count: int,
    byte_pairs: int | None,
    wanted: tuple[Split, ...],
) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # damaged; the lock says that nobody else builds
    with whole_folder(folder, folder.with_name(f"{folder.name}.part")) as aside:
        vocabulary = (
            Vocabulary.of(lines("train"), min_count)
            if byte_pairs is None
            else BytePairs.of(lines("train"), byte_pairs)
        )
        (aside / vocabulary.file_name).write_bytes(vocabulary.to_bytes())
        words = {
            split: _write_tokens(_token_file(aside, split), vocabulary, lines(split))
            for split in wanted
        }
        files = list(aside.iterdir())
        sizes = {path.name: path.stat().st_size for path in files}
        digests = {path.name: sha256(path) for path in files}
        manifest = {"sizes": sizes, "sha256": digests, "words": words}
        (aside / _MANIFEST).write_text(json.dumps(manifest))


def _write_tokens(path: Path, vocabulary: Vocabulary | BytePairs, lines: Lines) -> int:
    # Returns the number of words; with byte pairs there are more tokens than words.
    words, written = words_of(lines), 0
    with path.open("wb") as file:
        while piece := list(islice(words, _PIECE_WORDS)):
            np.fromiter(vocabulary.encode(piece), _dtype(vocabulary)).tofile(file)
            written += len(piece)
    return written


def _dtype(vocabulary: Vocabulary | BytePairs) -> type[np.uint16] | type[np.int32]:
    return np.uint16 if len(vocabulary) <= 2**16 else np.int32


def _whole(folder: Path) -> bool:
    manifest = folder / _MANIFEST
    try:
        found = json.loads(manifest.read_text())
        if any((folder / name).stat().st_size != size for name, size in found["sizes"].items()):
            return False
        if not since_boot(manifest):
            if any(sha256(folder / name) != digest for name, digest in found["sha256"].items()):
                return False
            with suppress(OSError):  # a cache that is only read is verified by each process
                os.utime(manifest)
    except (OSError, ValueError, KeyError):
        return False
    return True


def _token_file(folder: Path, split: Split) -> Path:
    return folder / f"{split}.bin"
