"""What each route of optuna-dashboard that writes does to our ledger."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpo import clock
from hpo.control.messages import Message
from hpo.reading.dashboard.writes import OPERATIONS
from storage import LeaseHeld, LedgerError, Reason
from tests.hpo.dashboard_api import Ask, asking
from tests.hpo.stage import Stage, finish, ppl
from tests.leases import lapse

pytestmark = pytest.mark.slow

ARTIFACT = "0f"
# One request for each route that writes; {name} is what the address names.
REQUESTS = {
    "POST /api/studies": {"study_name": "new", "directions": ["minimize"]},
    "POST /api/studies/<study_id:int>/rename": {"study_name": "nicer"},
    "DELETE /api/studies/<study_id:int>": {},
    "POST /api/trials/<trial_id:int>/tell": {"state": "Fail"},
    "PUT /api/studies/<study_id:int>/note": {"version": 1, "body": "mine"},
    "PUT /api/studies/<study_id:int>/<trial_id:int>/note": {"version": 1, "body": "mine"},
    "POST /api/trials/<trial_id:int>/user-attrs": {"user_attrs": {"run_dir": "/etc"}},
    "POST /api/studies/<study_id:int>/preference": {
        "mode": "ChooseWorst", "candidates": [0, 1], "clicked": 0
    },
    "PUT /api/studies/<study_id:int>/preference_feedback_component": {"output_type": "note"},
    "DELETE /api/studies/<study_id:int>/preference/<history_id>": {},
    "POST /api/studies/<study_id:int>/preference/<history_id>": {},
    "POST /api/studies/<study_id:int>/<trial_id:int>/skip": {},
    "POST /api/artifacts/<study_id:int>": {"file": "data:text/plain;base64,eA==", "filename": "x"},
    "POST /api/artifacts/<study_id:int>/<trial_id:int>": {"file": "data:,x", "filename": "x"},
    "DELETE /api/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>": {},
    "DELETE /api/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>": {},
    "POST /api/llm/trial_filter_query": {"user_query": "x"},
    "POST /api/llm/generate_plotly_graph_query": {"user_query": "x"},
    "POST /api/llm/re_generate_plotly_graph_query": {"modification_request_query": "x"},
    "POST /incompatible-rdb-schema": {},
}  # fmt: skip
DONE = {
    "POST /api/studies/<study_id:int>/rename",
    "DELETE /api/studies/<study_id:int>",
    "POST /api/trials/<trial_id:int>/tell",
    "PUT /api/studies/<study_id:int>/note",
    "PUT /api/studies/<study_id:int>/<trial_id:int>/note",
}


@pytest.fixture
def stage(url: str) -> Stage:
    return Stage(url, resources={"concurrent_trials": 2})


@pytest.fixture
def ask(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Ask:
    return asking(stage.ledger, monkeypatch)


def request(ask: Ask, route: str, data: object) -> tuple[int, object]:
    """What the route answers about study 1, trial 1."""
    method, _, path = route.partition(" ")
    for part, value in (
        ("<study_id:int>", "1"), ("<trial_id:int>", "1"), ("<history_id>", "x"),
        ("<artifact_id:re:[0-9a-fA-F-]+>", ARTIFACT),
    ):  # fmt: skip
        path = path.replace(part, value)
    return ask(path, method, data=data)


def test_every_route_that_writes_is_known_and_no_other(stage: Stage) -> None:
    import optuna_dashboard

    app = optuna_dashboard.wsgi(stage.ledger.storage)
    writing = {f"{r.method} {r.rule}" for r in app.routes if r.method != "GET"}
    assert writing == OPERATIONS.keys() == REQUESTS.keys()


@pytest.mark.parametrize("route", sorted(REQUESTS.keys() - DONE))
def test_what_is_not_done_is_refused_in_one_line_and_writes_nothing(
    route: str, stage: Stage, ask: Ask
) -> None:
    controller = stage.controller()
    assert controller.next() is not None
    before = dump(stage)
    status, said = request(ask, route, REQUESTS[route])
    if isinstance(said, bytes):  # of a route that is none of its API
        assert b"updates the tables" in said
    else:
        assert isinstance(said, dict)
        assert said["reason"].isprintable()
    assert status == 403
    assert dump(stage) == before


def test_a_route_that_nobody_knows_is_refused(stage: Stage, ask: Ask) -> None:
    import optuna_dashboard  # noqa: F401 - the application is of a later version

    from hpo.reading.dashboard import writes

    with pytest.MonkeyPatch.context() as newer:
        newer.delitem(writes.OPERATIONS, "DELETE /api/studies/<study_id:int>")
        status, said = ask("/api/studies/1", "DELETE", data={})
    assert (status, said["reason"][:28]) == (403, "this dashboard does not do t")
    assert stage.ledger.study("played")


def test_failing_a_trial_stops_it_and_the_study_ends_with_all_others(
    stage: Stage, ask: Ask
) -> None:
    controller = stage.controller()
    for _ in range(2):
        assert controller.next() is not None
    route = "POST /api/trials/<trial_id:int>/tell"
    assert request(ask, route, {"state": "Complete", "values": [0.1]})[0] == 403
    assert request(ask, route, {"state": "Fail"})[0] == 200
    assert controller.ended_outside() == [0], "its gang is asked to stop"
    assert not controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    status, said = request(ask, route, {"state": "Fail"})
    assert (status, said) == (409, {"reason": "study played: the trial is already FAIL"})
    controller.handle(1, 1, Message("finished", 300, ppl(8.0)))
    assert [finish(controller) for _ in range(2)] == [2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    states = [trial.state for trial in stage.trials]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert stage.trials[0].user_attrs["reason"] == Reason.OUTSIDE
    (attempt,) = stage.ledger.trial_attempts(1)
    assert attempt.reason is Reason.OUTSIDE


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [("POST", "/api/studies/1/rename", {"study_name": "nicer"}), ("DELETE", "/api/studies/1", {})],
)
def test_a_study_that_somebody_runs_is_neither_renamed_nor_deleted(
    method: str, path: str, data: dict[str, str], stage: Stage, ask: Ask
) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    status, said = ask(path, method, data=data)
    assert status == 409
    assert said["reason"].startswith("study played is being run by process ")
    assert "`hpo stop` it first" in said["reason"]
    assert [finish(controller) for _ in range(3)] == [1, 2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    assert len(stage.trials) == 4


def test_a_renamed_study_keeps_everything_and_goes_on_in_its_run_folders(
    stage: Stage, ask: Ask
) -> None:
    controller = stage.controller()
    assert finish(controller) == 0
    assert controller.next() is not None
    stage.lapse()
    before = [line.replace("'played'", "'nicer'") for line in dump(stage)]
    status, said = ask("/api/studies/1/rename", "POST", data={"study_name": "nicer"})
    assert status == 201
    assert (said["study_id"], said["study_name"]) == (1, "nicer")
    lost = [line for line in {*before} - {*dump(stage)} if "hpo_controllers" not in line]
    assert [line for line in lost if "hpo_attempts" not in line] == [], "but the dead controller's"
    record = stage.ledger.study("nicer")
    assert (record.uid, record.reserved_trials) == (stage.record.uid, 2)
    stage.record = record
    heir = stage.controller()
    again = heir.next()
    assert again is not None
    assert (again.assignment.job, again.assignment.attempt) == (1, 2)
    assert again.assignment.document["output_dir"] == "/runs/played/trial-0001"
    heir.handle(1, 2, Message("finished", 300, ppl(5.0)))
    assert [finish(heir) for _ in range(2)] == [2, 3]
    assert heir.next() is None
    assert heir.look_for_end()
    assert [trial.user_attrs["run_dir"] for trial in stage.trials] == [
        f"/runs/played/trial-000{number}" for number in range(4)
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other", "study other is in the ledger already"),
        ("../x", "'../x' is no name for a study"),
        (7, "study_name: the study's new name is missing"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: object, words: str, stage: Stage, ask: Ask) -> None:
    optuna.create_study(storage=stage.ledger.storage, study_name="other")
    before = dump(stage)
    status, said = ask("/api/studies/1/rename", "POST", data={"study_name": name})
    assert status in (403, 409)
    assert said["reason"].startswith(words)
    assert dump(stage) == before


def test_a_deleted_study_leaves_no_row_and_its_name_is_free(stage: Stage, ask: Ask) -> None:
    kept = stage.ledger.create_study(
        "kept", [StudyDirection.MINIMIZE], ["valid_ppl"], stage.record.document, 1
    )
    controller = stage.controller()
    assert finish(controller) == 0
    assert controller.next() is not None
    stage.lapse()
    assert ask("/api/studies/1", "DELETE", data={"remove_associated_artifacts": True})[0] == 200
    rows = [line for line in dump(stage) if line.startswith("INSERT") and "version" not in line]
    assert [line for line in rows if '"hpo_' in line] == [
        line for line in rows if '"hpo_studies" VALUES(2,' in line
    ]
    assert not [line for line in rows if "trial" in line.split("VALUES")[0]]
    assert [study.name for study in stage.ledger.studies()] == ["kept"]
    again = stage.ledger.create_study(
        "played", [StudyDirection.MINIMIZE], ["valid_ppl"], stage.record.document, 1
    )
    assert again.uid != stage.record.uid
    assert stage.ledger.study("kept") == kept


def test_a_study_of_another_program_is_optuna_dashboards_affair(stage: Stage, ask: Ask) -> None:
    other = optuna.create_study(storage=stage.ledger.storage, study_name="other")
    other.ask()
    assert ask("/api/trials/1/user-attrs", "POST", data={"user_attrs": {"x": 1}})[0] == 200
    assert ask("/api/trials/1/tell", "POST", data={"state": "Complete", "values": [1]})[0] == 200
    assert other.trials[0].values == [1.0]
    assert ask("/api/studies/2/rename", "POST", data={"study_name": "mine"})[0] == 201
    assert ask("/api/studies/3", "DELETE", data={})[0] == 200
    assert [study.study_name for study in optuna.get_all_study_summaries(stage.ledger.storage)] == [
        "played"
    ]


def test_the_page_loads_our_style_and_script(stage: Stage, ask: Ask) -> None:
    status, page = ask("/dashboard/studies/1")
    assert status == 200
    parts = [b"/hpo/page.js", b"/hpo/page.css", b"/static/bundle.js"]
    assert all(part in page for part in parts)
    assert b"optuna-loading-message" in page
    for name in ("page.js", "page.css"):
        status, part = ask(f"/hpo/{name}")
        assert (status, part) == (200, (HERE / name).read_bytes())
    assert ask("/hpo/writes.py")[0] == 404


HERE = Path(__file__).parents[2] / "hpo/reading/dashboard"


def dump(stage: Stage) -> list[str]:
    """The whole database, as SQL."""
    import sqlite3

    with sqlite3.connect(stage.ledger.url.removeprefix("sqlite:///")) as database:
        return [*database.iterdump()]


def test_a_trial_is_failed_a_study_renamed_and_deleted_on_either_database(ledger_url: str) -> None:
    stage = Stage(ledger_url)
    controller = stage.controller()
    assert controller.next() is not None
    trial_id = stage.trials[0]._trial_id
    stage.ledger.fail_trial(stage.record, trial_id)
    with pytest.raises(LedgerError, match="already FAIL"):
        stage.ledger.fail_trial(stage.record, trial_id)
    assert not controller.handle(0, 1, Message("finished", 300, ppl(5.0), first_step=0))
    assert finish(controller) == 1
    stage.ledger.release(controller.leased.lease)
    stage.ledger.rename_study(stage.record, "nicer")
    record = stage.ledger.study("nicer")
    assert (len(stage.ledger.trials(record, *TrialState)), record.uid) == (2, stage.record.uid)
    stage.ledger.delete_study(record)
    assert stage.ledger.studies() == []
    assert optuna.get_all_study_summaries(stage.ledger.storage) == []


def test_a_controller_that_may_live_is_watched_for_a_lease_before_its_study_is_deleted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, now = Stage(url), 0.0
    monkeypatch.setattr(clock, "source", lambda: now)
    stage.controller()
    lapse(stage.ledger, dead=False)  # or the database was away
    for seconds in (0.0, 14.0):
        now = seconds
        with pytest.raises(LeaseHeld):
            stage.ledger.delete_study(stage.record)
    now = 16.0
    stage.ledger.delete_study(stage.record)
    assert stage.ledger.studies() == []


def test_a_controller_that_came_back_meanwhile_keeps_its_study(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, now = Stage(url), 0.0
    monkeypatch.setattr(clock, "source", lambda: now)
    controller = stage.controller()
    lapse(stage.ledger, dead=False)
    with pytest.raises(LeaseHeld):
        stage.ledger.rename_study(stage.record, "nicer")
    assert finish(controller) == 0
    now = 16.0
    with pytest.raises(LeaseHeld):
        stage.ledger.rename_study(stage.record, "nicer")
    assert stage.ledger.study("played") == stage.ledger.study_of(study_id=1)
