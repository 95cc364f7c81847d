"""The words a model knows, and their ids. `bpe.py` has the same for parts of words.

Neither module knows where a text comes from or where its ids are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar

Lines = Iterable[Sequence[str]]

UNK = "<unk>"
EOS = "<eos>"


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows; a word's id is its place in `words`."""

    words: tuple[str, ...]
    file_name: ClassVar = "vocabulary.txt"

    @classmethod
    def of(cls, lines: Lines, min_count: int = 1) -> Vocabulary:
        """Words seen at least `min_count` times in `lines`, with `<unk>` and `<eos>`.

        Ids go by falling frequency, equal ones by the word itself; rarer words count as `<unk>`.
        """
        counts = Counter(words_of(lines))
        kept = {word: count for word, count in counts.items() if count >= min_count}
        kept[EOS] = counts[EOS]
        kept[UNK] = kept.get(UNK, 0) + counts.total() - sum(kept.values())
        return cls(tuple(sorted(kept, key=lambda word: (-kept[word], word))))

    @classmethod
    def from_bytes(cls, kept: bytes) -> Vocabulary:
        """The vocabulary that `to_bytes` wrote."""
        return cls(tuple(kept.decode().split("\n")))

    def to_bytes(self) -> bytes:
        """The words in the order of their ids, one on each line."""
        return "\n".join(self.words).encode()

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> Iterator[int]:
        """The id of each word; a word that is not here has the id of `<unk>`."""
        unknown = self._ids[UNK]
        return (self._ids.get(word, unknown) for word in words)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The word of each id."""
        return [self.words[i] for i in ids]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def words_of(lines: Lines) -> Iterator[str]:
    """The words of `lines`, with `<eos>` after each line."""
    return chain.from_iterable((*words, EOS) for words in lines)
