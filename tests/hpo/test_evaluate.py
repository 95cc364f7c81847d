"""Evaluations: what tuning chose is trained again under seeds that it never saw, and tested."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.study import StudyDirection
from typer.testing import CliRunner

from hpo.cli import app
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.evaluation.evaluations import conclude_evaluation, plan_evaluation
from hpo.evaluation.phase import enter, is_trained
from hpo.service import run as service
from hpo.study.load import load_study
from tests.hpo.evaluations import controller, tuned
from tests.hpo.stage import STUDY, Stage, finish, play, ppl
from tests.leases import lapse
from trainer.config.settings import ConfigError
from trainer.config.train import resolve


def train(controller: Controller, *outcomes: tuple[float, float]) -> list[dict[str, Any]]:
    """Play trainings that come to these perplexities on valid and test; their train configs."""
    configs = []
    for valid, test in outcomes:
        assignment = controller.next()
        assert assignment is not None
        configs.append(assignment.config)
        message = Message("finished", 300, {**ppl(valid), "test_ppl": test})
        controller.handle(assignment.number, assignment.attempt.number, message)
    return configs


def test_the_best_are_trained_again_under_fresh_seeds_and_the_table_is_kept(url: str) -> None:
    stage = tuned(url, 9.0, 5.0, 6.0)
    planned = plan_evaluation(stage.ledger, "played", top=2, seeds=3)
    assert planned.seeds == [1, 2, 3]
    record, trials = enter(stage.ledger, planned, "/runs")
    assert (record.name, trials) == ("played.evaluation", 6)
    runs = controller(stage.ledger, record, trials)
    valid, test = [5.5, 6.0, 6.5], [7.0, 7.2, 7.4]
    configs = train(runs, *zip(valid, test, strict=True), *[(6.0, 7.0)] * 3)
    assert runs.next() is None
    assert runs.look_for_end()
    assert [config["seed"] for config in configs] == [1, 2, 3, 1, 2, 3]
    assert {config["phase"] for config in configs} == {"evaluation"}
    best = stage.trials[1].params
    assert {config["optim"]["lr"] for config in configs[:3]} == {best["optim.lr"]}
    rows = conclude_evaluation(stage.ledger, planned)
    assert [row["trial"] for row in rows] == [1, 2]
    assert rows[0]["valid_ppl"] == {"mean": 6.0, "sd": 0.5}
    assert rows[0]["test_ppl"] == {"mean": 7.2, "sd": pytest.approx(statistics.stdev(test))}
    assert (rows[0]["tuned_valid_ppl"], rows[0]["optimism_gap"]) == (5.0, 1.0)
    assert rows[0]["test_minus_valid"] == pytest.approx(1.2)
    assert rows[1]["optimism_gap"] == 0.0
    kept = optuna.load_study(study_name=record.name, storage=stage.ledger.storage)
    assert kept.user_attrs["evaluation"] == rows
    assert kept.trials[0].user_attrs["origin"] == {"study": "played", "trial": 1}


def test_an_evaluation_killed_and_typed_again_trains_nothing_twice_but_what_failed(
    url: str,
) -> None:
    stage = tuned(url, 5.0, 6.0, failures={"max_retries": 0})
    planned = plan_evaluation(stage.ledger, "played", top=1, seeds=3)
    record, trials = enter(stage.ledger, planned, "/runs")
    dead = controller(stage.ledger, record, trials)
    train(dead, (5.1, 7.0))
    play(dead, Message("worker_lost"))
    assert dead.next() is not None, "the third has begun"
    lapse(stage.ledger)
    again = plan_evaluation(stage.ledger, "played", top=1, seeds=3)
    assert again.points == planned.points
    record, trials = enter(stage.ledger, again, "/runs")
    assert (trials, enter(stage.ledger, again, "/runs")[1]) == (4, 4), "entered once more, once"
    assert not is_trained(stage.ledger, record)
    heir = controller(stage.ledger, record, trials)
    assert [c["seed"] for c in train(heir, (5.3, 7.2), (5.2, 7.1))] == [3, 2]
    assert is_trained(stage.ledger, record)
    [row] = conclude_evaluation(stage.ledger, again)
    assert row["seeds"] == [1, 3, 2]
    assert row["valid_ppl"]["mean"] == pytest.approx(5.2)
    more = plan_evaluation(stage.ledger, "played", top=2, seeds=4)
    assert enter(stage.ledger, more, "/runs")[1] == 9, "a larger evaluation only trains what is new"


def test_no_seed_of_tuning_is_used(url: str) -> None:
    space = {**STUDY["space"], "seed": {"type": "int", "low": 2, "high": 3}}
    stage = tuned(url, 5.0, 6.0, 4.0, 4.5, 4.2, repeats=2, space=space)
    used = {trial.params["seed"] for trial in stage.trials}
    used |= {seed + 1 for seed in used} | {0, 1}
    planned = plan_evaluation(stage.ledger, "played", top=1, seeds=5)
    assert not used & set(planned.seeds)
    assert len(set(planned.seeds)) == 5


def test_what_a_worker_of_the_tuning_phase_gets_cannot_read_the_test(
    url: str, tmp_path: Path
) -> None:
    texts = {split: str(tmp_path / f"{split}.txt") for split in ("train", "valid", "test")}
    for path in texts.values():
        Path(path).write_text("a b c\n" * 500)
    data = {"name": "text", **texts, "context": 8, "batch_size": 4}
    stage = Stage(url, train={**STUDY["train"], "data": data})
    tuning = stage.controller()
    assignment = tuning.next()
    assert assignment is not None
    assert "test.txt" not in str(assignment.config)
    assert not resolve(assignment.config, "").tests
    tuning.handle(0, 1, Message("finished", 300, ppl(5.0)))
    stage.lapse()
    record, trials = enter(
        stage.ledger, plan_evaluation(stage.ledger, "played", top=1, seeds=1), "/runs"
    )
    [config] = train(controller(stage.ledger, record, trials), (5.0, 6.0))
    assert config["data"]["test"] == texts["test"]
    assert resolve(config, "").tests


def test_a_study_that_would_read_the_test_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(settings: list[str], **changes: Any) -> str:
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**STUDY, **changes}))
        with pytest.raises(ConfigError) as refused:
            load_study(file, settings=settings)
        return str(refused.value)

    sets = "only `hpo evaluate` and `hpo compare` set it"
    searched = {"phase": {"type": "categorical", "choices": ["tuning", "evaluation"]}}
    assert f"study.yaml: space.phase: {sets}" in refusal([], space=searched)
    assert f"phase: {sets}" in refusal(["phase=evaluation"])
    given = refusal([], train={"phase": "evaluation"})
    assert "study.yaml: train: phase: evaluation would read the test split" in given
    (tmp_path / "train.yaml").write_text("phase: evaluation\n")
    given = refusal([], train="train.yaml")
    assert "train.yaml: phase: evaluation would read the test split" in given


def test_an_evaluation_that_cannot_be_made_is_refused_and_nothing_is_written(url: str) -> None:
    stage = Stage(url, budget={"trials": 2})

    def refusal(name: str = "played", top: int = 1) -> str:
        with pytest.raises(ConfigError) as refused:
            plan_evaluation(stage.ledger, name, top, 1)
        assert [study.name for study in stage.ledger.studies()] == ["played"]
        return str(refused.value)

    assert "has 0 trials that are complete and feasible" in refusal()
    finish(running := stage.controller())
    assert "is still run by" in refusal()
    finish(running)
    stage.lapse()
    assert "--top 3: study played has 2 trials" in refusal(top=3)
    enter(stage.ledger, plan_evaluation(stage.ledger, "played", 1, 1), "/runs")
    with pytest.raises(ConfigError, match="is an evaluation itself"):
        plan_evaluation(stage.ledger, "played.evaluation", 1, 1)


def test_a_study_that_only_has_the_name_of_an_evaluation_is_left_alone(url: str) -> None:
    stage = tuned(url, 5.0)
    document = stage.record.document.replace("played", "played.evaluation")
    record = stage.ledger.create_study(
        "played.evaluation", [StudyDirection.MINIMIZE], ["valid_ppl"], document, 1
    )
    with pytest.raises(ConfigError, match="is no evaluation; evaluate a copy"):
        enter(stage.ledger, plan_evaluation(stage.ledger, "played", 1, 1), "/runs")
    assert not stage.ledger.trial_counts(record)


def test_a_trained_evaluation_is_said_again_and_takes_no_other_points(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tuned(url, 5.0)
    record, trials = enter(stage.ledger, plan_evaluation(stage.ledger, "played", 1, 1), "/runs")
    train(controller(stage.ledger, record, trials), (5.5, 6.0))
    lapse(stage.ledger)
    monkeypatch.setattr(service, "run_study", lambda *_, **__: pytest.fail("it trains"))
    command = ["evaluate", "played", "--seeds", "1", "--storage", url]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "+0.50" in said.stdout
    assert "6.00" in said.stdout
    [row] = yaml.safe_load(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert row["test_ppl"] == {"mean": 6.0, "sd": None}
    for other in (["resume", "--trials", "9"], ["enqueue", "optim.lr=1e-3"]):
        refused = CliRunner().invoke(
            app, [other[0], "played.evaluation", *other[1:], "--storage", url]
        )
        assert refused.exit_code == 2 or isinstance(refused.exception, ConfigError)
    assert CliRunner().invoke(app, [*command[:2], "--seeds", "0"]).exit_code == 2
