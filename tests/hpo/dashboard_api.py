"""Asking the dashboard's own HTTP API, without a server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from hpo.reading.dashboard.overlay import application
from storage import Ledger

Ask = Callable[..., tuple[int, Any]]


def asking(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """What a request to the dashboard of `ledger` answers; a process has one, until its test ends.

    An answer is a status and, of JSON, what it says.
    """
    import optuna_dashboard  # which takes seconds: for the tests that ask for it

    module = optuna_dashboard._app
    monkeypatch.setattr(module, "serialize_study_detail", module.serialize_study_detail)
    app = application(ledger)

    def ask(path: str, method: str = "GET", *, form: str = "", data: Any = None) -> tuple[int, Any]:
        app._inmemory_cache.clear()  # of seconds
        body = (form or json.dumps(data)).encode()
        kind = "application/x-www-form-urlencoded" if form else "application/json"
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_TYPE": kind,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        setup_testing_defaults(environ)
        said: list[str] = []
        answer = b"".join(app(environ, lambda status, *_: said.append(status)))
        status = int(said[0].split()[0])
        return status, json.loads(answer) if path.startswith("/api/") and answer else answer

    return ask
