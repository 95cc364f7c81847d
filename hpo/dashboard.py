"""The optuna-dashboard, its own program, on the ledger. Loopback only: it has no log-in.

Infeasible trials are left out of its best trials: optuna-dashboard 0.21 does so in its charts
alone, and neither in its API nor on the card that shows what that says.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import optuna
from optuna.storages import BaseStorage

from hpo.constraints import is_feasible
from storage import Ledger
from trainer.settings import ConfigError

HOST = "127.0.0.1"


def serve(ledger: Ledger, port: int | None, say: Callable[[str], None]) -> None:
    """Serve until interrupted, on `port` or a free one; `say` is told the address first."""
    from optuna_dashboard import run_server

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except OSError as error:
            raise ConfigError(
                f"--port {port}: {str(error.strerror).lower()}; leave it out for a free one"
            ) from None
        port = probe.getsockname()[1]
    say(f"dashboard of {ledger.url} at http://{HOST}:{port}/dashboard (Ctrl-C ends it)")
    count_feasibility(ledger.storage)
    run_server(ledger.storage, host=HOST, port=port)


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
