"""The dashboard's application: optuna-dashboard, with what the ledger knows added to it.

Notes and pictures are made when they are asked for, so looking writes nothing, and a note that
somebody has typed is kept. Infeasible trials are not among the best: optuna-dashboard 0.21 leaves
them out of its charts, but not out of its API, nor of the card that shows the API's answer. What a
person can change is in `writes.py`; beside that, a person can stop a study here.
"""

from __future__ import annotations

import hmac
import secrets
from html import escape
from pathlib import Path
from typing import Any, NoReturn

from bottle import Bottle, HTTPError, HTTPResponse, request, static_file
from optuna.trial import FrozenTrial

from hpo.reading.dashboard.notes import study_note, trial_note
from hpo.reading.dashboard.pictures import PICTURES, drawn
from hpo.reading.dashboard.writes import guard_writes
from hpo.search.constraints import is_feasible
from hpo.search.ranking import pareto_front
from hpo.study.load import config_of
from storage import Ledger, StudyRecord
from trainer.config.settings import ConfigError

_KEEPS_NONE = "pictures are drawn from the ledger when asked for; no files are kept here"
_HEAD = b'<script src="/hpo/page.js"></script><link rel="stylesheet" href="/hpo/page.css">'
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<body style="font: 18px sans-serif; margin: 4em auto; max-width: 34em"><h1>{name}</h1>
{said}<p><a href="/dashboard/studies/{study_id}/note">Back to the study</a></p></body></html>"""
_FORM = """<p>Run by {alive}. Its running trials write a checkpoint; the next <code>hpo resume
{name}</code> goes on with them.</p><form method="post"><input type="hidden" name="token"
value="{token}"><button style="font: inherit">Stop {name}</button></form>"""


def application(ledger: Ledger) -> Bottle:
    """Return optuna-dashboard's application on `ledger`, annotated; a process can have only one."""
    from optuna_dashboard import wsgi

    _annotate_studies(ledger)
    app: Bottle = wsgi(ledger.storage, artifact_store=_NoFiles())
    guard_writes(app, ledger)
    _add_page(app)
    _add_pictures(app, ledger)
    _add_stop(app, ledger)
    return app


class _NoFiles:
    """An empty artifact store that takes nothing: without a store, no picture would be shown."""

    def open_reader(self, artifact_id: str) -> NoReturn:
        raise HTTPError(404, _KEEPS_NONE)

    def write(self, artifact_id: str, content_body: object) -> NoReturn:
        raise HTTPError(400, _KEEPS_NONE)

    def remove(self, artifact_id: str) -> NoReturn:
        raise HTTPError(400, _KEEPS_NONE)


def _annotate_studies(ledger: Ledger) -> None:
    from optuna_dashboard import _app

    serialize = _app.serialize_study_detail  # every answer about a study goes through it

    def annotated(study: Any, best: Any, trials: list[FrozenTrial], *others: Any) -> Any:
        answer = serialize(study, _feasible(ledger, study, best), trials, *others)
        for record in ledger.studies():
            if record.name == study.study_name:
                _annotate(answer, ledger, record, trials)
        return answer

    _app.serialize_study_detail = annotated


def _feasible(ledger: Ledger, study: Any, best: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best trials of a study without infeasible ones."""
    study_id = ledger.storage.get_study_id_from_name(study.study_name)
    if all(map(is_feasible, ledger.storage.get_all_trials(study_id, deepcopy=False))):
        return best
    front = pareto_front(ledger, study.study_name)
    return front if len(study.directions) > 1 else front[:1]


def _annotate(
    answer: dict[str, Any], ledger: Ledger, record: StudyRecord, trials: list[FrozenTrial]
) -> None:
    """Add a note where nobody has typed one, and the list of the pictures that there are."""
    if not answer["note"]["body"]:
        answer["note"]["body"] = study_note(ledger, record, f"/stop/{record.study_id}")
    try:
        config = config_of(record)
    except ConfigError:
        return  # a study of another version: only what Optuna knows of its trials is shown
    attempts, fronts = ledger.attempts(record), ledger.depth_fronts(record)
    evaluated = ledger.last_metrics(record)
    for shown, trial in zip(answer["trials"], trials, strict=True):
        executed, front = attempts.get(trial._trial_id), fronts.get(trial._trial_id, [])
        if not executed:
            continue
        if not shown["note"]["body"]:
            shown["note"]["body"] = trial_note(trial, executed, front, record, config)
        drawable = {"c": trial._trial_id in evaluated, "d": bool(front)}
        shown["artifacts"] += [
            {"artifact_id": key, "filename": PICTURES[key][0], "mimetype": "image/png"}
            for key in PICTURES
            if drawable[key]
        ]


def _add_page(app: Bottle) -> None:
    """Have optuna-dashboard's page load a style and a script of ours."""
    (route,) = (route for route in app.routes if route.rule.startswith("/dashboard"))
    theirs = route.callback

    @app.get(route.rule)  # type: ignore[untyped-decorator]
    def page() -> Any:
        answer = theirs()
        if answer.status_code == 200 and request.method == "GET":
            text = answer.body.read().replace(b"</head>", _HEAD + b"</head>")
            answer.body, answer.content_length = text, len(text)
        return answer

    @app.get("/hpo/<name:re:page.(css|js)>")  # type: ignore[untyped-decorator]
    def part(name: str) -> Any:
        return static_file(name, root=Path(__file__).parent)


def _add_pictures(app: Bottle, ledger: Ledger) -> None:
    # This replaces optuna-dashboard's own route, which looks for artifacts in Optuna's tables.
    @app.get("/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>")  # type: ignore[untyped-decorator]
    def picture(study_id: int, trial_id: int, artifact_id: str) -> Any:
        if artifact_id not in PICTURES:
            raise HTTPError(404, _KEEPS_NONE)
        _, along, read = PICTURES[artifact_id]
        series = read(ledger, trial_id)
        if not series:
            raise HTTPError(404, "nothing to draw yet")
        number = ledger.storage.get_trial_number_from_id(trial_id)
        headers = {"Content-Type": "image/png", "Cache-Control": "no-cache"}
        return HTTPResponse(drawn(series, f"trial {number}", along), headers=headers)


def _add_stop(app: Bottle, ledger: Ledger) -> None:
    # Another site's page can send a form here, but cannot read this token.
    token = secrets.token_urlsafe()

    def page(record: StudyRecord, said: str) -> Any:
        text = _PAGE.format(name=escape(record.name), said=said, study_id=record.study_id)
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"Content-Type": "text/html", "Content-Security-Policy": policy}
        return HTTPResponse(text, headers=headers)

    @app.route("/stop/<study_id:int>", method=["GET", "POST"], skip=True)  # type: ignore[untyped-decorator]
    def stop(study_id: int) -> Any:
        record = next((r for r in ledger.studies() if r.study_id == study_id), None)
        if record is None:
            raise HTTPError(404, "no such study")
        name = escape(record.name)
        alive = escape(", ".join(str(c) for c in ledger.controllers(record) if c.alive))
        if not alive:
            return page(record, f"<p>Nobody runs it; <code>hpo resume {name}</code> goes on.</p>")
        if request.method == "GET":
            return page(record, _FORM.format(name=name, alive=alive, token=token))
        if not hmac.compare_digest(request.forms.get("token", "").encode(), token.encode()):
            raise HTTPError(403, "not sent from this dashboard's page; open it again")
        ledger.request_stop(record)
        return page(record, f"<p>Asked {alive} to stop; its running trials write checkpoints.</p>")
