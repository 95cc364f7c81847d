"""The vocabulary, and a cache that is whole for every reader, whatever happens to its builder."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.whole import since_boot
from trainer.data.tokens import SPLITS, Split, cached_splits
from trainer.data.vocabulary import EOS, UNK, Vocabulary

SPAWN = multiprocessing.get_context("spawn")
WORDS: dict[Split, list[list[str]]] = {
    "train": [["a", "b", "a"]] * 50,
    "valid": [["b"]] * 20,
    "test": [["a", "c"]] * 20,
}

lines = st.lists(st.lists(st.text("abcdeß語<>", min_size=1, max_size=3), max_size=6), min_size=1)


@given(lines, st.integers(1, 3))
def test_a_vocabulary_gives_back_the_words_it_kept_and_unk_for_the_rest(
    text: list[list[str]], min_count: int
) -> None:
    words = list(chain.from_iterable(text))
    vocabulary = Vocabulary.of(text, min_count)
    kept = {word for word in words if words.count(word) >= min_count} | {UNK, EOS}
    assert set(vocabulary.words) == kept
    assert len(vocabulary) == len(kept)
    expected = [word if word in kept else UNK for word in [*words, "never seen"]]
    assert vocabulary.decode(vocabulary.encode([*words, "never seen"])) == expected
    assert list(vocabulary.encode(vocabulary.words)) == list(range(len(vocabulary)))


@given(lines, st.integers(1, 3))
def test_ids_follow_falling_frequency_then_the_word(text: list[list[str]], min_count: int) -> None:
    vocabulary = Vocabulary.of(text, min_count)
    seen = vocabulary.decode(vocabulary.encode(chain.from_iterable((*line, EOS) for line in text)))
    ranks = [(-seen.count(word), word) for word in vocabulary.words]
    assert ranks == sorted(ranks)


def test_the_test_split_is_not_opened_until_it_is_asked_for(tmp_path: Path) -> None:
    splits = cached_splits(tmp_path / "entry", WORDS.__getitem__)
    (splits.folder / "test.bin").unlink()
    assert len(splits.tokens("train")) + len(splits.tokens("valid")) == 240
    with pytest.raises(FileNotFoundError):
        splits.tokens("test")


def test_tokens_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    tokens = cached_splits(tmp_path / "entry", WORDS.__getitem__).tokens("train")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_a_vocabulary_past_65536_words_is_kept_in_int32(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(70_000)]
    splits = cached_splits(tmp_path / "large", lambda split: [words])
    tokens = splits.tokens("train")
    assert tokens.dtype == np.int32
    assert splits.vocabulary.decode(tokens) == [*words, EOS]


@pytest.mark.parametrize(
    "name", ["vocabulary.txt", "train.bin", "valid.bin", "test.bin", "manifest.json"]
)
@pytest.mark.parametrize("kept", [None, 0, -1])
def test_a_damaged_cache_is_built_again(tmp_path: Path, name: str, kept: int | None) -> None:
    splits = cached_splits(tmp_path / "entry", WORDS.__getitem__)
    whole = {path.name: path.read_bytes() for path in splits.folder.iterdir()}
    assert set(whole) >= {name, "train.bin"}
    (splits.folder / name).unlink()
    if kept is not None:
        (splits.folder / name).write_bytes(whole[name][:kept])
    again = cached_splits(tmp_path / "entry", WORDS.__getitem__)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == whole


def test_an_entry_is_verified_by_its_digests_once_after_the_machine_started_anew(
    tmp_path: Path,
) -> None:
    """A power cut leaves a file of the right size, and zeros in it."""
    folder = cached_splits(tmp_path / "entry", WORDS.__getitem__).folder
    whole = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(bytes(len(whole)))
    os.utime(folder / "manifest.json", (0, 0))
    cached_splits(folder, WORDS.__getitem__)
    assert (folder / "train.bin").read_bytes() == whole
    os.utime(folder / "manifest.json", (0, 0))
    cached_splits(folder, pytest.fail)
    assert since_boot(folder / "manifest.json"), "it is whole, and need not be read again"


def build_logged(folder: Path, log: Path, hold_at: int, barrier: Barrier | None) -> None:
    """Build in this process, noting each pass over a text; stay for ever in pass `hold_at`."""

    def noted(split: Split) -> Iterator[list[str]]:
        for place, words in enumerate(WORDS[split]):
            if place == len(WORDS[split]) // 2:
                with log.open("a") as file:
                    file.write(f"{split}\n")
                time.sleep(600 if len(log.read_text().split()) == hold_at else 0.1)
            yield words

    if barrier is not None:
        barrier.wait()
    splits = cached_splits(folder, noted)
    for split in SPLITS:
        assert len(splits.tokens(split)) == sum(len(words) + 1 for words in WORDS[split])


def test_processes_that_start_at_once_build_once_and_all_read_the_same(tmp_path: Path) -> None:
    barrier = SPAWN.Barrier(4)
    arguments = (tmp_path / "entry", tmp_path / "log", 0, barrier)
    processes = [SPAWN.Process(target=build_logged, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text().split() == ["train", "train", "valid", "test"]


@pytest.mark.parametrize("hold_at", [1, 2, 3, 4])
def test_a_builder_killed_in_any_pass_leaves_nothing_to_believe_and_no_lock(
    tmp_path: Path, hold_at: int
) -> None:
    folder, log = tmp_path / "entry", tmp_path / "log"
    builder = SPAWN.Process(target=build_logged, args=(folder, log, hold_at, None))
    builder.start()
    with ThreadPoolExecutor() as waiters:
        try:
            wait_for(lambda: log.exists() and len(log.read_text().split()) == hold_at)
            waiter = waiters.submit(cached_splits, folder, WORDS.__getitem__)
            time.sleep(0.2)
            assert not waiter.done()
            assert not folder.exists()
        finally:
            builder.kill()
        splits = waiter.result(timeout=30)
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    assert len(splits.tokens("train")) == 200
    assert splits.vocabulary.words == ("a", EOS, "b", UNK)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["entry"]


def wait_for(done: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
