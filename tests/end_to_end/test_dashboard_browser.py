"""The dashboard as people see it: Debian's chromium on a finished study with two objectives.

The screenshots of docs/images are what this leaves in `$HPO_SCREENSHOTS`, a folder, if that is set.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hpo.control.messages import Message
from storage import Ledger
from tests.end_to_end.desk import Desk
from tests.hpo.stage import Stage

CHROMIUM = shutil.which("chromium")
TRIALS = 16


def make_study(url: str) -> Ledger:
    """Sixteen trials in a ledger at `url`, of which some are infeasible and one was tried twice."""
    stage = Stage(
        url,
        objectives=[{"metric": "valid_ppl"}, {"metric": "step_seconds"}],
        constraints=[{"metric": "peak_memory_bytes", "max": 4e9}],
        budget={"trials": TRIALS},
        sampler={"name": "random", "seed": 1},
        space={
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "model.layers": {"type": "int", "low": 2, "high": 12},
            "layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]},
        },
    )
    controller = stage.controller()
    while not controller.look_for_end():
        assignment = controller.next()
        if assignment is None:  # the lost worker's trial waits a moment
            time.sleep(0.05)
            continue
        number, attempt = assignment.number, assignment.attempt.number
        messages = said(assignment.params)
        if number == 5 and attempt == 1:
            messages[-1] = Message("worker_lost", detail="rank 1 died")
        for message in messages[3 if attempt > 1 else 0 :]:
            controller.handle(number, attempt, message)
    stage.lapse()
    return stage.ledger


def said(params: dict[str, Any]) -> list[Message]:
    """What an attempt says: worse with fewer layers, and away from a learning rate of 2e-3."""
    layers = params["model.layers"]
    best = 80 + 300 / layers + 40 * math.log10(params["optim.lr"] / 2e-3) ** 2

    def at(step: int) -> dict[str, float]:
        return {
            "valid_ppl": best * (1 + 6 * math.exp(-step / 60)),
            "step_seconds": 0.02 * layers,
            "peak_memory_bytes": 4e8 * layers,
        }

    messages = [Message("evaluated", step, at(step), first_step=0) for step in (50, 100, 200)]
    front = [
        {"depth": depth, "search": search, "layers": [*range(1, depth + 1)],
         "valid_ppl": at(300)["valid_ppl"] * factor * (layers / depth) ** 0.7,
         "parameters": 210_000 + 790_000 * depth, "seconds_per_token": 4e-6 * depth}
        for depth in range(max(1, layers // 2), layers + 1)
        for search, factor in (
            [("whole", 1.0)] if depth == layers else [("every_other", 1.1), ("greedy", 1.0)]
        )
    ]  # fmt: skip
    return [*messages, Message("finished", 300, at(300), first_step=200, depth_front=front)]


def look(url: str, name: str, folder: Path, height: int) -> str:
    """What the browser made of the page at `url`; its picture goes to `folder`."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile-{name}",
            "--virtual-time-budget=5000",
            f"--window-size=1280,{height}",
            f"--screenshot={folder}/dashboard-{name}.png",
            "--dump-dom",
            url,
        ],
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_trials_a_note_the_front_and_pictures(desk: Desk, tmp_path: Path) -> None:
    make_study(f"sqlite:///{desk.folder}/hpo.db")
    server = desk.start("dashboard")
    address = re.search(
        r"(http://127\.0\.0\.1:\d+/dashboard)\?(token=\S+)", server.stdout.readline()
    )
    assert address is not None
    study = f"{address[1]}/studies/1"
    pages = {  # each in a browser of its own, which has no cookie
        "front": (f"{study}?{address[2]}", 1000),
        "trial": (f"{study}/trials?numbers=5&{address[2]}", 1720),
    }
    folder = Path(os.environ.get("HPO_SCREENSHOTS", tmp_path))
    with ThreadPoolExecutor(2) as browsers:
        seen = {
            name: browsers.submit(look, url, name, folder, height)
            for name, (url, height) in pages.items()
        }
        front, trial = (seen[name].result() for name in pages)
    server.terminate()
    server.wait(timeout=10)

    assert front.count('class="point"') >= TRIALS, "the Pareto front is drawn"
    for number in range(TRIALS):
        assert re.search(rf">Trial {number}<", trial), "the table of trials"
    assert "2 attempts" in trial
    assert "worker_lost" in trial
    assert re.search(r'<img[^>]+src="/artifacts/1/6/c"', trial), "the learning curve"
    assert re.search(r'<img[^>]+src="/artifacts/1/6/d"', trial), "the depth front"
