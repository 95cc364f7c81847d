"""The data sets: where their texts come from, and whether they are what they should be.

This module reads and verifies files that are on this machine already. `fetch.py` downloads them,
and `batches.py` cuts a split into batches.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from trainer.config.cache import cache_dir
from trainer.config.paths import absolute
from trainer.config.sections import DataConfig
from trainer.config.settings import ConfigError
from trainer.data.batches import check_long_enough, tokens_wanted
from trainer.data.corpora import CORPORA
from trainer.data.tokens import (
    SPLITS,
    TOKENIZER_VERSION,
    TUNING,
    Split,
    Splits,
    cached_splits,
    check_entry,
)
from trainer.data.vocabulary import Lines

# A word, or a run of one punctuation mark: a ruler of 70 stars is one token.
_PYDOCS_TOKEN = re.compile(r"\w+|([^\w\s])\1*")
_PYDOCS_MIN_COUNT = 2  # so that <unk> is seen, and learned, in training
_PYDOCS_TOKENS = 70_000  # each Python's help topics have more

_REPORTED_CHARACTERS = 2**20  # a report of progress for each line would cost more than the line

_PIECE_BYTES = 2**20  # of a text that are decoded at a time

OnText = Callable[[int], None]  # told how many more characters of the texts have been read


@dataclass(frozen=True)
class _Source:
    """A data set's words line by line, and a fingerprint of its content."""

    fingerprint: list[str]
    lines: Callable[[Split], Lines]
    min_count: int = 1
    at_least: int = 0  # tokens in its train split


@dataclass(frozen=True)
class _File:
    """A split's text, the setting that says where it is, and what to do if it is missing.

    `checksum` is `algorithm:hex digits`, where it is known.
    """

    path: Path
    setting: str
    remedy: str
    checksum: str | None = None


def check_data(config: DataConfig, *, test: bool = False) -> None:
    """Raise ConfigError, in one line, when the data cannot be read. It is fast and builds nothing.

    So it does when the cache cannot be written. The test split is looked at only if `test` is true.
    """
    with _cache_errors():
        source = _source(config, splits=SPLITS if test else TUNING)
        check_entry(_entry(config, source, test=test))


def check_length(config: DataConfig) -> None:
    """Raise ConfigError when the train split, which can be read, is too short for a batch.

    Only a text that may be too short is read to its end, and tokenized.
    """
    source = _source(config, splits=("train",))
    wanted, found = tokens_wanted(config.context, config.batch_size), 0
    if wanted <= source.at_least:
        return
    for words in source.lines("train"):
        found += len(words) + 1  # each word is a token, or several, and so is the end of a line
        if found >= wanted:
            return
    check_long_enough(len(load_splits(config).tokens("train")), config.context, config.batch_size)


def fingerprint(config: DataConfig) -> str:
    """A digest of the texts of train and valid and of the vocabulary.

    Raises ConfigError as `check_data` does.
    """
    with _cache_errors():
        return _fingerprint(config, _source(config))


def load_splits(config: DataConfig, on_text: OnText | None = None, *, test: bool = False) -> Splits:
    """The data set as token ids, tokenized once for all processes of this machine.

    The test split is read, and can be asked for, only with `test`, which only evaluations set.
    `on_text` is called as text files are read. Raises ConfigError when the data cannot be read,
    or the cache cannot be written.
    """
    byte_pairs = config.vocabulary_size if config.tokenizer == "bpe" else None
    with _cache_errors():
        splits = SPLITS if test else TUNING
        source = _source(config, on_text, splits)
        entry = _entry(config, source, test=test)
        return cached_splits(entry, source.lines, source.min_count, byte_pairs, splits)


def _entry(config: DataConfig, source: _Source, *, test: bool) -> Path:
    phase = "-evaluation" if test else ""
    return cache_dir() / f"{config.name}-{_fingerprint(config, source)}{phase}"


def data_key(config: DataConfig, *, test: bool) -> str:
    """The name of the token cache's entry that `load_splits` gives: a digest of all it reads.

    Raises ConfigError as `fingerprint` does.
    """
    with _cache_errors():
        return _entry(config, _source(config, splits=SPLITS if test else TUNING), test=test).name


def _fingerprint(config: DataConfig, source: _Source) -> str:
    tokenizer = ["bpe", config.vocabulary_size] if config.tokenizer == "bpe" else []
    content = json.dumps([TOKENIZER_VERSION, config.name, *source.fingerprint, *tokenizer])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def data_folder(given: str | None) -> Path:
    """Where the published data sets are: `given`, else `HPO_DATA_DIR`, else in the cache."""
    if given:
        return Path(absolute(given, "data.dir"))
    if in_environment := os.environ.get("HPO_DATA_DIR"):
        return Path(absolute(in_environment, "HPO_DATA_DIR"))
    return cache_dir() / "data"


def _source(
    config: DataConfig, on_text: OnText | None = None, splits: tuple[Split, ...] = TUNING
) -> _Source:
    if config.name == "pydocs":
        of_split, least = (lambda split: _pydocs()[split]), _PYDOCS_TOKENS
        return _Source([_pydocs_digest()], of_split, _PYDOCS_MIN_COUNT, least)
    files = _text_files(config) if config.name == "text" else _known_files(config)
    digests = [_checked(files[split]) for split in splits]
    return _Source(digests, lambda split: _words(files[split], on_text))


def _text_files(config: DataConfig) -> dict[Split, _File]:
    return {
        split: _File(
            Path(absolute(path, f"data.{split}")),
            f"data.{split}",
            f"put it there, or change data.{split}",
        )
        for split in SPLITS
        if (path := getattr(config, split)) is not None
    }


def _known_files(config: DataConfig) -> dict[Split, _File]:
    setting = "data.dir" if config.dir else "HPO_DATA_DIR"
    folder = data_folder(config.dir)
    wanted = f"the folder that holds {config.name}/"
    if (config.dir or os.environ.get("HPO_DATA_DIR")) and not os.path.isdir(folder):
        raise ConfigError(f"{setting}: {folder}: no such folder; give {wanted}")
    corpus = CORPORA[config.name]
    into = f" --dir {config.dir}" if config.dir else ""
    remedy = f"`hpo data prepare {config.name}{into}` fetches it; or make {setting} {wanted}"
    return {
        split: _File(folder / corpus.file(split), setting, remedy, corpus.checksums[split])
        for split in SPLITS
    }


def _words(file: _File, on_text: OnText | None = None) -> Iterator[list[str]]:
    read = 0
    with _reading(file), file.path.open(encoding="utf-8") as text:
        for line in text:
            yield line.split()
            read += len(line)
            if on_text is not None and read >= _REPORTED_CHARACTERS:
                on_text(read)
                read = 0


@cache
def _pydocs_digest() -> str:
    return hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()


@cache
def _pydocs() -> dict[Split, list[list[str]]]:
    """CPython's help topics, split about 90/5/5 by a hash of each paragraph's words.

    Topics repeat each other's paragraphs; the hash puts equal paragraphs into the same split.
    """
    splits: dict[Split, list[list[str]]] = {split: [] for split in SPLITS}
    by_draw: dict[int, Split] = {0: "valid", 1: "test"}
    for topic in sorted(topics):
        for paragraph in topics[topic].lower().split("\n\n"):
            digest = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
            split = by_draw.get(int.from_bytes(digest[:8], "big") % 20, "train")
            for line in [*paragraph.split("\n"), ""]:
                splits[split].append([match[0] for match in _PYDOCS_TOKEN.finditer(line)])
    return splits


def _checked(file: _File) -> str:
    """The checksum of a file. Raises ConfigError if it is missing, empty or not the right one."""
    algorithm, _, wanted = (file.checksum or "sha256:").partition(":")
    digest = _digest(file, algorithm)
    if wanted not in ("", digest):
        raise ConfigError(
            f"{file.path}: its {algorithm} is {digest}, not {wanted}; fetch the original again"
        )
    if not any(_words(file)):
        raise ConfigError(f"{file.setting}: {file.path} holds no words; give a longer text")
    return digest


def _digest(file: _File, algorithm: str) -> str:
    """The file's checksum, remembered in the cache by path, size and time of change.

    Raises ConfigError for a file of the user's that is not UTF-8 to its end.
    """
    with _reading(file):
        stat = file.path.stat()
        identity = f"utf-8 {file.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    memory = cache_dir() / algorithm / hashlib.sha256(identity.encode()).hexdigest()
    # A note that a kill has cut short does not count.
    length = 2 * hashlib.new(algorithm).digest_size
    if memory.is_file() and len(known := memory.read_text()) == length:
        return known
    with _reading(file), file.path.open("rb") as text:
        if file.checksum is None:
            for _ in codecs.iterdecode(iter(lambda: text.read(_PIECE_BYTES), b""), "utf-8"):
                pass
            text.seek(0)
        digest = hashlib.file_digest(text, algorithm).hexdigest()
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(digest)
    return digest


@contextmanager
def _reading(file: _File) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{file.path}: no such file; {file.remedy}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.path}: not UTF-8 text: {error.reason}; convert it") from None
    except OSError as error:
        raise ConfigError(
            f"{file.path}: cannot be read: {error.strerror}; change {file.setting}"
        ) from None


@contextmanager
def _cache_errors() -> Iterator[None]:
    folder = cache_dir()
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: the token cache cannot be used: {error.strerror or error}; "
            "set HPO_CACHE_DIR to a folder that can be written"
        ) from None
