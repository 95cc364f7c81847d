"""What a person may change in the dashboard: each route of optuna-dashboard that writes.

optuna-dashboard knows Optuna's tables only. A route of it is left as it is where that is right, is
given to an operation of the ledger, or is refused in one line that says what to do instead. A route
that OPERATIONS does not name, such as a newer version's, is refused. Studies that another program
has made are optuna-dashboard's own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bottle import Bottle, HTTPResponse, Route, request, response

from storage import LEASE_SECONDS, LeaseHeld, Ledger, LedgerError, StudyRecord

Answer = Callable[..., Any]
Operation = Callable[[Ledger, StudyRecord | None, Answer, dict[str, Any]], Any]

_FILES = "no files are kept here: `hpo show NAME NUMBER` names a trial's run folder, put them there"
_MEASURED = "a study of this program measures its objectives and has no preferences"
_MODEL = "no language model is set up for this dashboard"


class Refused(LedgerError):
    """The dashboard does not do this; the message says what does."""


def guard_writes(app: Bottle, ledger: Ledger) -> None:
    """Have every route of `app` that writes do what OPERATIONS says."""
    app.install(_Writes(ledger))


def left(ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]) -> Any:
    """Do what optuna-dashboard does."""
    return view(**of)


def refused(
    why: str, ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]
) -> Any:
    """Refuse, for all studies."""
    raise Refused(why)


def not_ours(
    why: str, ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]
) -> Any:
    """Refuse for a study of this program."""
    if study is not None:
        raise Refused(why)
    return view(**of)


def rename(ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]) -> Any:
    """Rename the study itself; optuna-dashboard would copy Optuna's rows and delete all others."""
    from optuna_dashboard import _serializer, _storage

    if study is None:
        return view(**of)
    name = _given("study_name")
    if not isinstance(name, str):
        raise Refused("study_name: the study's new name is missing")
    ledger.rename_study(study, name)
    renamed = _storage.get_study(ledger.storage, study.study_id)
    return HTTPResponse(_serializer.serialize_frozen_study(renamed), 201)


def delete(ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]) -> Any:
    """Delete a study that nobody runs, with all rows."""
    if study is None:
        return view(**of)
    ledger.delete_study(study)
    return {}


def tell(ledger: Ledger, study: StudyRecord | None, view: Answer, of: dict[str, Any]) -> Any:
    """Fail a trial, which stops its gang; its training alone can give it values."""
    if study is None:
        return view(**of)
    if str(_given("state")).upper() != "FAIL":
        raise Refused("a trial gets its values from its training; it can only be failed here")
    ledger.fail_trial(study, of["trial_id"])
    return {}


OPERATIONS: dict[str, Operation] = {
    "POST /api/studies": partial(refused, "`hpo start STUDY.yaml` makes a study"),
    "POST /api/studies/<study_id:int>/rename": rename,
    "DELETE /api/studies/<study_id:int>": delete,
    "POST /api/trials/<trial_id:int>/tell": tell,
    "PUT /api/studies/<study_id:int>/note": left,
    "PUT /api/studies/<study_id:int>/<trial_id:int>/note": left,
    "POST /api/trials/<trial_id:int>/user-attrs": partial(
        not_ours, "a trial's attributes are the service's own; write a note instead"
    ),
    "POST /api/studies/<study_id:int>/preference": partial(not_ours, _MEASURED),
    "PUT /api/studies/<study_id:int>/preference_feedback_component": partial(not_ours, _MEASURED),
    "DELETE /api/studies/<study_id:int>/preference/<history_id>": partial(not_ours, _MEASURED),
    "POST /api/studies/<study_id:int>/preference/<history_id>": partial(not_ours, _MEASURED),
    "POST /api/studies/<study_id:int>/<trial_id:int>/skip": partial(not_ours, _MEASURED),
    "POST /api/artifacts/<study_id:int>": partial(refused, _FILES),
    "POST /api/artifacts/<study_id:int>/<trial_id:int>": partial(refused, _FILES),
    "DELETE /api/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>": partial(refused, _FILES),
    "DELETE /api/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>": partial(
        refused, _FILES
    ),
    "POST /api/llm/trial_filter_query": partial(refused, _MODEL),
    "POST /api/llm/generate_plotly_graph_query": partial(refused, _MODEL),
    "POST /api/llm/re_generate_plotly_graph_query": partial(refused, _MODEL),
    "POST /incompatible-rdb-schema": partial(refused, "any `hpo` command updates the tables"),
}


class _Writes:
    """Bottle's plugin, which is asked for each route."""

    name, api = "hpo-writes", 2

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def apply(self, view: Answer, route: Route) -> Answer:
        if route.method == "GET":
            return view
        unknown: Operation = partial(
            refused, "this dashboard does not do that; `hpo --help` lists what can"
        )
        operation = OPERATIONS.get(f"{route.method} {route.rule}", unknown)

        def write(**of: Any) -> Any:
            try:
                answer = operation(self._ledger, self._study(of), view, of)
                if response.status_code == 204:  # the page wants JSON, and says that all failed
                    response.status = 200
                return answer
            except LeaseHeld as error:
                killed = f"if it was killed, try again in {LEASE_SECONDS:.0f} s"
                return _no(f"{error}: `hpo stop` it first; {killed}", 409)
            except LedgerError as error:
                return _no(str(error), 403 if isinstance(error, Refused) else 409)

        return write

    def _study(self, of: dict[str, Any]) -> StudyRecord | None:
        """Return the study that the route's address names, if this program made it."""
        if not {"study_id", "trial_id"} & of.keys():
            return None
        return self._ledger.study_of(study_id=of.get("study_id"), trial_id=of.get("trial_id"))


def _given(key: str) -> Any:
    """Return what the request's JSON has as `key`; None without it."""
    said = request.json
    return said.get(key) if isinstance(said, dict) else None


def _no(why: str, status: int) -> HTTPResponse:
    return HTTPResponse({"reason": why}, status)
