"""Serving optuna-dashboard on the ledger, for this machine alone or behind a password.

optuna-dashboard can change and delete studies and has no log-in; `access.py` adds one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from hpo.reading.dashboard.access import Application, for_hosts, for_token, guarded, read_users
from hpo.reading.dashboard.overlay import application
from storage import Ledger
from trainer.config.settings import ConfigError

CLIENTS = 32  # are answered at a time, by a thread each
SILENCE_SECONDS, ANSWER_SECONDS = 20.0, 120.0  # of a client, and until it must have its answer


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_SECONDS


class _Server(ThreadingMixIn, WSGIServer):
    """Answers a limited number of clients at a time; one more takes the place of the oldest.

    A client that says nothing, or a byte now and then, holds up neither others nor the end.
    """

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._places = threading.BoundedSemaphore(CLIENTS)
        self._since: dict[Any, float] = {}  # of each connection, the oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self._cut(max_age=0.0, at_most=1)
            if not self._places.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def service_actions(self) -> None:
        self._cut(max_age=ANSWER_SECONDS, at_most=CLIENTS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client is gone, slow, or was cut
            super().handle_error(request, client_address)

    def _leave(self, request: Any) -> None:
        self._since.pop(request, None)
        self._places.release()

    def _cut(self, max_age: float, at_most: int) -> None:
        """End the oldest connections, if they are older than `max_age`: their threads then end."""
        for request, since in list(self._since.items())[:at_most]:
            if time.monotonic() - since >= max_age:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


def serve(
    ledger: Ledger,
    host: str,
    port: int | None,
    users: Path | None,
    say: Callable[[str], None],
    *,
    token: bool = True,
) -> None:
    """Serve until interrupted, on `port` or a free one; `say` is told the address first.

    Without `users` the address has a `token`, if wanted. Raises ConfigError for an address that
    cannot be had, and for one that other machines reach if there is no file of `users`.
    """
    known = None if users is None else read_users(users)
    family, address = _resolved(host)
    if known is None and not ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"--host {host}: others reach that address; give --users FILE, which "
            "`htpasswd -B -c FILE NAME` makes"
        )
    served: Application = application(ledger)
    key = secrets.token_urlsafe(32) if token and known is None else None
    if key is not None:
        served = for_token(served, key)
    if known is None:
        served = for_hosts(served, {"localhost", "127.0.0.1", "::1", host, address})
    else:
        served = guarded(served, known)
    with _bound(family, address, host, port) as server:
        server.set_app(served)
        shown = f"[{address}]" if ":" in address else address
        page = f"http://{shown}:{server.server_port}/dashboard{f'?token={key}' if key else ''}"
        say(f"dashboard of {ledger.url} at {page} (Ctrl-C ends it)")
        with _redirect(page) as file:
            if on_a_desktop():
                threading.Thread(target=webbrowser.open, args=(file,), daemon=True).start()
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


@contextlib.contextmanager
def _redirect(page: str) -> Iterator[str]:
    """Yield the URL of a file of this account's alone that leads to `page`.

    A browser is started with it: everybody sees the command lines of processes, and the token.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="hpo-dashboard-") as file:
        file.write(f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={page}">')
        file.flush()
        yield Path(file.name).as_uri()


def on_a_desktop() -> bool:
    """Return whether somebody sits at this machine who would see a browser open."""
    display = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    return sys.stdout.isatty() and bool(display) and "SSH_CONNECTION" not in os.environ


def _resolved(host: str) -> tuple[int, str]:
    """Return the family and the numeric address of `host`. Raises ConfigError without any."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: no such address; use 127.0.0.1 or 0.0.0.0") from None
    return found[0][0], str(found[0][4][0])


def _bound(family: int, address: str, host: str, port: int | None) -> _Server:
    """Return a server that has the address already, so that a browser may connect at once."""
    kind = type("_Server", (_Server,), {"address_family": family})
    try:
        server: _Server = kind((address, port or 0), _Handler)
    except OSError as error:
        reason = str(error.strerror).lower()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host}: {reason}; use an address of this machine") from None
        raise ConfigError(f"--port {port}: {reason}; leave it out for a free one") from None
    return server
