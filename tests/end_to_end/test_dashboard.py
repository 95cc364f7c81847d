"""The dashboard on an address that others reach: a user and a password, or no dashboard."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from hpo.reading.dashboard import logins, server
from hpo.reading.dashboard.access import for_hosts, for_token, guarded, read_users
from hpo.reading.dashboard.server import serve
from storage import Ledger
from tests.end_to_end.desk import Desk
from trainer.config.settings import ConfigError

PASSWORD = "grüße:zwei"  # noqa: S105 - a colon and what is not ASCII, as people have them
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "users"
    file.write_text(text)
    file.chmod(mode)
    return file


def status(url: str, user: str | None = None, password: str = "") -> int:
    """What the server at `url` answers to `user`."""
    request = urllib.request.Request(url)  # noqa: S310 - our own
    if user is not None:
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        challenged = error.headers.get("WWW-Authenticate", "").startswith("Basic ")
        return error.code if challenged == (error.code == 401) else 0


def test_a_dashboard_for_others_opens_to_its_users_alone(desk: Desk) -> None:
    Ledger.open(f"sqlite:///{desk.folder}/hpo.db", create=True)
    message = desk.hpo("dashboard", "--host", "0.0.0.0", status=2)  # noqa: S104
    assert message.startswith("hpo: --host 0.0.0.0: others reach that address; give --users FILE")
    assert message.count("\n") == 1
    users = written(desk.folder, f"alice:{HASH.replace('$2b$', '$2y$')}\nbob:{HASH}\n")
    serving = desk.start("dashboard", "--host", "0.0.0.0", "--users", str(users))  # noqa: S104
    found = re.search(r"http://0\.0\.0\.0:(\d+)/", serving.stdout.readline())
    assert found is not None
    page, data = (f"http://127.0.0.1:{found[1]}/{path}" for path in ("dashboard", "api/studies"))
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=10):  # and says nothing
        for url in (page, data, f"{data}/no-such"):
            assert status(url) == 401
        assert status(data, "alice", "wrong") == 401
        assert status(data, "mallory", PASSWORD) == 401
        assert status(data, "alice", "x" * 100) == 401
        assert status(data, "", "") == 401
        assert (status(page, "alice", PASSWORD), status(data, "bob", PASSWORD)) == (200, 200)
    serving.terminate()
    _, said = serving.communicate(timeout=10)
    assert "Traceback" not in said
    assert PASSWORD not in said


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (f"alice:{HASH}", 0o640, "is not yours alone (mode 640); own it, and chmod 600"),
        ("", 0o600, "names no user; make it with: htpasswd -B -c"),
        ("alice:secret", 0o600, "line 1 is not NAME:BCRYPT-HASH"),
        ("alice:{SHA}fEqNCco3Yq9h5ZUglD3CZJT4lBs=", 0o600, "line 1 is not NAME:BCRYPT-HASH"),
    ],
    ids=["not private", "empty", "no hash", "another hash"],
)
def test_a_file_that_is_no_private_file_of_users_is_refused(
    text: str, mode: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_users(written(tmp_path, text, mode))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_refused(host: str, tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/hpo.db", create=True)
    with pytest.raises(ConfigError, match=f"--host {host}: "):
        serve(ledger, host, None, None, print)


def test_who_guesses_passwords_waits_and_learns_nothing_from_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logins, "REFUSAL_SECONDS", 0.05)
    monkeypatch.setattr(logins, "GUESS_SECONDS", 60.0)
    cheap = bcrypt.hashpw(b"other", bcrypt.gensalt(4))
    costly = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(9))
    known = logins.Logins({b"cheap": cheap, b"costly": costly})

    def seconds(user: bytes, password: bytes = b"wrong") -> float:
        began = time.perf_counter()
        assert known.knows(user, password, f"192.0.2.{len(times)}") is False
        return time.perf_counter() - began

    times: list[float] = []
    for user, password in ((b"nobody", b"x"), (b"cheap", b"x"), (b"costly", b"x" * 100)):
        times += [min(seconds(user, password) for _ in range(3))]
    assert max(times) - min(times) < 0.5 * min(times)

    guesses = [known.knows(b"costly", b"wrong", "192.0.2.99") for _ in range(logins.GUESSES + 1)]
    assert guesses == [False] * logins.GUESSES + [None]
    assert known.knows(b"costly", PASSWORD.encode(), "192.0.2.99") is None, "a guess, too"
    assert known.knows(b"costly", PASSWORD.encode(), "192.0.2.98") is True
    assert known.knows(b"costly", PASSWORD.encode(), "192.0.2.99") is True, "it is known by now"
    for network in range(2):
        for host in range(logins.GUESSES):
            assert known.knows(b"x", b"", f"2001:db8:0:{network}::{host}") is False
        assert known.knows(b"x", b"", f"2001:db8:0:{network}::ffff") is None


def test_too_many_wrong_passwords_are_answered_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "GUESSES", 2)
    monkeypatch.setattr(logins, "REFUSAL_SECONDS", 0.0)
    wrong = f"Basic {base64.b64encode(b'alice:wrong').decode()}"
    served = guarded(page, {b"alice": HASH.encode()})
    answers: list[str] = []
    for header in (wrong, wrong, wrong, ""):
        environ = {"HTTP_AUTHORIZATION": header, "REMOTE_ADDR": "192.0.2.1"}
        served(environ, lambda status, _: answers.append(status[:3]))
    assert answers == ["401", "401", "429", "401"]


def test_idle_clients_take_no_place_from_others_and_slow_ones_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS", 4)
    monkeypatch.setattr(server, "ANSWER_SECONDS", 1.0)
    bound = server._bound(socket.AF_INET, "127.0.0.1", "127.0.0.1", None)
    bound.set_app(page)
    threading.Thread(target=bound.serve_forever, args=(0.05,), daemon=True).start()
    before = threading.active_count()
    with contextlib.ExitStack() as idle:
        address = ("127.0.0.1", bound.server_port)
        clients = [idle.enter_context(socket.create_connection(address)) for _ in range(20)]
        assert status(f"http://127.0.0.1:{bound.server_port}/") == 200
        assert threading.active_count() <= before + 4
        clients[-1].settimeout(10)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while clients[-1].recv(1) != b"":
                pass
        assert time.monotonic() - began < 5, "it was cut"
    bound.shutdown()
    bound.server_close()


def asked(host: str, path: str = "/dashboard", cookie: str = "") -> tuple[str, dict[str, str]]:
    """Status and headers of an application with the token `key` on this machine."""
    answers: list[tuple[str, list[tuple[str, str]]]] = []
    application = GUARDED.setdefault("app", for_hosts(for_token(page, "key"), {"127.0.0.1"}))
    path, _, query = path.partition("?")
    environ = {"HTTP_HOST": host, "PATH_INFO": path, "QUERY_STRING": query, "HTTP_COOKIE": cookie}
    list(application(environ, lambda status, headers: answers.append((status, headers))))
    [(status, headers)] = answers
    return status[:3], dict(headers)


GUARDED: dict[str, Any] = {}


def page(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"all studies"]


def test_another_sites_page_reaches_no_dashboard() -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[", "127.0.0.2"):
        assert asked(host, "/dashboard?token=key")[0] == "403", host
    for host in ("127.0.0.1", "127.0.0.1:8080"):  # the port may be one that ssh forwards
        assert asked(host, "/dashboard?token=key")[0] == "303"


def test_a_token_is_said_once_and_becomes_a_cookie() -> None:
    for path in ("/dashboard", "/dashboard?token=", "/dashboard?token=kex", "/api/studies"):
        assert asked("127.0.0.1", path)[0] == "403", path
    status, headers = asked("127.0.0.1", "/dashboard/studies/1?token=key&tab=a%26b")
    assert (status, headers["Location"]) == ("303", "/dashboard/studies/1?tab=a%26b")
    cookie, *flags = headers["Set-Cookie"].split("; ")
    assert {*flags} == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert "key" not in cookie
    assert asked("127.0.0.1", cookie=cookie)[0] == "200"
    assert asked("evil.example", cookie=cookie)[0] == "403"
    assert asked("127.0.0.1", cookie=f"{cookie}x")[0] == "403"
    assert asked("127.0.0.1", cookie=f"{cookie.split('=')[0]}=")[0] == "403"
    elsewhere = asked("127.0.0.1", "//evil.example?token=key")[1]["Location"]
    assert elsewhere == "/evil.example", "a path, and no other site"


def test_a_dashboard_opens_to_its_token_alone_unless_none_is_wanted(desk: Desk) -> None:
    Ledger.open(f"sqlite:///{desk.folder}/hpo.db", create=True)
    for options, expected in (((), 403), (("--no-token",), 200)):
        serving = desk.start("dashboard", *options)
        printed = re.search(r"(http://127\.0\.0\.1:\d+)/dashboard(\S*)", serving.stdout.readline())
        assert printed is not None
        assert printed[2].startswith("?token=") == (expected == 403)
        for headers, answer in (({}, expected), ({"Host": "evil.example"}, 403)):
            url = f"{printed[1]}/api/studies"
            assert status_of(urllib.request.Request(url, headers=headers)) == answer  # noqa: S310
        serving.terminate()
        _, said = serving.communicate(timeout=10)
        assert "Traceback" not in said


def status_of(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
