"""The replay of searches: its clock against times worked out by hand, and the table it needs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.search_clock import Training, simulate
from benchmarks.search_methods import PRUNERS, SAMPLERS, make_search
from benchmarks.search_replay import seconds_to, value_at
from benchmarks.search_table import (
    EVAL_EVERY,
    STEPS,
    Row,
    append_record,
    load_table,
    params_at,
    points,
    read_records,
)

# (0,) and (1,) take 2 s an evaluation, (2,) diverges after 3 s, (3,) is fast and best.
TABLE = {
    (0,): Row({}, False, [90.0, 50.0], [2.0, 2.0]),
    (1,): Row({}, False, [80.0, 40.0], [2.0, 2.0]),
    (2,): Row({}, True, [95.0], [1.0, 2.0]),
    (3,): Row({}, False, [70.0, 30.0], [0.5, 1.0]),
}


class InOrder:
    """Proposes the rows in order; of those in `stopped` no more than one evaluation is trained."""

    def __init__(self, *stopped: int) -> None:
        self.told: list[tuple[str, int, int]] = []
        self._stopped = stopped
        self._asked = 0

    def next(self) -> Training:
        self._asked += 1
        return Training(self._asked - 1, ((self._asked - 1) % 4,))

    def evaluated(self, training: Training, valid_ppl: float) -> bool:
        self.told.append(("evaluated", training.number, training.step))
        return training.number not in self._stopped

    def finished(self, training: Training, valid_ppl: float) -> None:
        self.told.append(("finished", training.number, training.step))

    def diverged(self, training: Training) -> None:
        self.told.append(("diverged", training.number, training.step))


@pytest.mark.parametrize(
    ("workers", "stopped", "improvements"),
    [
        (1, (), [(4.0, 50.0), (8.0, 40.0), (12.5, 30.0)]),
        # (0,) and (1,) to 4 s; then (2,) to 7 s beside (3,), which ends at 5.5 s.
        (2, (), [(4.0, 50.0), (4.0, 40.0), (5.5, 30.0)]),
        # (0,) is stopped at 2 s: (2,) from there to 5 s, and (3,) after (1,), from 4 s.
        (2, (0,), [(4.0, 40.0), (5.5, 30.0)]),
        (1, (0, 1), [(8.5, 30.0)]),
    ],
)
def test_trainings_end_when_their_seconds_say(
    workers: int, stopped: tuple[int, ...], improvements: list[tuple[float, float]]
) -> None:
    assert simulate(InOrder(*stopped), TABLE, workers, 100.0) == improvements


def test_what_ends_after_the_budget_does_not_count() -> None:
    assert simulate(InOrder(), TABLE, 1, 12.0) == [(4.0, 50.0), (8.0, 40.0)]


def test_a_search_is_told_of_every_evaluation_and_ending_in_the_order_of_time() -> None:
    search, step = InOrder(0), EVAL_EVERY
    simulate(search, TABLE, 2, 100.0)
    assert search.told == [
        ("evaluated", 0, step),
        ("evaluated", 1, step),
        ("evaluated", 2, step),
        ("finished", 1, 2 * step),
        ("evaluated", 3, step),
        ("diverged", 2, step),
        ("finished", 3, 2 * step),
    ]


def test_regret_is_read_off_the_improvements() -> None:
    improvements = [(4.0, 50.0), (8.0, 40.0)]
    assert [value_at(at, improvements) for at in (3.9, 4.0, 9.0)] == [math.inf, 50.0, 40.0]
    assert [seconds_to(ppl, improvements) for ppl in (50.0, 45.0, 30.0)] == [4.0, 8.0, math.inf]


def test_the_kept_table_has_every_point_of_the_grid_whole() -> None:
    table = load_table()
    assert len(table) >= 150
    assert set(table) == set(points())
    for point, row in table.items():
        assert row.params == params_at(point)
        assert len(row.seconds) == len(row.valid_ppl) + row.diverged
        assert all(math.isfinite(value) and value > 0 for value in row.valid_ppl + row.seconds)
        assert row.diverged or len(row.valid_ppl) == STEPS // EVAL_EVERY >= 15


def test_a_line_that_a_kill_cut_short_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_record(path, [1])
    with path.open("a") as file:
        file.write("[2")
    assert read_records(path) == [[1]]
    append_record(path, [3])
    assert read_records(path) == [[1], [3]]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_the_same_seed_replays_the_same_search(pruner: str) -> None:
    table = {point: TABLE[point[0],] for point in points()}
    assert "tpe" in SAMPLERS
    first, second = (simulate(make_search("tpe", pruner, 1), table, 2, 8.0) for _ in range(2))
    assert first == second
