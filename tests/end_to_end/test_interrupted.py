"""Ctrl-C, `hpo stop` and resuming; every reading command; wandb's runs of a resumed study."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
from collections.abc import Mapping

import pytest
from optuna.trial import TrialState

from storage import LeaseHeld, Ledger
from tests import planted
from tests.end_to_end.desk import Desk
from tests.forked import Forked
from tests.hpo.scraping import free_port, scrape
from tests.wandb_files import offline_runs


@pytest.mark.timeout(400)
def test_a_study_is_interrupted_stopped_and_resumed_to_its_end(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        resources={"concurrent_trials": 2},  # two cores have a place for one
        train={"steps": 400, "eval_every": 50},
        tracking={"wandb": {"project": "tests", "mode": "offline"}},
    )
    first = desk.start("start", str(file))
    desk.wait_for(lambda: 50 in desk.steps(0) + desk.steps(1))
    out, err = desk.interrupt(first)
    assert first.returncode == 130, out + err
    assert "go on with: hpo resume tiny" in err
    for trial in desk.study().trials:
        assert trial.state is TrialState.RUNNING
        shown = desk.json("show", "tiny", str(trial.number))
        assert [a["reason"] for a in shown["attempts"]] == ["stopped"]
    assert desk.json("status", "tiny")["controller"] is None

    port = free_port()
    second = desk.start("resume", "tiny", "--metrics-port", str(port), *joined)
    desk.wait_for(lambda: max(desk.steps(0) + desk.steps(1)) >= 100)
    assert desk.json("status", "tiny")["controller"].startswith(f"process {second.pid} on")
    assert scrape(port)["hpo_trials", "RUNNING"] >= 1
    refused = desk.hpo("resume", "tiny", status=2)
    assert f"is being run by process {second.pid}" in refused
    assert "is stopped" in desk.hpo("stop", "tiny")
    assert second.wait(timeout=60) == 130
    assert "is not being run" in desk.hpo("stop", "tiny", status=2)

    out = desk.hpo("resume", "tiny", *joined)
    assert "study tiny is done" in out
    trials = desk.study().trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert desk.steps(0) == list(range(50, 401, 50))
    shown = [desk.json("show", "tiny", number)["attempts"] for number in "01"]
    assert [[a["reason"] for a in attempts] for attempts in shown] == [
        ["stopped", "stopped", None]
    ] * 2
    # A stop does not wait for an evaluation: it checkpoints at the next step.
    starts = [[a["first_step"] or 0 for a in attempts] for attempts in shown]
    assert all(steps == sorted(steps) for steps in starts)
    assert any(step > 50 and step % 50 for steps in starts for step in steps)
    assert wandb_steps(desk) == {"tiny-0000": list(range(50, 401, 50)),
                                 "tiny-0001": list(range(50, 401, 50))}  # fmt: skip
    reading_commands_agree(desk)
    log = [json.loads(line) for line in (desk.folder / "runs/tiny/log.jsonl").open()]
    assert {line["study"] for line in log} == {"tiny"}
    begun = [(line["trial"], line["attempt"]) for line in log if "begins" in line["message"]]
    assert sorted(begun) == [(trial, attempt) for trial in (0, 1) for attempt in (1, 2, 3)]

    out = desk.hpo("resume", "tiny")
    assert "study tiny is done" in out
    assert "has 2 trials already" in desk.hpo("resume", "tiny", "--trials", "1", status=2)


def wandb_steps(desk: Desk) -> dict[str, list[int]]:
    """Steps by run name, over all offline folders of the study."""
    steps: dict[str, list[int]] = {}
    runs = offline_runs(desk.folder / "runs" / "tiny")
    measured = {"train_loss", "valid_ppl", "tokens_per_second", "peak_memory_bytes"}
    measured |= {"drop_probability/layer_01", "drop_probability/layer_02"}
    for run in runs:
        assert run.group == "tiny"
        assert run.config["layerdrop"]["policy"] == "linear"
        assert all(measured <= row.keys() for row in run.history)
        steps.setdefault(run.name, []).extend(run.steps())
    assert len({run.id for run in runs}) == len(steps), "one run id a trial"
    assert not list(planted.found_in(desk.folder)), "the key is nowhere"
    return steps


def reading_commands_agree(desk: Desk) -> None:
    """`list`, `status`, `trials`, `show` and `best` say the same, to people and to machines."""
    study = desk.study()
    (listed,) = desk.json("list")
    assert listed == {"study": "tiny", "trials": 2, "budget": 2, "states": {"COMPLETE": 2},
                      "controller": None}  # fmt: skip
    (best,) = desk.json("best", "tiny")
    assert best["trial"] == study.best_trial.number
    assert best["values"] == {"valid_ppl": study.best_value}
    assert best["params"] == study.best_trial.params
    assert desk.json("status", "tiny")["best"] == best
    trials = desk.json("trials", "tiny")
    assert trials[best["trial"]] == best
    shown = desk.json("show", "tiny", "0")
    assert shown["metrics"]["400"]["valid_ppl"] == study.trials[0].value
    for command in (["list"], ["status", "tiny"], ["trials", "tiny"], ["best", "tiny"]):
        text = desk.hpo(*command)
        assert "tiny" in text or "COMPLETE" in text
    assert "optim.lr=" in desk.hpo("show", "tiny", "0")


@pytest.mark.timeout(200)
def test_an_early_ctrl_c_says_how_to_go_on_and_a_second_one_leaves_at_once(desk: Desk) -> None:
    file = desk.write_study(
        budget={"trials": 1}, resources={"ranks": 1}, train={"steps": 4000, "eval_every": 20}
    )
    early = desk.start_anew("start", str(file))
    assert early.stdout is not None
    assert early.stdout.readline() == "tiny: starting workers\n"
    early.send_signal(signal.SIGINT)
    _, said = early.communicate(timeout=60)
    assert (early.returncode, said) == (130, "study tiny is stopped; go on with: hpo resume tiny\n")
    study = desk.start("resume", "tiny")
    desk.wait_for(lambda: desk.steps(0))
    for rank in desk.ranks():
        rank.send_signal(signal.SIGSTOP)  # it cannot checkpoint now
    study.send_signal(signal.SIGINT)
    desk.wait_for(lambda: b"stopping" in peek(study))
    study.send_signal(signal.SIGINT)
    assert study.wait(timeout=5) == 130
    assert b"left at once; go on with: hpo resume tiny" in peek(study)
    assert desk.json("status", "tiny")["states"] == {"RUNNING": 1}
    desk.wait_for(lambda: not desk.ours(), timeout=90)


@pytest.mark.timeout(200)
def test_a_controller_whose_study_was_taken_over_leaves_it_alone_with_status_1(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        budget={"trials": 1}, resources={"ranks": 1}, train={"steps": 4000, "eval_every": 20}
    )
    study = desk.start("start", str(file), *joined)
    desk.wait_for(lambda: desk.steps(0))
    ledger = Ledger.open(f"sqlite:///{desk.folder}/hpo.db")
    seen: Mapping[int, float] = {}
    while True:  # as if it had been paused for longer than its lease, and watched meanwhile
        with sqlite3.connect(desk.folder / "hpo.db") as database:
            database.execute("UPDATE hpo_controllers SET expires_at = 0")
        try:
            lease = ledger.acquire(ledger.study("tiny"), seconds=9, watched=seen)
            break
        except LeaseHeld as held:
            seen = held.leases
    with ledger.heartbeat(lease, print):
        _, err = study.communicate(timeout=60)
    assert study.returncode == 1
    assert "this controller's trials were taken over" in err
    assert f"left the study to another: study tiny is being run by process {os.getpid()}" in err
    assert len(ledger.waiting(ledger.study("tiny"))) == 1
    (trial,) = desk.study().trials
    assert trial.state is TrialState.RUNNING
    desk.wait_for(lambda: not desk.ranks(), timeout=20)


def peek(process: Forked) -> bytes:
    """Return what the process has printed by now, without waiting for more."""
    descriptor = process.stdout.fileno()
    if select.select([descriptor], [], [], 0)[0]:
        return os.read(descriptor, 1 << 16)
    return b""
