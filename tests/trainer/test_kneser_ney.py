"""The count models that trained models are compared with, against values worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kneser_ney import KneserNey, kneser_ney_perplexity, read_texts, unigram_perplexity

ROOT = Path(__file__).parents[2]
PTB = ROOT.parent / "shared" / "data" / "ptb"
A, B, C, EOS, NEVER = range(5)
TRAIN = np.array(
    [A, B, EOS, A, C, EOS]
)  # "a b", "a c"; pairs: eos a (twice), a b, b eos, a c, c eos


def test_the_probabilities_of_every_history_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    train = rng.zipf(1.5, 2000).clip(max=40) - 1
    histories, words = np.divmod(np.arange(50 * 50), 50)  # the ids 40 to 49 are never seen
    table = KneserNey(train, 50).probabilities(histories, words).reshape(50, 50)
    np.testing.assert_allclose(table.sum(axis=1), 1.0)
    assert table.min() > 0


@pytest.mark.parametrize(
    ("history", "word", "expected"),
    [
        # Five kinds of pair, so q(b) = (1 + 1) / (5 + 5); c(a) = 2, with two followers.
        (A, B, (1 - 0.75) / 2 + 0.75 * 2 / 2 * 0.2),
        (EOS, A, (2 - 0.75) / 2 + 0.75 * 1 / 2 * 0.2),
        (A, NEVER, 0.75 * 2 / 2 * 0.1),
        (NEVER, EOS, 0.3),
    ],
)
def test_a_bigram_has_the_probability_worked_out_by_hand(
    history: int, word: int, expected: float
) -> None:
    [probability] = KneserNey(TRAIN, 5).probabilities(np.array([history]), np.array([word]))
    assert probability == pytest.approx(expected)


def test_perplexity_is_the_inverse_geometric_mean_with_eos_before_the_first_word() -> None:
    # p(a | eos), p(b | a), p(eos | b)
    expected = (0.7 * 0.275 * 0.475) ** (-1 / 3)
    assert kneser_ney_perplexity(TRAIN, np.array([A, B, EOS]), 5) == pytest.approx(expected)


def test_the_unigram_adds_one_to_every_count() -> None:
    expected = (3 / 11 * 1 / 11) ** (-1 / 2)
    assert unigram_perplexity(TRAIN, np.array([A, NEVER]), 5) == pytest.approx(expected)


def test_ids_of_any_integer_type_give_the_same_perplexity() -> None:
    train = np.random.default_rng(0).integers(0, 400, 5000)
    narrow = train.astype(np.uint16)  # 400 * 400 pairs overflow it
    assert kneser_ney_perplexity(narrow, narrow, 400) == kneser_ney_perplexity(train, train, 400)


def test_a_word_outside_the_vocabulary_is_unk_or_refused(tmp_path: Path) -> None:
    with_unk, without, text = (tmp_path / name for name in ("with", "without", "text"))
    with_unk.write_text("a <unk>\n")
    without.write_text("a b\n")
    text.write_text("a zebra\n\n")
    (_, ids), size = read_texts([with_unk, text])
    assert (ids.tolist(), size) == ([0, 1, 2, 2], 3)  # an empty line is an <eos> too
    with pytest.raises(ValueError, match="'zebra' is not a word of .*without"):
        read_texts([without, text])


@pytest.mark.parametrize("real", [False, pytest.param(True, id="ptb")])
def test_the_program_ends_with_one_json_line(tmp_path: Path, real: bool) -> None:
    paths = [PTB / f"ptb.{split}.txt" for split in ("train", "valid", "test")]
    if real and not paths[0].exists():
        pytest.skip("Penn Treebank is not here; the toy corpus covers the program")
    if not real:
        paths = [tmp_path / split for split in ("train", "valid", "test")]
        for path in paths:
            path.write_text("a b\na c\n")
    command = [sys.executable, "-m", "benchmarks.kneser_ney", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["benchmark"] == "kneser_ney"
    assert [set(r) for r in record["results"]] == [{"name", "value", "unit", "goal", "met"}] * 4
    if real:
        *_, unigram, bigram = (round(result["value"], 1) for result in record["results"])
        assert (unigram, bigram) == (639.8, 186.6)
