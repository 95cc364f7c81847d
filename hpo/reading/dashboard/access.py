"""Who may open the dashboard: who knows its token, or is in a file that `htpasswd -B` wrote.

The token is for this machine, where every account and every page in a browser reaches the address.
Passwords are compared as bcrypt hashes only (`logins.py`). None is kept, logged or taken from a
command line. This module does not encrypt the connection.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from hpo.reading.dashboard.logins import GUESS_SECONDS, Logins
from trainer.config.settings import ConfigError

Application = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]

_LINE = re.compile(rb"([^:\s][^:]*):(\$2[aby]\$\d\d\$[./A-Za-z0-9]{53})")
_MAKE = "make it with: htpasswd -B -c"


def read_users(path: Path) -> dict[bytes, bytes]:
    """Return the bcrypt hash of each user in the htpasswd file `path`.

    Raises ConfigError, in one line that shows nothing of the file, unless it is such a file and no
    other account can read it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            lines = [line for line in file.read(2**20).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--users {path}: {str(reason).lower()}; {_MAKE} {path} NAME") from None
    if status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"--users {path}: is not yours alone (mode {mode:o}); own it, and chmod 600 {path}"
        )
    users = {}
    for number, line in enumerate(lines, 1):
        entry = _LINE.fullmatch(line.strip())
        if entry is None:
            raise ConfigError(
                f"--users {path}: line {number} is not NAME:BCRYPT-HASH; {_MAKE} {path} NAME"
            )
        users[entry[1]] = entry[2]
    if not users:
        raise ConfigError(f"--users {path}: names no user; {_MAKE} {path} NAME")
    return users


def guarded(application: Application, users: Mapping[bytes, bytes]) -> Application:
    """Return `application` for `users` only: without a right password the answer is 401.

    It is 429 where too many wrong ones came from.
    """
    from bottle import parse_auth

    logins = Logins(users)

    def guard(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = parse_auth(environ.get("HTTP_AUTHORIZATION", ""))
        known: bool | None = False
        if given is not None:
            user, password = (part.encode() for part in given)
            known = logins.knows(user, password, environ.get("REMOTE_ADDR", ""))
        if known:
            return application(environ, start_response)
        if known is None:
            wait = ("Retry-After", f"{GUESS_SECONDS:.0f}")
            start_response("429 Too Many Requests", [wait, ("Content-Type", "text/plain")])
            return [b"too many wrong passwords came from your address; wait a minute\n"]
        challenge = ("WWW-Authenticate", 'Basic realm="hpo dashboard", charset="UTF-8"')
        start_response("401 Unauthorized", [challenge, ("Content-Type", "text/plain")])
        return [b"this dashboard wants a user and a password\n"]

    return guard


def for_hosts(application: Application, hosts: Collection[str]) -> Application:
    """Return `application` for requests to one of `hosts`, whatever the port.

    A page of another site can make its own name stand for this machine's address, and would then be
    allowed to read and change everything here (DNS rebinding): its requests name that site.
    """

    def guard(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            host = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname
        except ValueError:
            host = None
        if host in hosts:
            return application(environ, start_response)
        return _refused(start_response, f"this dashboard is at {sorted(hosts)[0]} alone")

    return guard


def for_token(application: Application, token: str) -> Application:
    """Return `application` for whoever names the `token` once, in the address; then by a cookie."""
    session, name = secrets.token_urlsafe(32), f"hpo-{secrets.token_hex(4)}"

    def guard(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        if name in cookies and _same(cookies[name].value, session):
            return application(environ, start_response)
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if not any(key == "token" and _same(value, token) for key, value in query):
            return _refused(start_response, "open the address that `hpo dashboard` has printed")
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        path = environ.get("PATH_INFO", "/").lstrip("/")  # "//host" would be another site
        headers = [
            ("Location", f"/{path}{'?' if rest else ''}{rest}"),
            ("Set-Cookie", f"{name}={session}; Path=/; HttpOnly; SameSite=Strict"),
            ("Referrer-Policy", "no-referrer"),
        ]
        start_response("303 See Other", headers)
        return [b""]

    return guard


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _refused(start_response: Callable[..., Any], why: str) -> Iterable[bytes]:
    start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{why}\n".encode()]
