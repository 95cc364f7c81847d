"""A byte-pair vocabulary: a frequent word is one token, a rare word several; no word is unknown.

Spaces separate words, and no token crosses a space, so a word's tokens do not depend on the words
around it. `<eos>` and `<unk>` are tokens of their own and are never cut into bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, groupby

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.vocabulary import EOS, UNK, Lines

_SPECIAL = (EOS, UNK)  # they have the first ids; the tokenizers library's ids follow
_MIN_COUNT = 2  # a pair seen once is worth no token
_REMEMBERED_WORDS = 2**18  # nearly all words of a running text; they take some 70 MB


class BytePairs:
    """Byte-level byte pair encoding (Sennrich et al. 2016; bytes: Radford et al. 2019)."""

    file_name = "tokenizer.json"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts = lru_cache(maxsize=_REMEMBERED_WORDS)(self._encode_word)

    @classmethod
    def of(cls, lines: Lines, size: int) -> BytePairs:
        """Learn `size` tokens from `lines`, or fewer where `lines` have fewer pairs to join."""
        spaces = pre_tokenizers.WhitespaceSplit()
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, bytes_])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(_SPECIAL),
            min_frequency=_MIN_COUNT,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = (" ".join(word for word in words if word not in _SPECIAL) for words in lines)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_bytes(cls, kept: bytes) -> BytePairs:
        """The vocabulary that `to_bytes` wrote."""
        return cls(Tokenizer.from_buffer(kept))

    def to_bytes(self) -> bytes:
        """The library's own `tokenizer.json`; ours have two ids more, which come before its ids."""
        return self._tokenizer.to_str().encode()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size() + len(_SPECIAL)

    def encode(self, words: Iterable[str]) -> Iterator[int]:
        """The ids of the tokens of each word, one or more."""
        return chain.from_iterable(map(self._parts, words))

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of `ids`, which begin with a word's first token."""
        words: list[str] = []
        for special, group in groupby(map(int, ids), lambda i: i < len(_SPECIAL)):
            if special:
                words += [_SPECIAL[i] for i in group]
            else:
                text = self._tokenizer.decode([i - len(_SPECIAL) for i in group])
                words += text.removeprefix(" ").split(" ")
        return words

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (_SPECIAL.index(word),)
        return tuple(i + len(_SPECIAL) for i in self._tokenizer.encode(word).ids)
