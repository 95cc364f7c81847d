"""How much memory and time it takes to tokenize 500 MB of text, and whether it all comes back.

    python -m benchmarks.tokenization [TEXT]

The text is TEXT, else CPython's help topics, again and again. Each tokenizer works in a fresh
process of its own, which tells its peak resident memory; this one then compares every word. It
uses the trainer as a training does: the words that have to come back are split here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks.report import Result, report
from trainer.config.sections import DataConfig
from trainer.data.splits import load_splits
from trainer.data.tokens import Splits
from trainer.data.vocabulary import EOS

TEXT_BYTES = 500_000_000
PIECE_TOKENS = 1_000_000
GIB = 2**30

_CHILD = """
import sys, time
from trainer.config.sections import DataConfig
from trainer.data.splits import load_splits
begin = time.perf_counter()
load_splits(DataConfig.model_validate_json(sys.argv[1]))
seconds = time.perf_counter() - begin
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, seconds)
"""


def main() -> None:
    """Tokenize by words and by byte pairs, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenization")
    parser.add_argument("text", type=Path, nargs="?")
    given = parser.parse_args().text
    text = given.read_text(encoding="utf-8") if given else "\n".join(topics.values())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPO_CACHE_DIR"] = folder
        large, small = Path(folder, "large.txt"), Path(folder, "small.txt")
        small.write_text(text, encoding="utf-8")
        repeat(small, large, TEXT_BYTES)
        for tokenizer in ("words", "bpe"):
            config = DataConfig.model_validate(
                {"name": "text", "train": str(large), "valid": str(small), "test": str(small)}
                | {"tokenizer": tokenizer}
            )
            results += _measured(config, large)
    report("tokenization", results)


def repeat(source: Path, target: Path, size: int) -> None:
    """Write `source` to `target` again and again, until it has `size` bytes or more."""
    block = source.read_bytes() + b"\n"
    with target.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


def measure(config: DataConfig) -> tuple[int, float]:
    """Peak resident bytes, and seconds, of a fresh process that tokenizes `config`."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(config.model_dump())],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak, seconds = done.stdout.split()
    return int(peak), float(seconds)


def comes_back(splits: Splits, text: Path) -> bool:
    """Whether the train split's tokens are the words of `text`, all of them and no others."""
    words = _words(text)
    pieces = (splits.vocabulary.decode(piece) for piece in _pieces(splits))
    same = all(piece == list(islice(words, len(piece))) for piece in pieces)
    return same and next(words, None) is None


def _measured(config: DataConfig, text: Path) -> list[Result]:
    peak, seconds = measure(config)
    splits = load_splits(config)
    tokens = len(splits.tokens("train"))
    same = comes_back(splits, text)
    name = config.tokenizer
    return [
        Result(f"{name}: peak memory", peak / GIB, "GiB", "< 1", peak < GIB),
        Result(f"{name}: comes back", float(same), "of all words", "1", same),
        Result(f"{name}: speed", tokens / seconds, "tokens/s"),
        Result(f"{name}: tokens", tokens, "tokens"),
    ]


def _words(text: Path) -> Iterator[str]:
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
            yield EOS


def _pieces(splits: Splits) -> Iterator[list[int]]:
    # Ending at an <eos>: byte pairs cannot be decoded from the middle of a word.
    tokens = splits.tokens("train")
    [eos] = splits.vocabulary.encode([EOS])
    begin = 0
    while begin < len(tokens):
        end = min(begin + PIECE_TOKENS, len(tokens))
        while tokens[end - 1] != eos:
            end -= 1
        yield tokens[begin:end].tolist()
        begin = end


if __name__ == "__main__":
    main()
