"""A person clicks in the dashboard of a running study: what the page does, how the study ends."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from storage import Ledger
from tests.chromium import CHROMIUM, Tab, tab
from tests.end_to_end.desk import Desk

TRAINING = """
import time
from pathlib import Path

def train(config, run):
    step = 0
    while Path(config["hold"]).exists():
        step += 1
        yield {"step": step, "error": config["lr"]}
        time.sleep(0.1)
    yield {"step": config["steps"], "error": config["lr"]}
"""
STUDY: dict[str, Any] = {
    "study": "clicked",
    "trainer": "clicked_training:train",
    "objectives": [{"metric": "error", "direction": "minimize"}],
    "sampler": {"name": "random", "seed": 0},
    "budget": {"trials": 4},
    "resources": {"ranks": 1, "cpus_per_rank": 1, "concurrent_trials": 2},
    "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0}},
}
CREATE = {"study_name": "new", "directions": ["minimize"]}
UPLOAD = {"file": "data:text/plain;base64,eA==", "filename": "x.txt"}


class Page:
    """The dashboard in a tab, as a person sees and clicks it."""

    def __init__(self, tab: Tab, address: str, token: str) -> None:
        self._tab, self._address = tab, address
        self.open(f"/dashboard?{token}")

    def open(self, path: str) -> None:
        """Show a page, and wait until it has its data."""
        self._tab.open(f"{self._address}{path}")

    def until(self, script: str, seconds: float = 40) -> Any:
        """The first true value of `script`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self._tab.run(script):
                return found
            time.sleep(0.1)
        shown = self._tab.run("document.body?.innerText")
        raise AssertionError(f"waited {seconds} s for {script} in vain; the page says:\n{shown}")

    def says(self, words: str) -> None:
        """Wait until the page shows these words."""
        self.until(f"document.body?.innerText.includes({json.dumps(words)})")

    def sees(self, selector: str, text: str = "") -> bool:
        """Whether something like that can be seen now."""
        return bool(self._tab.run(f"{self._find(selector, text)} !== undefined"))

    def click(self, selector: str, text: str = "") -> None:
        """Click at it, once it can be seen."""
        self.until(f"{self._find(selector, text)} !== undefined")
        self._tab.run(f"{self._find(selector, text)}.click()")

    def type(self, text: str) -> None:
        """Type into the field of the dialogue, and wait as long as the page waits for more."""
        self.until("document.querySelector('[role=dialog] input[type=text]') !== null")
        self._tab.run("document.querySelector('[role=dialog] input[type=text]').focus()")
        self._tab.call("Input.insertText", text=text)
        time.sleep(1.0)

    def ask(self, method: str, path: str, data: object) -> list[Any]:
        """Status and reason that the page gets for a request of its own."""
        options = {
            "method": method, "body": json.dumps(data),
            "headers": {"Content-Type": "application/json"},
        }  # fmt: skip
        answer: list[Any] = self._tab.run(
            f"fetch({json.dumps(path)}, {json.dumps(options)})"
            ".then(async got => [got.status, (await got.json()).reason])"
        )
        return answer

    @staticmethod
    def _find(selector: str, text: str) -> str:
        shown = f"each.checkVisibility() && each.textContent.trim().startsWith({json.dumps(text)})"
        return f"[...document.querySelectorAll({json.dumps(selector)})].find(each => {shown})"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.timeout(300)
def test_a_person_fails_renames_deletes_creates_uploads_and_stops(
    desk: Desk, joined: tuple[str, str], tmp_path: Path
) -> None:
    hold = desk.folder / "hold"
    hold.touch()
    (desk.folder / "clicked_training.py").write_text(TRAINING)
    document = {**STUDY, "train": {"steps": 100_000, "lr": 1.0, "hold": str(hold)}}
    (desk.folder / "study.yaml").write_text(yaml.safe_dump(document))
    running = desk.start("start", "study.yaml", *joined)
    desk.wait_for(lambda: desk.steps(0, "clicked") and desk.steps(1, "clicked"))
    ledger = Ledger.open(f"sqlite:///{desk.folder}/hpo.db")
    desk.wait_for(lambda: ledger.metrics(1) and ledger.metrics(2))

    server = desk.start("dashboard")
    printed = re.search(
        r"(http://127\.0\.0\.1:\d+)/dashboard\?(token=\S+)", server.stdout.readline()
    )
    assert printed is not None
    with tab(tmp_path / "profile") as browser:
        page = Page(browser, printed[1], printed[2])
        fail_one(page, ledger, desk)
        refuse_while_it_runs(page)
        page.open("/stop/1")
        page.click("button", "Stop clicked")
        page.says("Asked process")
        assert running.wait(timeout=60) == 130
        rename(page)
        hold.unlink()
        assert "study nicer is done" in desk.hpo("resume", "nicer", *joined)
        trials = desk.study("nicer").trials
        states = [trial.state for trial in trials]
        assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
        assert [trial.user_attrs["run_dir"] for trial in trials] == [
            str(desk.folder / f"runs/clicked/trial-000{number}") for number in range(4)
        ]
        assert {path.name for path in (desk.folder / "runs").iterdir() if path.is_dir()} == {
            "clicked"
        }
        delete(page)
    assert desk.json("list") == []
    assert (desk.folder / "runs/clicked/trial-0003").is_dir(), "its run folders stay"
    server.terminate()
    _, said = server.communicate(timeout=10)
    assert "Traceback" not in said


def fail_one(page: Page, ledger: Ledger, desk: Desk) -> None:
    """Fail a running trial: it ends, its gang trains the next one, and the other goes on."""
    page.open("/dashboard/studies/1/trials?numbers=0")
    page.says("Trial 0 (trial_id=1)")
    assert not page.sees("p", "Upload a New File")
    assert not page.sees("button[aria-label='delete artifact']")
    page.click("button", "Fail Trial")
    page.says("Successfully updated trial (id=1, state=Fail)")
    desk.wait_for(lambda: desk.steps(2, "clicked"), timeout=60)
    page.open("/dashboard/studies/1/trials?numbers=0")
    page.says("FAIL, outside: 1 attempt")
    assert not page.sees("button", "Fail Trial")
    (attempt,) = ledger.trial_attempts(1)
    assert attempt.reason == "outside"
    shown = desk.json("show", "clicked", "0")
    assert (shown["state"], shown["reason"]) == ("FAIL", "outside")
    assert desk.json("status", "clicked")["states"] == {"FAIL": 1, "RUNNING": 2}


def refuse_while_it_runs(page: Page) -> None:
    """Rename and delete are refused in a line that the page shows; create, upload are not there."""
    page.open("/dashboard")
    page.says("1. clicked")
    assert page.sees("button", "Reload")
    assert not page.sees("button", "Create")
    page.click("button[aria-label='rename study']")
    page.type("nicer")
    page.click("[role=dialog] button", "Rename")
    page.until("document.querySelector('#hpo-refused')?.innerText.includes('`hpo stop` it first')")
    assert page.sees("#hpo-refused", "study clicked is being run by process")
    page.click("#hpo-refused")
    assert not page.sees("#hpo-refused")
    page.click("button[aria-label='delete study']")
    page.says("Are you sure you want to delete a study (id=1)?")
    assert not page.sees("[aria-labelledby=delete-study-dialog-title] label")
    page.click("[role=dialog] button", "Yes")
    page.until("document.querySelector('#hpo-refused')?.innerText.includes('`hpo stop` it first')")
    page.says("1. clicked")
    assert page.ask("POST", "/api/studies", CREATE) == [403, "`hpo start STUDY.yaml` makes a study"]
    for path in ("/api/artifacts/1", "/api/artifacts/1/2"):
        status, reason = page.ask("POST", path, UPLOAD)
        assert (status, reason[:19]) == (403, "no files are kept h")


def rename(page: Page) -> None:
    """Rename a study that nobody runs."""
    page.open("/dashboard")
    page.click("button[aria-label='rename study']")
    page.type("nicer")
    page.click("[role=dialog] button", "Rename")
    page.says("1. nicer")
    assert not page.sees("*", "Success to delete")


def delete(page: Page) -> None:
    """Delete it; the page asks first."""
    page.open("/dashboard")
    page.click("button[aria-label='delete study']")
    page.click("[role=dialog] button", "Yes")
    page.says("Success to delete a study (id=1)")
    page.until("document.body?.innerText.includes('1. nicer') === false")
