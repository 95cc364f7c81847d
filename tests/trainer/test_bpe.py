"""Byte pairs: they give back every word, know all of them, and depend on the train split alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainer.config.sections import DataConfig
from trainer.data.bpe import BytePairs
from trainer.data.splits import load_splits
from trainer.data.tokens import SPLITS, Split, cached_splits
from trainer.data.vocabulary import EOS, UNK

TRAIN = [["the", "cat", "sat"], ["the", "cat", UNK, "sat"], ["<unk>s", "the"]] * 3
LEARNED = BytePairs.of(TRAIN, 270)

words = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda w: [w] == w.split())
    | st.sampled_from([EOS, UNK, "the", "<unk>s", "x<eos>", "Ġ", "Ġthe"])
)


@given(words)
def test_words_come_back_exactly_those_never_seen_too(text: list[str]) -> None:
    for vocabulary in (LEARNED, BytePairs.from_bytes(LEARNED.to_bytes())):
        ids = list(vocabulary.encode(text))
        assert vocabulary.decode(ids) == text
        assert all(0 <= i < len(vocabulary) for i in ids)


@given(words, words)
def test_the_tokens_of_a_word_do_not_depend_on_the_words_around_it(
    before: list[str], after: list[str]
) -> None:
    apart = [*LEARNED.encode(before), *LEARNED.encode(after)]
    assert list(LEARNED.encode([*before, *after])) == apart


def test_frequent_words_are_one_token_and_eos_and_unk_always() -> None:
    lengths = [len(list(LEARNED.encode([word]))) for word in ("the", "cat", EOS, UNK, "<unk>s")]
    assert lengths[:4] == [1, 1, 1, 1]
    assert lengths[4] > 1
    assert len(LEARNED) <= 270


def test_a_vocabulary_has_the_size_asked_for_where_the_text_gives_so_many_pairs() -> None:
    text = [[f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrst"]] * 2
    assert [len(BytePairs.of(text, size)) for size in (258, 300, 400)] == [258, 300, 400]


def test_it_learns_from_the_train_split_alone_and_alike_in_every_process(tmp_path: Path) -> None:
    texts: dict[Split, list[list[str]]] = {"train": TRAIN, "valid": [["a"]], "test": [["b"]]}
    first = cached_splits(tmp_path / "first", texts.__getitem__, byte_pairs=270)
    others = {**texts, "valid": [["zebra"] * 99], "test": [["zebra"] * 99]}
    second = cached_splits(tmp_path / "second", others.__getitem__, byte_pairs=270)
    assert first.vocabulary.to_bytes() == second.vocabulary.to_bytes()
    program = (
        "import sys; from trainer.data.bpe import BytePairs; "
        f"sys.stdout.buffer.write(BytePairs.of({TRAIN!r}, 270).to_bytes())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert elsewhere.stdout == LEARNED.to_bytes()


def test_the_cache_gives_back_the_text_and_counts_its_words(tmp_path: Path) -> None:
    texts: dict[Split, list[list[str]]] = {"train": TRAIN, "valid": [[], ["zebra"]], "test": []}
    for splits in (
        cached_splits(tmp_path / "bpe", texts.__getitem__, byte_pairs=270),
        cached_splits(tmp_path / "words", texts.__getitem__),
    ):
        for split in SPLITS:
            assert splits.words(split) == sum(len(line) + 1 for line in texts[split])
    text = list(chain.from_iterable((*line, EOS) for line in TRAIN))
    splits = cached_splits(tmp_path / "bpe", texts.__getitem__, byte_pairs=270)
    assert splits.vocabulary.decode(splits.tokens("train")) == text
    assert splits.vocabulary.decode(splits.tokens("valid")) == [EOS, "zebra", EOS]


def test_tokenizer_and_size_are_part_of_the_caches_key() -> None:
    def folder(**settings: object) -> Path:
        return load_splits(DataConfig.model_validate(settings)).folder

    folders = [folder(), folder(tokenizer="bpe", vocabulary_size=300), folder(tokenizer="bpe")]
    assert len(set(folders)) == 3
    assert folder(vocabulary_size=300) == folders[0]
