"""Comparisons: recipes under one budget and the same seeds, their table, and going on with one."""

from __future__ import annotations

import csv
import io
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from typer.testing import CliRunner

from hpo.cli import app
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.evaluation.comparison_results import conclude_comparison
from hpo.evaluation.comparisons import Comparison, plan_comparison
from hpo.evaluation.evaluations import plan_evaluation
from hpo.evaluation.phase import enter, is_trained
from hpo.evaluation.recipes import DEFAULT, names_in, settings_of, sub_model_depths
from hpo.reading import comparison_table
from hpo.service import run as service
from hpo.service.launch import Launch
from hpo.study.load import shipped
from storage import Point
from tests.hpo.evaluations import controller, tuned
from tests.hpo.stage import STUDY, Stage, finish, play
from trainer.config.sections import LayerDropConfig
from trainer.config.settings import ConfigError
from trainer.config.train import resolve


@pytest.fixture(autouse=True)
def teachers_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))


def planned(stage: Stage, *recipes: str, seeds: int = 3, name: str = "table") -> Comparison:
    return plan_comparison(stage.ledger, "played", recipes, seeds, name, "/runs")


def train(runs: Controller, *finals: float, curve: tuple[tuple[int, float], ...] = ()) -> list[Any]:
    """Play trainings that end with these valid perplexities; their train configs."""
    configs = []
    for valid in finals:
        assignment = runs.next()
        assert assignment is not None
        configs.append(assignment.config)
        depths = {f"valid_ppl_depth_{d}": valid + 10 * d for d in (2, 3)}
        for step, ppl in curve:
            metrics = measured(ppl, step)
            runs.handle(
                assignment.number,
                assignment.attempt.number,
                Message("evaluated", step, metrics),
            )
        last = {**measured(valid, 300), "test_ppl": valid + 1, **depths}
        runs.handle(assignment.number, assignment.attempt.number, Message("finished", 300, last))
    return configs


def measured(valid: float, step: int) -> dict[str, float]:
    return {"valid_ppl": valid, "train_seconds": step / 10, "tokens_per_second": 5e3,
            "peak_memory_bytes": 2.0**30}  # fmt: skip


def test_recipes_are_trained_under_one_budget_and_the_same_seeds(url: str) -> None:
    stage = tuned(url, 9.0, 5.0, 6.0)
    made = planned(stage, "baseline-a", "baseline-b", "best")
    record, trials = enter(stage.ledger, made, "/runs")
    assert (record.name, trials) == ("table", 9)
    configs = train(controller(stage.ledger, record, trials), *[6.0] * 9)
    assert [config["seed"] for config in configs] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {config["steps"] for config in configs} == {300}
    assert {config["phase"] for config in configs} == {"evaluation"}
    dropping = [config["layerdrop"]["policy"] for config in configs[:3]]
    best = stage.trials[1].params
    assert dropping == ["none", "static", best["layerdrop.policy"]]
    rates = [config["optim"]["lr"] for config in configs[:3]]
    assert rates == [stage.config.train["optim"]["lr"]] * 2 + [best["optim.lr"]]
    assert [config["evaluation"]["depths"] for config in configs] == [[2, 3]] * 9
    assert is_trained(stage.ledger, record)


def test_the_table_has_what_is_computed_by_hand(url: str) -> None:
    stage = tuned(url, 9.0, 5.0)
    made = planned(stage, "baseline-a", "linear")
    record, trials = enter(stage.ledger, made, "/runs")
    runs = controller(stage.ledger, record, trials)
    ours, theirs = [10.0, 12.0, 14.0], [11.0, 15.0, 16.0]
    for valid, other in zip(ours, theirs, strict=True):
        train(runs, valid, other, curve=((100, 40.0), (200, 15.5)))
    found = conclude_comparison(stage.ledger, made)
    first, second = found["recipes"]
    assert first["valid_ppl"] == {"mean": 12.0, "sd": 2.0}
    assert second["test_ppl"] == {"mean": 15.0, "sd": pytest.approx(statistics.stdev(theirs))}
    shares = {share: (d["depth"], d["mean"]) for share, d in first["sub_models"].items()}
    assert shares == {"3/4": (3, 42.0), "1/2": (2, 32.0)}
    difference = second["differences"]["test_ppl"]
    # Differences 1, 3, 2: mean 2, deviation 1; Student's t at 97.5 % and 2 degrees: 4.3027.
    assert (difference["pairs"], difference["mean"]) == (3, 2.0)
    assert difference["high"] - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2.0 - difference["low"] == pytest.approx(difference["high"] - 2.0)
    assert first["differences"]["test_ppl"] is None
    # All reached the worst end, 16.0; their evaluation of 15.5 at step 200 was the first there.
    assert found["target_ppl"] == 16.0
    assert second["steps_to_target"] == {"mean": 200.0, "sd": 0.0}
    assert second["seconds_to_target"] == {"mean": 20.0, "sd": 0.0}
    near = conclude_comparison(stage.ledger, made, against="linear", target_ppl=11.5)
    assert [row["reached_target"] for row in near["recipes"]] == [1, 1]
    assert near["recipes"][0]["differences"]["valid_ppl"]["mean"] == -2.0
    kept = optuna.load_study(study_name="table", storage=stage.ledger.storage)
    assert kept.user_attrs["comparison"] == near


def test_a_comparison_killed_and_typed_again_trains_nothing_twice_and_keeps_its_best(
    url: str,
) -> None:
    stage = tuned(url, 9.0, 5.0)
    first = planned(stage, "baseline-a", "best", seeds=2)
    record, trials = enter(stage.ledger, first, "/runs")
    dead = controller(stage.ledger, record, trials)
    train(dead, 6.0, 7.0)
    assert dead.next() is not None, "the third has begun"
    stage.lapse()
    lease = stage.ledger.acquire(stage.ledger.study("played"), trials=3)
    grown = Controller(stage.ledger, stage.ledger.study("played"), stage.config, lease, "/runs")
    finish(grown, 1.0)
    stage.lapse()
    again = planned(stage, seeds=2)
    assert [*again.recipes] == ["baseline-a", "best"], "those that it was begun with"
    assert again.note is not None
    assert "best: as it was" in again.note
    record, trials = enter(stage.ledger, again, "/runs")
    assert trials == 4
    configs = train(controller(stage.ledger, record, trials), 6.5, 7.5)
    assert configs[1]["optim"]["lr"] == stage.trials[1].params["optim.lr"], "the best as it was"
    found = conclude_comparison(stage.ledger, again)
    assert [row["seeds"] for row in found["recipes"]] == [[1, 2], [1, 2]]
    assert found["best"] == 1
    more = planned(stage, seeds=3)
    assert enter(stage.ledger, more, "/runs")[1] == 6, "more seeds train only what is new"
    origins = [t.user_attrs["origin"] for t in stage.ledger.trials(record, *TrialState)]
    assert {origin["best"] for origin in origins} == {1}, "that is what is trained"


def test_a_comparison_keeps_its_seeds_whatever_the_study_draws_later(url: str) -> None:
    space = {**STUDY["space"], "seed": {"type": "int", "low": 0, "high": 3}}
    stage = Stage(url, space=space, budget={"trials": 1})
    stage.ledger.enqueue(stage.record, [Point({"seed": 0}, {"by": "hand"})])
    finish(stage.controller(), 5.0)
    stage.lapse()
    assert planned(stage, "baseline-a", seeds=2).seeds == [1, 2]
    enter(stage.ledger, planned(stage, "baseline-a", seeds=2), "/runs")
    stage.ledger.enqueue(stage.record, [Point({"seed": 2}, {"by": "hand"})])
    lease = stage.ledger.acquire(stage.ledger.study("played"), trials=2)
    finish(Controller(stage.ledger, stage.record, stage.config, lease, "/runs"), 5.0)
    stage.lapse()
    assert planned(stage, "baseline-a", seeds=3).seeds == [1, 2, 3]


def test_an_evaluation_does_not_enter_its_points_into_a_comparison(url: str) -> None:
    stage = tuned(url, 5.0)
    enter(stage.ledger, planned(stage, "best", seeds=1, name="played.evaluation"), "/runs")
    with pytest.raises(ConfigError, match="is there already, and is no evaluation"):
        enter(stage.ledger, plan_evaluation(stage.ledger, "played", top=1, seeds=1), "/runs")


def test_recipes_of_another_size_are_told(url: str) -> None:
    space = {"data.batch_size": {"type": "categorical", "choices": [32, 64]}}
    stage = tuned(url, 5.0, space=space)
    made = planned(stage, "baseline-a", "best", seeds=1)
    record, trials = enter(stage.ledger, made, "/runs")
    train(controller(stage.ledger, record, trials), 6.0, 5.0)
    [said] = [
        line
        for line in comparison_table.remarks(conclude_comparison(stage.ledger, made))
        if "not of the same size" in line
    ]
    size = stage.trials[0].params["data.batch_size"]
    assert said.startswith(f"best: data.batch_size {size}, where baseline-a has data.batch_size 16")


def test_a_training_that_diverged_is_told_and_in_no_mean(url: str) -> None:
    stage = tuned(url, 5.0)
    made = planned(stage, "baseline-a", "baseline-b", seeds=2)
    record, trials = enter(stage.ledger, made, "/runs")
    runs = controller(stage.ledger, record, trials)
    train(runs, 6.0)
    play(runs, Message("diverged"))
    train(runs, 8.0, 7.0)
    found = conclude_comparison(stage.ledger, made)
    second = found["recipes"][1]
    assert (second["seeds"], second["ended_early"]) == ([2], {"diverged": 1})
    assert second["valid_ppl"] == {"mean": 7.0, "sd": None}
    assert second["differences"]["valid_ppl"]["pairs"] == 1
    assert second["differences"]["valid_ppl"]["low"] is None, "no interval from one pair"
    assert "1 (1 diverged)" in comparison_table.content_for(Path("t.md"), found)


def test_a_recipe_with_a_teacher_has_the_study_s_or_baseline_a(url: str, tmp_path: Path) -> None:
    stage = tuned(url, 5.0)
    made = planned(stage, "baseline-a", "baseline-b+kd", "cosine+kd", seeds=1)
    [teacher] = made.teachers
    taught = [made.train(recipe).distillation for recipe in made.recipes]
    assert [each.enabled for each in taught] == [False, True, True]
    assert {each.teacher for each in taught[1:]} == {teacher.folder}
    assert taught[1].top_k == 32
    baseline = resolve(yaml.safe_load(teacher.config), "")
    assert baseline.layerdrop.policy == "none"
    assert (baseline.steps, baseline.tests) == (300, False)
    folder = tmp_path / "own"
    own = {**STUDY["train"], "distillation": {"enabled": False, "teacher": teacher.folder}}
    again = Stage(
        f"sqlite:///{folder}.db", [teacher], train=resolve(own, "").model_dump(mode="json")
    )
    assert planned(again, "baseline-b+kd").teachers == [teacher]
    assert planned(again, "baseline-a").teachers == []


def test_what_cannot_be_compared_is_one_line(url: str) -> None:
    stage = tuned(url, 5.0)

    def refusal(*recipes: str, name: str = "table") -> str:
        with pytest.raises(ConfigError) as refused:
            planned(stage, *recipes, name=name)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "no recipe 'linera'; did you mean linear?" in refusal("linera")
    assert "has tried no such trial" in refusal("trial-9")
    assert "is no comparison of played; use --as NAME" in refusal("linear", name="played")
    enter(stage.ledger, planned(stage, "linear"), "/runs")
    assert "table was begun with linear" in refusal("cosine")
    for text, said in {"a,,b": "a name is missing", "a,b,a": "a is there twice"}.items():
        with pytest.raises(ConfigError, match=said):
            names_in(text)


def test_best_needs_a_trial_that_is_complete(url: str) -> None:
    stage = Stage(url)
    play(stage.controller(), Message("diverged"))
    stage.lapse()
    with pytest.raises(ConfigError, match="no trial that is complete and feasible"):
        planned(stage, "best")


@given(st.sampled_from(["none", "sbld", "pld"]), st.floats(0, 0.9), st.integers(1, 4))
@settings(max_examples=25)
def test_a_recipe_is_the_same_whatever_the_study_drops(policy: str, p: float, start: int) -> None:
    from hpo.study.config import StudyConfig

    own = {**STUDY["train"], "layerdrop": {"policy": policy, "p_init": p, "start_layer": start}}
    config = StudyConfig.model_validate({**STUDY, "train": own})
    document = {"layerdrop": {}}
    for path, value in settings_of("linear", config, [], None).items():
        section, _, key = path.partition(".")
        document.setdefault(section, {})[key] = value
    wanted = LayerDropConfig(policy="linear", p_init=0.2, p_final=0.05)
    assert LayerDropConfig.model_validate(document["layerdrop"]) == wanted
    assert document["distillation"] == {"enabled": False}


def test_every_recipe_that_ships_is_a_train_config(url: str) -> None:
    stage = tuned(url, 5.0)
    names = [*yaml.safe_load(shipped("recipes.yaml").read_text())]
    made = planned(stage, *names, *DEFAULT[4:], "best+kd", "trial-0", seeds=1)
    policies = [made.train(name).layerdrop.policy for name in names]
    assert policies[:6] == ["none", "static", "linear", "cosine", "pld", "sbld"]
    assert made.train("best+kd").distillation.enabled
    assert made.train("trial-0") == made.train("best")


def test_later_parts_of_a_recipe_win(url: str) -> None:
    stage = tuned(url, 5.0)
    made = planned(stage, "best+baseline-a")
    train = made.train("best+baseline-a")
    assert train.layerdrop == LayerDropConfig()
    assert train.optim.lr == stage.trials[0].params["optim.lr"]


@pytest.mark.parametrize(
    ("layers", "depths"), [(1, (1, 1)), (4, (3, 2)), (7, (6, 4)), (12, (9, 6))]
)
def test_sub_models_have_half_and_three_quarters_of_the_layers(
    layers: int, depths: tuple[int, int]
) -> None:
    assert tuple(sub_model_depths(layers).values()) == depths


def test_the_command_trains_and_writes_its_tables(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tuned(url, 5.0)

    def run_study(launch: Launch) -> service.Ending:
        assert launch.trials is not None
        runs = controller(launch.ledger, launch.record, launch.trials)
        train(runs, 11.0, 12.0, 12.5, 12.5)
        return service.Ending(0, "done")

    monkeypatch.setattr(service, "run_study", run_study)
    files = [tmp_path / f"table.{kind}" for kind in ("md", "tex", "csv")]
    options = [word for file in files for word in ("-o", str(file))]
    typed = ["compare", "played", "--recipes", "baseline-a,linear", "--seeds", "2"]
    said = CliRunner().invoke(app, [*typed, "--storage", url, *options], catch_exceptions=False)
    assert said.exit_code == 0
    assert "hpo trials played.comparison" in said.output
    markdown, latex, table = (file.read_text() for file in files)
    tables = [part.splitlines() for part in markdown.split("\n\n")[:3]]
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, "as many cells in each row"
    assert "| linear | +0.50 [" in markdown
    assert latex.count(r"\toprule") == latex.count(r"\end{tabular}") == 3
    assert r"11.75 $\pm$ 1.06" in latex
    rows = [*csv.DictReader(io.StringIO(table))]
    assert [row["recipe"] for row in rows] == ["baseline-a", "linear"]
    assert float(rows[0]["valid_ppl_mean"]) == 11.75
    wrong = CliRunner().invoke(app, ["compare", "played", "--storage", url, "-o", "x.html"])
    assert isinstance(wrong.exception, ConfigError)
    assert not Path("x.html").exists()
    assert stage.ledger.study("played.comparison").reserved_trials == 4
