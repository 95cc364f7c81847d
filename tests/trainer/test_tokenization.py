"""Tokenizing streams: memory does not grow with the text."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest

from benchmarks.tokenization import comes_back, measure, repeat
from trainer.config.sections import DataConfig
from trainer.data.splits import load_splits

pytestmark = pytest.mark.slow

MB = 10**6


@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
def test_memory_does_not_grow_with_the_text_and_every_word_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path))
    block = tmp_path / "block.txt"
    block.write_text("\n".join(topics.values()))
    peaks = []
    for size in (MB, 13 * MB):
        text = tmp_path / f"{size}.txt"
        repeat(block, text, size)
        config = DataConfig.model_validate(
            {"name": "text", "train": str(text), "valid": str(block), "test": str(block)}
            | {"tokenizer": tokenizer}
        )
        peaks.append(measure(config)[0])
    assert peaks[1] - peaks[0] < 3.5 * MB, "of 12 MB more"
    assert peaks[1] < 300 * MB
    assert comes_back(load_splits(config), text)
