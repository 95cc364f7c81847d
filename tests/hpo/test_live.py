"""The live view: whole on terminals of any width, plain lines elsewhere, colour where wanted."""

from __future__ import annotations

import io
import os
import re

import pytest
from rich.console import Console

from hpo.control.messages import RankProgress
from hpo.observers.live import Board
from hpo.search.objectives import Objective
from tests.hpo.stage import ppl

SAYS = ["tiny", "3/12 trials", "1 complete, 2 pruned", "trial 9", "800/2400", "123.40",
        "valid_ppl", "best  trial 4  valid_ppl 91.2", "goes on at once", "trial 9: thawed",
        "starting"]  # fmt: skip


def board_of(console: Console) -> Board:
    board = Board(console, "tiny", Objective(metric="valid_ppl"), 12)
    board.finished = {"COMPLETE": 1, "PRUNED": 2}
    board.best = 4, 91.2
    board.begin(9, 1, {"steps": 2400}, {})
    board.begin(10, 1, {"steps": 2400}, {})
    board.report(9, 800, ppl(123.4))
    board.progress({9: RankProgress(9, 800, 4.3, 1, "thawed")})
    board.say("goes on at once")
    return board


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(board_of(console).render())
    return written(console)


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_all_of_it_is_seen_and_more_where_there_is_room(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn(width))
    assert [says for says in SAYS if says not in text] == []
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("4.300" in text) == ("attempt" in text) == (width >= 60)
    assert ("━" in text) == (width >= 80)


def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in drawn(80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in drawn(80)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_pipe_and_a_dumb_terminal_get_plain_lines(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), width=40, force_terminal=terminal)
    with board_of(console).shown():
        pass
    assert "tiny: trial 9 step 800/2400 valid_ppl 123.4\n" in written(console)
    assert "\x1b" not in written(console)


def test_what_a_narrower_terminal_has_broken_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for width, cleared in ((100, False), (60, True)):
        console = Console(file=io.StringIO(), width=80, force_terminal=True)
        with board_of(console).shown():
            console.width = width
        assert ("\x1b[2J" in written(console)) == cleared


def test_a_note_goes_with_the_view_and_nothing_is_left_to_wait_for() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    board = board_of(console)
    board.end(9, "COMPLETE", None)
    assert "about" in board._time_left()
    with board.shown():
        board.running.clear()
    assert (board._time_left(), board.note) == ("", "")


def test_a_terminal_that_is_left_at_once_has_its_cursor_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        board_of(Console(file=terminal)).give_up()
        said = os.read(ours, 1000).decode()
    os.close(ours)
    assert said == "\r\r\n\x1b[?25hleft at once; go on with: hpo resume tiny\r\n"
