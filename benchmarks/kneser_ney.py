"""Two count models that a trained language model must beat: add-one unigram, Kneser-Ney bigram.

    python -m benchmarks.kneser_ney TRAIN VALID [TEST]

reads plain text, one sentence a line, and prints the perplexities, `<eos>` counted per line and
words not in TRAIN read as `<unk>`. On Penn Treebank's test text they are 639.8 and 186.6, on that
of WikiText-2 914.4 and 266.8. It shares no code with the trainer, so that it also checks how the
trainer tokenizes and counts. It tunes nothing: the discount is fixed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Result, report

DISCOUNT = 0.75

Ids = NDArray[np.integer]
Probabilities = NDArray[np.float64]


class KneserNey:
    """Interpolated Kneser-Ney bigram model (Kneser & Ney 1995), one absolute discount.

    p(w | h) = max(c(h, w) - D, 0) / c(h) + D f(h) / c(h) * q(w), with f(h) the number of words seen
    after h, and q(w) proportional to 1 + the number of words seen before w. The 1 gives a word that
    training never saw a probability too; a history that it never saw leaves q alone.
    """

    def __init__(self, train: Ids, vocabulary: int) -> None:
        """Count the tokens `train` (T,) of ids below `vocabulary`."""
        self._vocabulary = vocabulary
        pairs = _histories(train) * vocabulary + train
        self._pairs, self._counts = np.unique(pairs, return_counts=True)
        self._history_counts = np.bincount(_histories(train), minlength=vocabulary)
        self._followers = np.bincount(self._pairs // vocabulary, minlength=vocabulary)
        predecessors = np.bincount(self._pairs % vocabulary, minlength=vocabulary)
        self._continuation = (predecessors + 1) / (len(self._pairs) + vocabulary)

    def probabilities(self, histories: Ids, words: Ids) -> Probabilities:
        """p(words[i] | histories[i]), shaped as the two together."""
        pairs = np.asarray(histories, np.int64) * self._vocabulary + words
        places = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
        counts = np.where(self._pairs[places] == pairs, self._counts[places], 0)
        seen = self._history_counts[histories]
        backoff = np.where(seen > 0, DISCOUNT * self._followers[histories], 1.0)
        numerator = np.maximum(counts - DISCOUNT, 0.0) + backoff * self._continuation[words]
        return np.asarray(numerator / np.maximum(seen, 1), np.float64)


def kneser_ney_perplexity(train: Ids, text: Ids, vocabulary: int) -> float:
    """Perplexity of `text` (T,) under the KneserNey model of `train` (T',)."""
    return _perplexity(KneserNey(train, vocabulary).probabilities(_histories(text), text))


def unigram_perplexity(train: Ids, text: Ids, vocabulary: int) -> float:
    """Perplexity of `text` (T,) under add-one word frequencies of `train` (T',)."""
    counts = np.bincount(train, minlength=vocabulary)
    return _perplexity((counts[text] + 1) / (len(train) + vocabulary))


def read_texts(paths: Sequence[Path]) -> tuple[list[Ids], int]:
    """Each text's ids in the vocabulary of the first, and its size.

    Raises ValueError for a word that is not in the first text, where that has no `<unk>`.
    """
    texts = [list(_words(path)) for path in paths]
    ids = {word: number for number, word in enumerate(dict.fromkeys(texts[0]))}
    unknown = next((word for text in texts for word in text if word not in ids), None)
    if unknown is not None and "<unk>" not in ids:
        raise ValueError(f"{unknown!r} is not a word of {paths[0]}, which has no <unk>")
    return [np.array([ids[w if w in ids else "<unk>"] for w in text]) for text in texts], len(ids)


def _words(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
            yield "<eos>"


def _histories(tokens: Ids) -> Ids:
    # The last token, an <eos>, stands before the first: every sentence begins after an <eos>.
    return np.roll(np.asarray(tokens, np.int64), 1)


def _perplexity(probabilities: Probabilities) -> float:
    return float(np.exp(-np.log(probabilities).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kneser_ney")
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    paths = {name: path for name, path in vars(parser.parse_args()).items() if path}
    try:
        (train, *others), vocabulary = read_texts(list(paths.values()))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    results = []
    for name, text in zip(list(paths)[1:], others, strict=True):
        unigram = unigram_perplexity(train, text, vocabulary)
        bigram = kneser_ney_perplexity(train, text, vocabulary)
        results += [
            Result(f"{name}: add-one unigram", unigram, "perplexity"),
            Result(f"{name}: Kneser-Ney bigram, discount {DISCOUNT}", bigram, "perplexity"),
        ]
    report("kneser_ney", results)


if __name__ == "__main__":
    main()
