"""What the dashboard shows beside what Optuna knows, asked of its own HTTP API."""

from __future__ import annotations

import json
import queue
import re
import sqlite3
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import optuna
import pytest
from markdown_it import MarkdownIt

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.reading.dashboard import server as dashboard
from storage import Ledger
from tests.hpo.dashboard_api import Ask, asking
from tests.hpo.stage import Stage, play

FRONT = [
    {"depth": depth, "search": search, "layers": [*range(1, depth + 1)], "valid_ppl": 90.5 / depth,
     "parameters": 1_000 * depth, "seconds_per_token": depth * 1e-6}
    for depth, search in ((2, "every_other"), (2, "greedy"), (4, "whole"))
]  # fmt: skip
HOSTILE = (
    "```\n````\n# x\n<img src=x onerror=alert(1)> | [y](javascript:z) ![i](/api) _e_ **b** $m$"
)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(
        f"sqlite:///{tmp_path}/hpo.db",
        constraints=[{"metric": "peak_memory_bytes", "max": 1000}],
        tracking={"wandb": {"project": "lm", "entity": "team"}},
        resources={"concurrent_trials": 3},
    )


@pytest.fixture
def controller(stage: Stage) -> Controller:
    return stage.controller()


@pytest.fixture
def ask(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Ask:
    return asking(stage.ledger, monkeypatch)


def shown(ask: Ask) -> Any:
    status, study = ask("/api/studies/1")
    assert status == 200
    return study


def finish(controller: Controller, memory: float = 900.0) -> int:
    metrics = {"valid_ppl": 22.6, "peak_memory_bytes": memory, "step_seconds": 0.1}
    return play(
        controller,
        Message("evaluated", 100, {**metrics, "valid_ppl": 60.0}, first_step=0),
        Message("finished", 300, metrics, depth_front=FRONT),
    )


def rows(stage: Stage) -> list[str]:
    """The whole database, as SQL."""
    with sqlite3.connect(stage.ledger.url.removeprefix("sqlite:///")) as database:
        return [*database.iterdump()]


def test_a_trials_note_says_what_the_ledger_knows_of_it(
    stage: Stage, controller: Controller, ask: Ask
) -> None:
    play(
        controller,
        Message("evaluated", 100, {"valid_ppl": 60.0}, first_step=0),
        Message("worker_lost", detail="Traceback\nrank 1 died"),
    )
    assert "rank 1 died" in shown(ask)["trials"][0]["note"]["body"]
    finish(controller, memory=1200.0)
    trial = shown(ask)["trials"][0]
    note = trial["note"]["body"]
    assert note.startswith("**COMPLETE**: 2 attempts, ")
    assert "Infeasible: peak&#95;memory&#95;bytes &#60;&#61; 1000 missed by 200" in note
    assert re.search(r"^\| 1 \| 0-100 \| worker&#95;lost \| \d+\.\d \|$", note, re.MULTILINE)
    assert re.search(r"^\| 2 \| 0-300 \|  \| \d+\.\d \|$", note, re.MULTILINE)
    assert "| 2 | 1 2 | every&#95;other | 45.25 | 2,000 | 2.0 |" in note
    assert "run folder  /runs/played/trial-0000" in note
    assert "hpo show played 0" in note
    assert re.search(r"https://wandb.ai/team/lm/runs/[0-9a-f]{16}\)", note)
    assert [each["filename"] for each in trial["artifacts"]] == [
        "learning-curve.png", "depth-front.png"
    ]  # fmt: skip
    assert trial["constraints"][0] > 0


def test_a_studys_note_has_its_file_and_how_to_stop_or_resume_it(
    stage: Stage, controller: Controller, ask: Ask
) -> None:
    finish(controller)
    note = shown(ask)["note"]["body"]
    assert note.startswith("1 of 4 trials (1 complete), ")
    assert f"```yaml\n{stage.record.document.rstrip()}\n```" in note
    assert "[Stop it](/stop/1)" in note
    stage.lapse()
    assert "Nobody runs it; `hpo resume played` goes on." in shown(ask)["note"]["body"]


def test_looking_writes_nothing(stage: Stage, controller: Controller, ask: Ask) -> None:
    finish(controller)
    before = rows(stage)
    for path in ("/api/meta", "/api/studies", "/api/studies/1", "/csv/1", "/stop/1"):
        assert ask(path)[0] == 200
    for picture in ("c", "d"):
        status, image = ask(f"/artifacts/1/1/{picture}")
        assert (status, image[:8]) == (200, b"\x89PNG\r\n\x1a\n")
    assert rows(stage) == before


def test_a_note_that_somebody_typed_stays_and_an_emptied_one_is_made_again(
    controller: Controller, ask: Ask
) -> None:
    finish(controller)
    for path, of in (("note", lambda study: study), ("1/note", lambda study: study["trials"][0])):
        made = of(shown(ask))["note"]
        assert made["version"] == 0
        for version, body in ((1, "mine"), (2, "")):
            data = {"version": version, "body": body}
            assert ask(f"/api/studies/1/{path}", "PUT", data=data)[0] == 200
            kept = of(shown(ask))["note"]
            assert kept["version"] == version
            assert kept["body"] == body if body else kept["body"].endswith("this is back.*")


def test_no_text_of_the_ledger_is_more_than_text_in_a_note(
    stage: Stage, controller: Controller, ask: Ask
) -> None:
    number = play(controller, Message("error", detail=f"{HOSTILE}\n```` <b> {HOSTILE}"))
    storage = stage.ledger.storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(1, number)
    with sqlite3.connect(stage.ledger.url.removeprefix("sqlite:///")) as database:
        for key in ("reason", "run_dir"):
            database.execute(
                "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) "
                "VALUES (?, ?, ?)", (trial_id, key, json.dumps(HOSTILE)),
            )  # fmt: skip
        database.execute("UPDATE hpo_controllers SET host = ?", (HOSTILE,))
    of_trial = shown(ask)["trials"][0]["note"]["body"]
    with sqlite3.connect(stage.ledger.url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE hpo_studies SET document = ?", (HOSTILE,))
    for note in (of_trial, shown(ask)["note"]["body"]):
        tokens = MarkdownIt("commonmark").enable("table").parse(note)
        inner = [part for token in tokens for part in token.children or ()]
        links = [str(part.attrs.get("href")) for part in inner if part.type == "link_open"]
        assert {part.type for part in inner} <= {
            "text", "text_special", "softbreak", "strong_open", "strong_close", "em_open",
            "em_close", "code_inline", "link_open", "link_close",
        }  # fmt: skip
        assert all(link == "/stop/1" or link.startswith("https://wandb.ai/") for link in links)
        assert not {"html_block", "h1", "image"} & {token.type for token in tokens}
        assert all(token.tag in ("h4", "") for token in tokens if token.type == "heading_open")
        strong = sum(part.type == "strong_open" for part in inner)
        assert strong == note.startswith("**")
        assert any("onerror=alert" in token.content for token in tokens if token.type == "fence")


def test_there_are_pictures_of_what_was_measured_alone_and_no_files(
    controller: Controller, ask: Ask
) -> None:
    play(controller, Message("diverged", 5, {}))
    assert shown(ask)["trials"][0]["artifacts"] == []
    for path in ("1/1/c", "1/1/d", "1/1/ab", "1/99/c", "1/ab"):
        assert ask(f"/artifacts/{path}")[0] == 404
    file = {"file": "data:text/html;base64,PGI+", "filename": "x.html"}
    status, refused = ask("/api/artifacts/1", "POST", data=file)
    assert (status, refused["reason"][:18]) == (403, "no files are kept ")


def test_a_study_is_stopped_from_its_page_and_by_that_alone(
    stage: Stage, controller: Controller, ask: Ask
) -> None:
    def asked_to_stop() -> bool:
        return stage.ledger.study("played").stop_requested_at is not None

    status, page = ask("/stop/1")
    token = re.search(rb'name="token"\s+value="([^"]+)"', page)
    assert token is not None
    assert ask("/stop/1", "POST", form="token=guessed")[0] == 403
    assert ask("/stop/2")[0] == 404
    assert not asked_to_stop()
    form = urlencode({"token": token[1].decode()})
    status, page = ask("/stop/1", "POST", form=form)
    assert status == 200
    assert b"to stop" in page
    assert asked_to_stop()
    stage.lapse()
    assert b"Nobody runs it" in ask("/stop/1", "POST", form=form)[1]


def test_a_study_of_another_program_is_shown_as_it_is(stage: Stage, ask: Ask) -> None:
    other = optuna.create_study(storage=stage.ledger.storage, study_name="other")
    other.add_trial(optuna.trial.create_trial(value=1.0))
    status, study = ask("/api/studies/2")
    assert (status, study["note"]["body"], study["trials"][0]["artifacts"]) == (200, "", [])


@pytest.mark.parametrize(("terminal", "ssh"), [(True, False), (False, False), (True, True)])
def test_the_browser_opens_where_somebody_sits(
    terminal: bool, ssh: bool, stage: Stage, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: queue.Queue[tuple[str, str]] = queue.Queue()
    read = threading.Event()

    def browser(url: str) -> None:
        opened.put((url, Path(url.removeprefix("file://")).read_text()))
        read.set()

    monkeypatch.setattr(webbrowser, "open", browser)
    monkeypatch.setattr(
        dashboard._Server, "serve_forever", lambda _: read.wait(10 if terminal and not ssh else 0)
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    if ssh:
        monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    said: list[str] = []
    dashboard.serve(stage.ledger, "127.0.0.1", None, None, said.append)
    if terminal and not ssh:
        url, page = opened.get(timeout=10)
        address = said[0].split(" at ")[1].split(" ")[0]
        assert f"url={address}" in page
        assert "token=" in address
        assert "token=" not in url  # everybody sees the command line that a browser is started with
    else:
        assert opened.empty()


def test_the_depth_fronts_of_a_study_are_those_of_its_trials(
    stage: Stage, controller: Controller
) -> None:
    for _ in range(2):
        finish(controller)
    ledger: Ledger = stage.ledger
    fronts = ledger.depth_fronts(stage.record)
    assert fronts[1]
    assert {key: ledger.depth_front(key) for key in (1, 2)} == {
        key: [{k: v for k, v in point.items() if k != "trial_id"} for point in front]
        for key, front in fronts.items()
    }
