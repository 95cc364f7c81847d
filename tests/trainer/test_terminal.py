"""What a person sees of a training by hand, on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import pytest

from trainer.config.train import TrainConfig
from trainer.terminal import Display


def test_what_libraries_print_does_not_come_through_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    seen, terminal = os.openpty()
    with os.fdopen(terminal, "w") as output, Display(output, TrainConfig()) as display:
        print("FutureWarning: something is deprecated", file=sys.stderr)
        display.say("a line of ours")
    shown = b""
    with suppress(OSError):  # which is its end
        while part := os.read(seen, 10_000):
            shown += part
    os.close(seen)
    assert b"a line of ours" in shown
    assert b"0/400" in shown, "there is a bar"
    assert b"FutureWarning" not in shown
