"""The optuna-dashboard, its own program, on the ledger. Loopback only: it has no log-in."""

from __future__ import annotations

import socket
from collections.abc import Callable

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
    run_server(ledger.storage, host=HOST, port=port)
