"""Suggestions made ahead: a fixed information set, and an ask that waits for nothing.

The other process is real; its sampler is Optuna's own TPE, or one that hangs, raises or dies.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.halving import Halving
from hpo.search.samplers import ahead
from hpo.search.samplers.ahead import AheadSampler
from hpo.search.samplers.proposals import RUNGS_AT, TOLD_AT, fingerprint, known
from tests.hpo.asking import SPACE, draw, study_of

pytestmark = pytest.mark.slow


def ask(study: optuna.Study) -> optuna.Trial:
    """As the controller does; fails where a suggestion is waited for without end."""
    deadline = time.monotonic() + 100
    while not study.sampler.ready(study):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    trial = study.ask()
    draw(trial)
    study.sampler.inform(study)
    return trial


def tell(study: optuna.Study, trial: optuna.Trial) -> None:
    study.tell(trial, (trial.params["x"] - 0.3) ** 2)


def at_a_rung(trial: FrozenTrial, value: float, asked: int) -> FrozenTrial:
    """The trial with one value more, `asked` trials having been asked."""
    further = copy.deepcopy(trial)
    step = len(further.intermediate_values)
    further.intermediate_values[step] = value
    further.user_attrs.setdefault(RUNGS_AT, []).append([step, asked])
    return further


def ended(trial: FrozenTrial, value: float, asked: int) -> FrozenTrial:
    """The trial at its end, `asked` trials having been asked."""
    done = copy.deepcopy(trial)
    done.state, done.values, done.datetime_complete = TrialState.COMPLETE, [value], datetime.now()
    done.user_attrs[TOLD_AT] = asked
    return done


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These trials last no time at all: their proposals are waited for."""
    monkeypatch.setattr(ahead, "PATIENCE", 1e9)
    monkeypatch.setattr(ahead, "START_SECONDS", 1e9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), concurrent=st.integers(1, 5), trials=st.integers(1, 25))
def test_what_a_proposal_knows_can_be_read_from_any_later_ledger(
    seed: int, concurrent: int, trials: int
) -> None:
    rng = random.Random(seed)
    ledger: list[FrozenTrial] = []
    at_the_ask: list[str] = []
    as_soon_as_possible: dict[int, str] = {}
    running: list[int] = []
    while len(ledger) < trials:
        for number in running:
            if rng.random() < 0.3:
                ledger[number] = at_a_rung(ledger[number], rng.random(), asked=len(ledger))
        if len(running) == concurrent:
            number = running.pop(rng.randrange(len(running)))
            ledger[number] = ended(ledger[number], rng.random(), asked=len(ledger))
        number = len(ledger)
        at_the_ask.append(fingerprint(known(ledger, number, concurrent)))
        trial = create_trial(
            state=TrialState.RUNNING, params={"x": rng.random()}, distributions=SPACE
        )
        trial.number = number
        ledger.append(trial)
        running.append(number)
        as_soon_as_possible[number + 1] = fingerprint(known(ledger, number + 1, concurrent))
    later = [fingerprint(known(ledger, number, concurrent)) for number in range(trials)]
    assert later == at_the_ask
    assert [as_soon_as_possible[number] for number in range(1, trials)] == at_the_ask[1:]


def test_one_worker_knows_all_but_the_trial_before(patient: None) -> None:
    study = study_of()
    for _ in range(3):
        tell(study, ask(study))
    states = [trial.state.name for trial in known(study.trials, 3, 1)]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]


def test_a_proposal_knows_the_rungs_that_parked_trials_had_come_to(
    patient: None, tmp_path: Path
) -> None:
    study = study_of(concurrent=1, halving=Halving(first=10, reduction_factor=3))
    first = ask(study)
    for step, value in ((5, 9.0), (10, 7.0), (20, 6.0)):
        first.report(value, step)
        study.sampler.reported(study, first._trial_id, step)
    second = ask(study)
    first.report(5.0, 30)
    study.sampler.reported(study, first._trial_id, 30)
    tell(study, second)
    ask(study)
    assert [t.intermediate_values for t in known(study.trials, 2, 1)] == [{10: 7.0}, {}]
    seen = [(t.state.name, t.intermediate_values) for t in known(study.trials, 3, 1)]
    assert seen == [("RUNNING", {10: 7.0, 30: 5.0}), ("COMPLETE", {}), ("RUNNING", {})]
    assert study.trials[2].user_attrs["suggested_by"] == "tpe", "made from the rung as it was then"


def test_a_resumed_study_is_proposed_the_same_points(patient: None, tmp_path: Path) -> None:
    def played(folder: str, restarts: set[int]) -> list[dict[str, Any]]:
        storage = f"sqlite:///{tmp_path}/{folder}.db"
        study = study_of(concurrent=2, storage=storage)
        last = ask(study)
        for number in range(1, 8):
            if number in restarts:
                study = study_of(concurrent=2, storage=storage)
            trial = ask(study)
            tell(study, last)
            last = trial
        assert {t.user_attrs["suggested_by"] for t in study.trials} == {"tpe"}
        return [trial.params for trial in study.trials]

    points = played("whole", set())
    assert played("resumed", {5}) == points
    assert len({point["x"] for point in points}) == 8


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("hangs", None),
        ("raises", "no suggestion from tpe: ValueError: no positive definite matrix"),
        ("dies", "the process that makes tpe's suggestions died"),
    ],
)
def test_without_a_proposal_in_time_a_trial_is_random_and_says_so(
    trouble: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LET_GO", "/nowhere")
    study = study_of(trouble)
    monkeypatch.setattr(ahead, "PATIENCE", 1e9)
    for _ in range(3):
        tell(study, ask(study))
    monkeypatch.setattr(ahead, "PATIENCE", 0 if trouble == "hangs" else 1e9)
    tell(study, ask(study))
    by = [trial.user_attrs["suggested_by"] for trial in study.trials]
    assert by == ["tpe", "tpe", "tpe", "fallback"]
    if trouble != "hangs":
        tell(study, ask(study))
        assert study.trials[4].user_attrs["suggested_by"] == "tpe", "it goes on"
        messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(messages) == 1
        assert said is not None
        assert messages[0].startswith(said)


def test_a_proposal_that_comes_too_late_is_the_next_trial_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LET_GO", str(tmp_path / "go"))
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    monkeypatch.setattr(ahead, "PATIENCE", 1e9)
    study = study_of("hangs")
    for _ in range(3):
        tell(study, ask(study))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    monkeypatch.setattr(ahead, "PATIENCE", 0)
    random_one = ask(study)
    sampler = study.sampler
    assert isinstance(sampler, AheadSampler)
    Path(os.environ["LET_GO"]).touch()
    while 3 not in sampler._proposals:
        sampler._find(study.trials, 4)
        sampler._proposals.pop(4, None)  # as if it were not ready either
        time.sleep(0.01)
    tell(study, random_one)
    monkeypatch.setattr(sampler, "_find", lambda trials, number: None)
    late = study.ask()
    draw(late)
    assert study.trials[4].user_attrs["suggested_by"] == "tpe, late"
    assert late.params == sampler._proposals[3].params
    again = study.ask()
    draw(again)
    assert study.trials[5].user_attrs["suggested_by"] == "fallback", "it is given once"


def test_an_enqueued_trial_is_not_waited_for(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LET_GO", "/nowhere")
    study = study_of("hangs")
    for _ in range(3):
        tell(study, ask(study))
    study.enqueue_trial({"kind": "plain", "x": 0.25})
    trial = ask(study)
    assert trial.params == {"kind": "plain", "x": 0.25}
    assert "suggested_by" not in trial.user_attrs


def test_the_other_process_ends_with_a_controller_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import multiprocessing, time, optuna\n"
        "from tests.hpo.asking import study_of\n"
        "study = study_of()\n"
        "study.sampler.inform(study)\n"
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        child = psutil.Process(int(controller.stdout.readline()))
        assert child.is_running()
        controller.kill()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert not alive
