"""The optuna-dashboard, its own program, on the ledger: of this machine, or behind a password.

It may change and delete studies, and has no log-in of its own (hpo/access.py is one). Infeasible
trials are left out of its best trials: optuna-dashboard 0.21 does so in its charts alone, and
neither in its API nor on the card that shows what that says.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer

import optuna
from optuna.storages import BaseStorage

from hpo.access import guarded, read_users
from hpo.constraints import is_feasible
from storage import Ledger
from trainer.settings import ConfigError


class _Server(ThreadingMixIn, WSGIServer):
    # A client that says nothing holds up itself alone.
    daemon_threads = True


def serve(
    ledger: Ledger, host: str, port: int | None, users: Path | None, say: Callable[[str], None]
) -> None:
    """Serve until interrupted, on `port` or a free one; `say` is told the address first.

    Raises ConfigError for an address that cannot be had, and for one that others reach without a
    file of `users`.
    """
    from bottle import run
    from optuna_dashboard import wsgi

    known = None if users is None else read_users(users)
    address, port = _free(host, port)
    if known is None and not ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"--host {host}: others reach that address; give --users FILE, which "
            "`htpasswd -B -c FILE NAME` makes"
        )
    shown = f"[{address}]" if ":" in address else address
    count_feasibility(ledger.storage)
    application = wsgi(ledger.storage)
    say(f"dashboard of {ledger.url} at http://{shown}:{port}/dashboard (Ctrl-C ends it)")
    run(
        application if known is None else guarded(application, known),
        host=address,
        port=port,
        server_class=_Server,
    )


def _free(host: str, port: int | None) -> tuple[str, int]:
    """The numeric address of `host`, and `port`, or a free one, if it can be bound there."""
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: no such address; use 127.0.0.1 or 0.0.0.0") from None
    family, kind, *_, place = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            reason = str(error.strerror).lower()
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"--host {host}: {reason}; use an address of this machine"
                ) from None
            raise ConfigError(f"--port {port}: {reason}; leave it out for a free one") from None
        return str(place[0]), int(probe.getsockname()[1])


def count_feasibility(storage: BaseStorage) -> None:
    """Have the dashboards of this process, all on `storage`, call no infeasible trial best."""
    from optuna_dashboard import _app

    serialize = _app.serialize_study_detail  # what it answers about a study goes through here

    def feasible_only(study: Any, best: list[Any], *others: Any) -> Any:
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        if not all(map(is_feasible, trials)):
            front = optuna.load_study(study_name=study.study_name, storage=storage).best_trials
            best = front if len(study.directions) > 1 else front[:1]
        return serialize(study, best, *others)

    _app.serialize_study_detail = feasible_only
