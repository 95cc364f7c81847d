"""A study's metrics, scraped over HTTP, on every backend."""

from __future__ import annotations

import socket

import pytest

from hpo.control.messages import Message
from hpo.reading.prometheus import check_port, metrics_served
from tests.hpo.scraping import free_port, scrape
from tests.hpo.stage import Stage, finish, play, ppl
from trainer.config.settings import ConfigError


def test_a_scrape_says_what_the_ledger_says_at_that_moment(ledger_url: str) -> None:
    stage = Stage(ledger_url, budget={"trials": 9, "hours": 2.0})
    port = free_port()
    with metrics_served(stage.ledger, stage.record, stage.config, port):
        empty = scrape(port)
        assert empty["hpo_budget", "trials"] == 9
        assert empty["hpo_budget", "hours"] == 2
        assert empty["hpo_attempts_running", ""] == 0
        assert not {"hpo_silent_seconds", "hpo_best_value", "hpo_lease_seconds"} & {
            name for name, _ in empty
        }
        controller = stage.controller()
        finish(controller, 7.0)
        finish(controller, 5.0)
        play(controller, Message("diverged", 120))
        play(controller, Message("worker_lost", 120))
        play(controller, Message("evaluated", 100, ppl(9.0)))
        found = scrape(port)
    assert found["hpo_ledger_up", ""] == 1
    assert found["hpo_trials", "COMPLETE"] == 2
    assert found["hpo_trials", "PRUNED"] == found["hpo_trials", "RUNNING"] == 1
    assert found["hpo_attempts_total", "finished"] == 2
    assert found["hpo_attempts_total", "diverged"] == 1
    assert found["hpo_attempts_total", "worker_lost"] == 1
    assert found["hpo_attempts_running", ""] == 1
    assert found["hpo_best_value", "valid_ppl"] == 5.0
    assert 0 <= found["hpo_silent_seconds", ""] < 30
    (lease,) = [value for (name, _), value in found.items() if name == "hpo_lease_seconds"]
    assert 0 < lease <= 30
    assert found["hpo_device_seconds", ""] > 0
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))  # it was given back


def test_a_ledger_that_cannot_be_read_is_down_and_the_scrape_still_answers(url: str) -> None:
    stage = Stage(url)
    port = free_port()
    with (
        metrics_served(stage.ledger, stage.record, stage.config, port),
        stage.ledger.sessions() as session,
    ):
        session.connection().exec_driver_sql("DROP TABLE hpo_studies")
        session.commit()
        assert scrape(port) == {("hpo_ledger_up", ""): 0}


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--metrics-port {port}: address already in use;"):
            check_port(port)
