"""Whether a small study's order holds in a big one, against scipy's own functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from scipy import stats
from typer.testing import CliRunner

from hpo.cli import app
from hpo.reading.correlation import agreement, rank_correlation
from storage import Ledger
from tests.hpo.stage import Stage
from trainer.config.settings import ConfigError

LR = {"optim.lr": {"type": "float", "low": 0.0, "high": 1.0}}
DROPOUT = {"model.dropout": {"type": "float", "low": 0.0, "high": 1.0}}
POLICY = {"layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]}}

Trials = list[tuple[dict[str, float | str], float]]


def study(ledger: Path, trials: Trials, **changes: object) -> Ledger:
    """The study `played`, with these parameters and values completed."""
    stage = Stage(f"sqlite:///{ledger}", **{"space": LR, **changes})
    found = optuna.load_study(study_name="played", storage=stage.ledger.storage)
    for params, value in trials:
        distributions = {
            path: CategoricalDistribution(sorted({str(point[path]) for point, _ in trials}))
            if isinstance(given, str)
            else FloatDistribution(0.0, 1.0)
            for path, given in params.items()
        }
        found.add_trial(create_trial(params=params, distributions=distributions, value=value))
    return stage.ledger


def at(*points: tuple[float, float]) -> Trials:
    return [({"optim.lr": lr}, value) for lr, value in points]


floats = st.floats(-1e3, 1e3).map(lambda value: round(value, 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=3, max_size=9))
def test_rho_and_tau_are_scipys_own(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [list(side) for side in zip(*pairs, strict=True)]
    found = agreement(ours, theirs)
    if len(set(ours)) == 1 or len(set(theirs)) == 1:
        assert set(found.values()) == {None}
        return
    assert found["spearman"] == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(ours, theirs).statistic)


def test_p_is_exact_for_few_pairs_and_an_interval_wants_more() -> None:
    found = agreement([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert found["spearman_p"] == pytest.approx(2 / 24), "of 4! orders, two are as extreme"
    assert found["spearman_95"] is None
    many = [float(n) for n in range(12)]
    low, high = agreement(many, [*many[1::-1], *many[2:]])["spearman_95"]
    assert 0.7 < low < high <= 1.0


def test_only_shared_configurations_count_and_repeated_ones_by_their_mean(tmp_path: Path) -> None:
    small = study(
        tmp_path / "small.db",
        at((0.1, 5.0), (0.1, 1.0), (0.2, 2.0), (0.1 + 0.2, 4.0), (0.9, 0.0)),
    )
    big = study(tmp_path / "big.db", at((0.3, 9.0), (0.2, 7.0), (0.1, 8.0), (0.8, 1.0)))
    found = rank_correlation((small, "played"), (big, "played"))
    assert (found["paths"], found["configurations"]) == (["optim.lr"], 3)
    assert found["metrics"]["valid_ppl"]["spearman"] == pytest.approx(1.0)


def test_what_only_one_study_searches_makes_no_configuration(tmp_path: Path) -> None:
    points: Trials = [
        ({"optim.lr": lr, "model.dropout": lr / 2, "layerdrop.policy": policy}, value)
        for lr, policy, value in [(0.1, "static", 3.0), (0.1, "linear", 2.0), (0.2, "static", 1.0)]
    ]
    small = study(tmp_path / "small.db", points, space={**LR, **DROPOUT, **POLICY})
    others: Trials = [({k: v for k, v in p.items() if k != "model.dropout"}, v) for p, v in points]
    big = study(tmp_path / "big.db", others, space={**LR, **POLICY})
    found = rank_correlation((small, "played"), (big, "played"))
    assert found["paths"] == ["layerdrop.policy", "optim.lr"]
    assert found["configurations"] == 3


def test_named_choices_are_the_same_where_their_settings_are(tmp_path: Path) -> None:
    def choosing(**choices: dict[str, Any]) -> dict[str, Any]:
        return {"layerdrop": {"type": "categorical", "choices": choices}}

    def choose(*named: tuple[str, float]) -> Trials:
        return [({"layerdrop": name}, value) for name, value in named]

    low, high = {"policy": "static", "p_init": 0.1}, {"policy": "static", "p_init": 0.4}
    small = study(
        tmp_path / "small.db",
        choose(("low", 3.0), ("high", 2.0), ("off", 1.0)),
        space=choosing(low=low, high=high, off={}),
    )
    big = study(
        tmp_path / "big.db",
        choose(("low", 3.0), ("some", 2.0), ("none", 1.0)),
        space=choosing(low=high, some=low, none={"policy": "none"}),
    )
    found = rank_correlation((small, "played"), (big, "played"))
    assert found["paths"] == ["layerdrop.p_init", "layerdrop.policy"]
    assert found["configurations"] == 3
    assert found["metrics"]["valid_ppl"]["spearman"] == pytest.approx(0.5), "low is not low"


def test_too_little_in_common_says_what_to_do(tmp_path: Path) -> None:
    small = study(tmp_path / "small.db", at((0.1, 5.0), (0.2, 1.0), (0.3, 2.0)))
    big = study(tmp_path / "big.db", at((0.1, 5.0), (0.2, 1.0)))
    with pytest.raises(ConfigError, match=r"2 configurations in common.* warm_start: \{study: pl"):
        rank_correlation((small, "played"), (big, "played"))
    other = study(tmp_path / "other.db", [], space=DROPOUT)
    with pytest.raises(ConfigError, match="search no train setting in common"):
        rank_correlation((small, "played"), (other, "played"))
    other = study(tmp_path / "third.db", [], objectives=[{"metric": "step_seconds"}])
    with pytest.raises(ConfigError, match="optimize different metrics: valid_ppl; step_seconds"):
        rank_correlation((small, "played"), (other, "played"))


def test_the_command_says_it_for_people_and_for_programs(tmp_path: Path) -> None:
    points = at((0.1, 3.0), (0.2, 1.0), (0.3, 2.0))
    small, big = study(tmp_path / "small.db", points), study(tmp_path / "big.db", points[::-1])
    command = ["transfer", "played", "played"]
    storage = ["--storage", small.url, "--big-storage", big.url]
    said = CliRunner().invoke(app, [*command, *storage]).stdout
    assert "played and played: 3 configurations in common, by" in said
    assert "valid_ppl: Spearman's rho 1.000 (p 0.33)" in said
    found = json.loads(CliRunner().invoke(app, [*command, *storage, "--json"]).stdout)
    assert found["metrics"]["valid_ppl"]["kendall"] == 1.0
