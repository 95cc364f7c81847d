"""Optuna's own API and commands on our ledger, with a controller beside: the study goes on and ends
with the right number of trials, or one line says what to do."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import optuna
import optuna.cli
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.control.messages import Message
from hpo.reading import views
from hpo.search.samplers.ahead import AheadSampler
from hpo.search.samplers.proposals import fingerprint, known
from storage import LeaseLost, Ledger, Reason, StudyExists, StudyNotFound
from tests.hpo.asking import study_of
from tests.hpo.stage import STUDY, Stage, finish, ppl

pytestmark = pytest.mark.slow

# All of Optuna's commands; those that only read are tried in one test.
READING = {"studies", "study-names", "trials", "best-trial", "best-trials"}
WRITING = {"create-study", "delete-study", "study set-user-attr", "storage upgrade", "ask", "tell"}

Optuna = Callable[..., str]


@pytest.fixture
def stage(ledger_url: str) -> Stage:
    return Stage(ledger_url, resources={"concurrent_trials": 2})


@pytest.fixture
def command(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Optuna:
    """Runs Optuna's command line on the ledger's database, in this process."""
    monkeypatch.setattr(optuna.cli, "_set_verbosity", lambda _: None)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["optuna", *arguments, "--storage", plain(stage)])
        assert not optuna.cli.main()
        return capsys.readouterr().out

    return run


def plain(stage: Stage) -> str:
    """The database's address, as any other program has it."""
    return stage.ledger.engine.url.render_as_string(hide_password=False)


def by_api(stage: Stage) -> optuna.Study:
    """The study in plain Optuna, which enforces no foreign keys on SQLite."""
    return optuna.load_study(study_name="played", storage=plain(stage))


def test_these_are_all_of_optunas_commands() -> None:
    assert optuna.cli._COMMANDS.keys() == READING | WRITING


def test_optunas_commands_read_our_ledger(stage: Stage, command: Optuna) -> None:
    controller = stage.controller()
    for _ in range(2):
        finish(controller)
    of = ("--study-name", "played")
    assert "played" in command("study-names")
    assert "played" in command("studies")
    assert command("trials", *of, "-f", "json").count('"COMPLETE"') == 2
    for name in ("best-trial", "best-trials"):
        assert "COMPLETE" in command(name, *of)


@pytest.mark.parametrize("by", ["command", "api", "rename"])
def test_a_study_that_is_deleted_under_its_controller_ends_in_one_line(
    by: str, stage: Stage, command: Optuna
) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    assert controller.next() is not None
    if by == "command":
        command("delete-study", "--study-name", "played")
    else:  # as optuna-dashboard renames, too
        if by == "rename":
            optuna.copy_study(
                from_study_name="played", from_storage=plain(stage), to_storage=plain(stage),
                to_study_name="nicer",
            )  # fmt: skip
        optuna.delete_study(study_name="played", storage=plain(stage))
    assert controller.ended_outside() == [1], "its gang is asked to stop"
    assert not controller.handle(1, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    assert controller.next() is None
    assert controller.look_for_end()
    assert isinstance(controller.broken, LeaseLost)
    # As the service does then:
    with pytest.raises(StudyNotFound, match="study played has been deleted; `hpo list` shows"):
        stage.ledger.acquire(stage.record)
    with pytest.raises(StudyNotFound, match="no study called played"):
        stage.ledger.study("played")
    assert stage.ledger.studies() == []
    again = Stage(stage.url)
    assert [finish(again.controller()) for _ in range(1)] == [0]
    assert stage.ledger.controllers(again.record)[0].alive


def test_nothing_of_ours_goes_to_another_programs_study_that_gets_a_deleted_ones_id(
    stage: Stage, command: Optuna
) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    command("delete-study", "--study-name", "played")
    command("create-study", "--study-name", "theirs", "--directions", "minimize")
    theirs = optuna.load_study(study_name="theirs", storage=plain(stage))
    theirs.ask()
    assert controller.next() is None
    assert isinstance(controller.broken, LeaseLost)
    assert [trial.state for trial in theirs.get_trials()] == [TrialState.RUNNING]
    assert Ledger.open(stage.url).studies() == []
    assert stage.ledger.trial_attempts(theirs.trials[0]._trial_id) == []


def test_a_study_of_another_program_is_named_as_such(stage: Stage, command: Optuna) -> None:
    command("create-study", "--study-name", "theirs", "--directions", "minimize")
    with pytest.raises(StudyNotFound, match="theirs was made by another program"):
        stage.ledger.study("theirs")
    document, name = stage.record.document, "theirs"
    with pytest.raises(StudyExists, match="theirs is in the ledger already"):
        stage.ledger.create_study(name, by_api(stage).directions, ["valid_ppl"], document, 1)


@pytest.mark.parametrize("state", ["complete", "pruned", "fail"])
def test_a_trial_that_is_told_stays_so_and_the_others_go_on(
    state: str, stage: Stage, command: Optuna
) -> None:
    controller = stage.controller()
    for _ in range(2):
        assert controller.next() is not None
    values = ["--values", "3.5"] if state == "complete" else []
    command("tell", "--study-name", "played", "--trial-number", "0", "--state", state, *values)
    assert controller.ended_outside() == [0]
    assert not controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    controller.handle(1, 1, Message("finished", 300, ppl(8.0)))
    assert [finish(controller) for _ in range(2)] == [2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    assert stage.trials[0].state.name.lower()[:4] == state[:4]
    (attempt,) = stage.ledger.trial_attempts(stage.trials[0]._trial_id)
    assert attempt.reason is Reason.OUTSIDE


def test_trials_that_another_program_asks_for_and_adds_count_in_no_budget(
    stage: Stage, command: Optuna
) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    space = {"theirs": json.loads(distribution_to_json(FloatDistribution(0, 1)))}
    asked = json.loads(
        command("ask", "--study-name", "played", "--search-space", json.dumps(space))
    )
    assert asked["number"] == 1
    by_api(stage).add_trial(
        create_trial(
            value=0.5, params={"theirs": 0.5}, distributions={"theirs": FloatDistribution(0, 1)}
        )
    )
    assert [finish(controller) for _ in range(3)] == [3, 4, 5]
    assert controller.next() is None
    assert controller.look_for_end()
    states = [trial.state for trial in stage.trials]
    assert states.count(TrialState.RUNNING) == 1
    assert states.count(TrialState.COMPLETE) == 5
    for number in (1, 2):  # shown as far as there is something of them
        assert views.trial_details(stage.ledger, "played", number)["trial"] == number
    assert len(views.trial_list(stage.ledger, "played")) == 6
    command("tell", "--study-name", "played", "--trial-number", "1", "--state", "fail")


POINTS: list[tuple[dict[str, Any], str | None]] = [
    ({"optim.lr": 2e-3, "layerdrop.policy": "linear"}, None),
    ({"optim.lr": 5.0}, "optim.lr: 5.0 is outside the space: 0.0001 to 0.01"),
    ({"optim.lr": "fast"}, "optim.lr: 'fast' is outside the space"),
    ({"optim.lr": None, "layerdrop.policy": "linear"}, "optim.lr: None is outside"),
    ({"layerdrop.policy": "cosine"}, "layerdrop.policy: 'cosine' is outside the space"),
    ({"momentum": 0.9, "layerdrop.policy": "linear"}, "momentum: is not searched"),
]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
@pytest.mark.parametrize(("point", "words"), POINTS)
def test_a_point_that_plain_optuna_enqueues_is_tried_as_far_as_the_space_has_it(
    sampler: str,
    point: dict[str, Any],
    words: str | None,
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    space = {**STUDY["space"]}
    if sampler == "grid":
        space["optim.lr"] = {"type": "categorical", "choices": [1e-4, 2e-3, 1e-2]}
    if sampler == "grid" and words and "0.0001 to" in words:
        words = "optim.lr: 5.0 is outside the space: one of"
    stage = Stage(url, sampler={"name": sampler}, space=space)
    controller = stage.controller()
    assert finish(controller) == 0
    by_api(stage).enqueue_trial(point)
    with caplog.at_level(logging.WARNING):
        assert [finish(controller) for _ in range(3)] == [1, 2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    trial = stage.trials[1]
    assert trial.params.keys() == space.keys()
    assert all(
        distribution._contains(distribution.to_internal_repr(trial.params[path]))
        for path, distribution in trial.distributions.items()
    )
    if trial.params["layerdrop.policy"] != point.get("layerdrop.policy", "linear"):
        assert point.get("layerdrop.policy") == "cosine" or "layerdrop.policy" not in point
    if words is None:
        assert trial.params == point
        assert "left out" not in caplog.text
    else:
        assert f"trial 1 was enqueued with a value left out: {words}" in caplog.text


def test_a_point_that_waits_may_be_withdrawn(stage: Stage) -> None:
    controller = stage.controller()
    for _ in range(2):
        by_api(stage).enqueue_trial({"optim.lr": "fast", "layerdrop.policy": "linear"})
    stage.ledger.fail_trial(stage.record, stage.trials[0]._trial_id)
    assert [finish(controller) for _ in range(4)] == [1, 2, 3, 4]
    assert stage.trials[1].params["layerdrop.policy"] == "linear"
    assert controller.next() is None
    assert controller.look_for_end()


def misfit(state: TrialState, **attributes: Any) -> FrozenTrial:
    """A trial that Optuna has given a value outside of its range."""
    value = 1.0 if state is TrialState.COMPLETE else None
    distributions = {"x": FloatDistribution(0, 1)}
    trial = create_trial(
        state=state, value=value, params={"x": 0.5}, distributions=distributions, **attributes
    )
    trial.params = {"x": 7.0}
    return trial


def test_suggestions_ahead_know_a_value_outside_of_its_range_as_a_failed_trial() -> None:
    told = misfit(TrialState.COMPLETE, user_attrs={"told_at": 1})
    running = misfit(TrialState.RUNNING)
    told.number, running.number = 0, 1
    seen = known([told, running], 3, 1)
    assert [(trial.number, trial.state, trial.params) for trial in seen] == [
        (0, TrialState.FAIL, {}), (1, TrialState.FAIL, {})
    ]  # fmt: skip
    optuna.create_study().add_trials(seen)
    assert fingerprint(seen) == fingerprint(known([told, running], 3, 1))


def test_suggestions_ahead_go_on_after_a_point_outside_of_the_space(url: str) -> None:
    study = study_of(storage=url)
    assert isinstance(study.sampler, AheadSampler)
    study.enqueue_trial({"x": 7.0, "nobody": 1})
    trial = study.ask()
    with pytest.warns(UserWarning, match="out of range"):
        trial.suggest_float("x", 0, 1)
    study.sampler.inform(study)
    study.sampler.ready(study)
    study.tell(trial, 1.0)
    study.sampler.ready(study)


def test_user_attributes_are_free_for_all(stage: Stage, command: Optuna) -> None:
    controller = stage.controller()
    for _ in range(2):
        assert controller.next() is not None
    for key in ("mine", "budget_hours"):
        command("study", "set-user-attr", "--study-name", "played", "--key", key, "--value", "x")
    storage = optuna.storages.get_storage(plain(stage))
    for key in ("mine", "reason", "run_dir", "attempts", "device_seconds"):
        storage.set_trial_user_attr(stage.trials[0]._trial_id, key, {"any": ["thing"]})
    controller.handle(0, 1, Message("finished", 300, ppl(8.0), first_step=0))
    controller.handle(1, 1, Message("finished", 300, ppl(8.0), first_step=0))
    assert [finish(controller) for _ in range(2)] == [2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    assert by_api(stage).user_attrs["mine"] == "x"
    assert stage.trials[0].user_attrs["mine"] == {"any": ["thing"]}
    views.trial_list(stage.ledger, "played")


def test_optunas_upgrade_leaves_our_tables_as_they_are(stage: Stage, command: Optuna) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    command("storage", "upgrade")
    assert [finish(controller) for _ in range(3)] == [1, 2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
