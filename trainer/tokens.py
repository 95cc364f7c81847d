"""Words to token ids: the vocabulary, and the cache folder that all trials of a machine map.

A cache entry is built aside under a lock and renamed into place, so it is whole or absent. This
file never knows where a text comes from, and never opens a split that nobody asked for.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from filelock import FileLock

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Tokens = npt.NDArray[np.integer[Any]]
Lines = Iterable[Sequence[str]]

UNK = "<unk>"
EOS = "<eos>"
TOKENIZER_VERSION = 1  # part of every cache key: raise it when a text would give other ids

_VOCABULARY = "vocabulary.txt"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows; a word's id is its place in `words`."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, lines: Lines, min_count: int = 1) -> Vocabulary:
        """Words seen at least `min_count` times in `lines`, with `<unk>` and `<eos>`.

        Ids follow falling frequency, ties the word itself; rarer words count as `<unk>`.
        """
        counts = Counter(_stream(lines))
        kept = {word: count for word, count in counts.items() if count >= min_count}
        kept[EOS] = counts[EOS]
        kept[UNK] = kept.get(UNK, 0) + counts.total() - sum(kept.values())
        return cls(tuple(sorted(kept, key=lambda word: (-kept[word], word))))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> Iterator[int]:
        """The id of each word, that of `<unk>` for a word that is not here."""
        unknown = self._ids[UNK]
        return (self._ids.get(word, unknown) for word in words)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The word of each id."""
        return [self.words[i] for i in ids]

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """The smaller of the two token types that hold every id."""
        return np.uint16 if len(self) <= 2**16 else np.int32

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


@dataclass(frozen=True)
class Splits:
    """A data set as token ids, each split mapped from the cache when it is asked for."""

    vocabulary: Vocabulary
    folder: Path

    def tokens(self, split: Split) -> Tokens:
        """The split as a read-only memory map of shape (tokens,), uint16 or int32."""
        return np.memmap(_token_file(self.folder, split), self.vocabulary.dtype, mode="r")


def cached_splits(folder: Path, lines: Callable[[Split], Lines], min_count: int = 1) -> Splits:
    """The splits kept in `folder`, built from `lines(split)` unless they are there and whole.

    Any number of processes may call this at once for one folder: one builds, the others wait.
    """
    if not _whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _whole(folder):
                _build(folder, lines, min_count)
    words = (folder / _VOCABULARY).read_bytes().decode().split("\n")
    return Splits(Vocabulary(tuple(words)), folder)


def _build(folder: Path, lines: Callable[[Split], Lines], min_count: int) -> None:
    aside = folder.with_name(f"{folder.name}.part")
    # Left by a builder that was killed, or damaged: the lock says that nobody else builds.
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.mkdir()
    vocabulary = Vocabulary.of(lines("train"), min_count)
    (aside / _VOCABULARY).write_bytes("\n".join(vocabulary.words).encode())
    for split in SPLITS:
        ids = vocabulary.encode(_stream(lines(split)))
        np.fromiter(ids, vocabulary.dtype).tofile(_token_file(aside, split))
    sizes = {path.name: path.stat().st_size for path in aside.iterdir()}
    (aside / _MANIFEST).write_text(json.dumps(sizes))
    aside.rename(folder)


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _token_file(folder: Path, split: Split) -> Path:
    return folder / f"{split}.bin"


def _stream(lines: Lines) -> Iterator[str]:
    return chain.from_iterable((*words, EOS) for words in lines)
