"""The live view: whole on terminals of any usual width, and without colour where that is asked."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from hpo.live import Board
from hpo.objectives import Objective
from tests.hpo.test_controller import ppl

SAYS = ["tiny", "3/12 trials", "1 complete, 2 pruned", "trial 9", "800/2400", "4.300", "123.40",
        "valid_ppl", "best  trial 4  valid_ppl 91.2", "goes on at once"]  # fmt: skip


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    board = Board(console, "tiny", Objective(metric="valid_ppl"), 12)
    board.finished = {"COMPLETE": 1, "PRUNED": 2}
    board.recall(4, 91.2)
    board.begin(9, 1, {"steps": 2400})
    board.report(9, 800, ppl(123.4))
    board.running[9].loss = 4.3
    board.note = "goes on at once"
    console.print(board.render())
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_all_of_it_is_seen_and_bars_where_there_is_room(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn(width))
    assert [says for says in SAYS if says not in text] == []
    assert max(map(len, text.splitlines())) <= width
    assert ("━" in text) == (width >= 80)


def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in drawn(80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in drawn(80)
