"""Tables for people: on a terminal that is too narrow no number is broken."""

from __future__ import annotations

import re

import pytest

from hpo.reading import tables

PARAMS = {
    "optim.lr": 0.00117814487,
    "model.dropout": 0.17038946906,
    "layerdrop.policy": "linear",
    "layerdrop.p_init": 0.2515052997,
    "layerdrop.p_final": 0.0796037266,
}
TRIAL = {
    "trial": 0,
    "state": "COMPLETE",
    "reason": None,
    "step": 400,
    "values": {"valid_ppl": 165.0501},
    "feasible": None,
    "attempts": 1,
    "params": PARAMS,
}


@pytest.mark.parametrize("width", [80, 110, 160])
def test_the_trials_can_be_read_on_a_terminal_of_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("COLUMNS", str(width)), ("TTY_COMPATIBLE", "1"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    tables.trials([TRIAL])
    words = re.split(r"\x1b\[\d+m|[=\s]", capsys.readouterr().out)
    assert {"lr", "p_final", "policy", "0.001178", "0.0796", "linear", "165.05"} <= {*words}


def test_a_parameter_has_its_whole_path_where_two_end_alike() -> None:
    assert tables._names(["data.name", "optim.lr", "optim.name"]) == {
        "data.name": "data.name",
        "optim.lr": "lr",
        "optim.name": "optim.name",
    }
