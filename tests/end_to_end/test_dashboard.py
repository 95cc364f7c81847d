"""The dashboard on an address that others reach: a user and a password, or no dashboard."""

from __future__ import annotations

import base64
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
import pytest

from hpo.reading.dashboard.access import read_users
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
    server = desk.start("dashboard", "--host", "0.0.0.0", "--users", str(users))  # noqa: S104
    found = re.search(r"http://0\.0\.0\.0:(\d+)/", server.stdout.readline())
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
    server.terminate()
    _, said = server.communicate(timeout=10)
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
