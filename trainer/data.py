"""The data sets: where their texts come from, and whether they are what they should be.

It reads and verifies files that are already on this machine. It never downloads one, and never
decides how a split is cut into batches.
"""

from __future__ import annotations

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

from trainer.config import DataConfig
from trainer.settings import ConfigError
from trainer.tokens import SPLITS, TOKENIZER_VERSION, Lines, Split, Splits, cached_splits

__all__ = ["Splits", "cache_dir", "check_data", "fingerprint", "load_splits"]

# Word-level Penn Treebank (Mikolov et al. 2010) and WikiText-2-v1 (Merity et al. 2017,
# arXiv 1609.07843), both with <unk> in the text already.
_KNOWN: dict[str, dict[Split, tuple[str, str]]] = {
    "ptb": {
        "train": (
            "ptb/ptb.train.txt",
            "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        ),
        "valid": (
            "ptb/ptb.valid.txt",
            "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        ),
        "test": (
            "ptb/ptb.test.txt",
            "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        ),
    },
    "wikitext-2": {
        "train": (
            "wikitext-2/train.txt",
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        ),
        "valid": (
            "wikitext-2/valid.txt",
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        ),
        "test": (
            "wikitext-2/test.txt",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
    },
}
_DIGEST_LENGTH = 64  # hex digits of a sha256

# A word, or a run of one punctuation mark: a ruler of 70 stars is one token.
_PYDOCS_TOKEN = re.compile(r"\w+|([^\w\s])\1*")
_PYDOCS_MIN_COUNT = 2  # so that <unk> is seen, and learned, in training


@dataclass(frozen=True)
class _Source:
    """A data set's words line by line, and a fingerprint of its content."""

    fingerprint: list[str]
    lines: Callable[[Split], Lines]
    min_count: int = 1


@dataclass(frozen=True)
class _File:
    """A split's text, the setting that says where it is, and its sha256 where that is known."""

    path: Path
    setting: str
    sha256: str | None = None


def check_data(config: DataConfig) -> None:
    """Raise ConfigError, in one line, when the data cannot be read: fast, and builds nothing."""
    folder = _cache_dir(None)
    with _cache_errors(folder):
        _source(config, folder)


def fingerprint(config: DataConfig) -> str:
    """Tells the data set's texts and vocabulary from all others. Raises ConfigError as above."""
    folder = cache_dir()
    with _cache_errors(folder):
        return _fingerprint(config, _source(config, folder))


def cache_dir() -> Path:
    """The folder of what this machine keeps for all runs: tokens, checksums, teachers."""
    return _cache_dir(None)


def load_splits(config: DataConfig, cache_dir: Path | None = None) -> Splits:
    """The data set as token ids, tokenized once for all processes of this machine.

    The cache is `cache_dir`, else `HPO_CACHE_DIR`, else `~/.cache/layerdrop-hpo`. Raises
    ConfigError when the data cannot be read, or the cache not be written.
    """
    folder = _cache_dir(cache_dir)
    with _cache_errors(folder):
        source = _source(config, folder)
        name = f"{config.name}-{_fingerprint(config, source)}"
        return cached_splits(folder / name, source.lines, source.min_count)


def _fingerprint(config: DataConfig, source: _Source) -> str:
    content = json.dumps([TOKENIZER_VERSION, config.name, *source.fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _source(config: DataConfig, cache_dir: Path) -> _Source:
    if config.name == "pydocs":
        text = json.dumps(topics, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return _Source([fingerprint], lambda split: _pydocs()[split], _PYDOCS_MIN_COUNT)
    files = _text_files(config) if config.name == "text" else _known_files(config)
    digests = [_checked(files[split], cache_dir) for split in SPLITS]
    return _Source(digests, lambda split: _words(files[split]))


def _text_files(config: DataConfig) -> dict[Split, _File]:
    paths = {"train": config.train, "valid": config.valid, "test": config.test}
    return {
        split: _File(_expanded(paths[split] or "", f"data.{split}"), f"data.{split}")
        for split in SPLITS
    }


def _known_files(config: DataConfig) -> dict[Split, _File]:
    setting = "data.dir" if config.dir else "HPO_DATA_DIR"
    given = config.dir or os.environ.get("HPO_DATA_DIR")
    wanted = f"the folder that holds {config.name}/"
    if not given:
        raise ConfigError(f"data.dir: {config.name} needs it, or HPO_DATA_DIR, to be {wanted}")
    folder = _expanded(given, setting)
    if not os.path.isdir(folder):
        raise ConfigError(f"{setting}: {folder}: no such folder; give {wanted}")
    return {
        split: _File(folder / name, setting, sha256)
        for split, (name, sha256) in _KNOWN[config.name].items()
    }


def _words(file: _File) -> Iterator[list[str]]:
    with _reading(file), file.path.open(encoding="utf-8") as text:
        for line in text:
            yield line.split()


@cache
def _pydocs() -> dict[Split, list[list[str]]]:
    """CPython's help topics, about 90/5/5, drawn by each paragraph's own words.

    Topics repeat each other's paragraphs; drawn so, no paragraph is in two splits.
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


def _checked(file: _File, cache_dir: Path) -> str:
    """The sha256 of a file that is there, is the right one, and holds a word."""
    digest = _digest(file, cache_dir)
    if file.sha256 not in (None, digest):
        raise ConfigError(
            f"{file.path}: its sha256 is {digest}, not {file.sha256}; fetch the original again"
        )
    if not any(_words(file)):
        raise ConfigError(f"{file.setting}: {file.path} holds no words; give a longer text")
    return digest


def _digest(file: _File, cache_dir: Path) -> str:
    """The file's sha256, remembered in the cache by path, size and time of change."""
    with _reading(file):
        stat = file.path.stat()
        identity = f"{file.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    memory = cache_dir / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    # A note cut short by a kill is no note.
    if memory.is_file() and len(known := memory.read_text()) == _DIGEST_LENGTH:
        return known
    with _reading(file), file.path.open("rb") as text:
        digest = hashlib.file_digest(text, "sha256").hexdigest()
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(digest)
    return digest


@contextmanager
def _reading(file: _File) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(
            f"{file.path}: no such file; put it there, or change {file.setting}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.path}: not UTF-8 text: {error.reason}; convert it") from None
    except OSError as error:
        raise ConfigError(
            f"{file.path}: cannot be read: {error.strerror}; change {file.setting}"
        ) from None


def _cache_dir(given: Path | None) -> Path:
    return given or _expanded(
        os.environ.get("HPO_CACHE_DIR") or "~/.cache/layerdrop-hpo", "HPO_CACHE_DIR"
    )


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: the token cache cannot be used: {error.strerror or error}; "
            "set HPO_CACHE_DIR to a folder that can be written"
        ) from None


def _expanded(path: str, where: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}: {path}: {error}; give the full path") from None
