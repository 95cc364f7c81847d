"""Fetching: whole and right, or refused in one line; broken or killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import resource
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpo.cli import app
from trainer.config.sections import DataConfig
from trainer.config.settings import ConfigError
from trainer.data import download
from trainer.data.corpora import CORPORA, Corpus
from trainer.data.fetch import fetch
from trainer.data.splits import load_splits
from trainer.data.tokens import SPLITS

SPAWN = multiprocessing.get_context("spawn")
TEXTS = {split: f"{split} a b c\n".encode() * 40_000 for split in SPLITS}  # two chunks and more
TOY = Corpus(
    url="",
    source_name="wiki.{split}.tokens",
    path="wikitext-2/{split}.txt",
    checksums={
        split: f"sha1:{hashlib.sha1(text, usedforsecurity=False).hexdigest()}"
        for split, text in TEXTS.items()
    },
)


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `breaks` says after how many bytes each next answer ends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.asked: list[str | None] = []  # the ranges, in order
        self.resumes = True
        self.hold: threading.Event | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        body = server.files.get(self.path.lstrip("/"))
        if body is None or "Python" in self.headers["User-Agent"]:
            return self.send_error(404 if body is None else 403)
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if server.resumes else 0
        if begin >= len(body):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        end = begin + server.breaks.pop(0) if server.breaks else len(body)
        self.wfile.write(body[begin:end])
        if server.hold is not None:
            self.wfile.flush()
            server.hold.wait(60)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of wikitext-2 are TEXTS, and nobody waits between attempts."""
    monkeypatch.setitem(CORPORA, "wikitext-2", TOY)
    monkeypatch.setattr(download, "_FIRST_WAIT_SECONDS", 0.0)


def archive(kind: str, **changes: bytes) -> bytes:
    """A zip or tar.gz of TEXTS, and of files that nobody asked for."""
    members = {f"wikitext-2/wiki.{split}.tokens": text for split, text in TEXTS.items()}
    members |= {f"wikitext-2/wiki.{split}.tokens": text for split, text in changes.items()}
    members["../../evil.txt"] = b"evil"
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as opened:
            for name, text in members.items():
                opened.writestr(name, text)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as opened_tar:
            for name, text in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                opened_tar.addfile(member, io.BytesIO(text))
    return packed.getvalue()


def there(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` but the locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


WHOLE = {f"wikitext-2/{split}.txt": text for split, text in TEXTS.items()}


def quiet(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def refusal(folder: Path, url: str) -> str:
    """The line that a fetch ends with."""
    with pytest.raises(ConfigError) as error:
        fetch("wikitext-2", folder, url, quiet)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_the_texts_of_an_archive_come_exactly_and_nothing_else(
    server: Server, tmp_path: Path, kind: str
) -> None:
    server.files["w"] = archive(kind)
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "a" / "data"
    assert fetch("wikitext-2", folder, server.url("w"), lambda *now: seen.append(now))
    assert there(tmp_path) == {f"a/data/{name}": text for name, text in WHOLE.items()}
    assert seen == sorted(seen)
    assert seen[-1] == (len(server.files["w"]), len(server.files["w"]))
    assert not fetch("wikitext-2", folder, server.url("w"), quiet)
    assert len(server.asked) == 1, "what is there is not fetched again"


def test_texts_come_from_addresses_of_their_own_and_only_those_that_are_missing(
    server: Server, tmp_path: Path
) -> None:
    server.files |= {f"x/wiki.{split}.tokens": text for split, text in TEXTS.items()}
    fetch("wikitext-2", tmp_path, server.url("x/{file}"), quiet)
    assert there(tmp_path) == WHOLE
    (tmp_path / "wikitext-2/valid.txt").write_bytes(b"damaged")
    fetch("wikitext-2", tmp_path, server.url("x/{file}"), quiet)
    assert there(tmp_path) == WHOLE
    assert len(server.asked) == 4


def test_a_broken_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.files["w"], server.breaks, server.statuses = archive("zip"), [300_000, 400_000], [503]
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert server.asked == [None, None, "bytes=300000-", "bytes=700000-"]
    assert there(tmp_path) == WHOLE


def test_a_server_that_knows_no_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.files["w"], server.breaks, server.resumes = archive("zip"), [300_000], False
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert there(tmp_path) == WHOLE


def fetch_toy(folder: Path, url: str) -> None:
    """In a process of its own."""
    CORPORA["wikitext-2"] = TOY
    fetch("wikitext-2", folder, url, quiet)


def test_a_killed_fetch_leaves_no_half_text_and_the_next_asks_for_the_rest(
    server: Server, tmp_path: Path
) -> None:
    server.files["w"], server.breaks = archive("zip"), [2**19 + 7]
    server.hold = threading.Event()
    victim = SPAWN.Process(target=fetch_toy, args=(tmp_path, server.url("w")))
    victim.start()
    wait_for(lambda: sum(len(part) for part in there(tmp_path).values()) >= 2**19)
    victim.kill()
    victim.join()
    server.hold.set()
    [(name, part)] = there(tmp_path).items()
    assert name.endswith(".part")
    assert part == server.files["w"][: len(part)]
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert server.asked == [None, f"bytes={len(part)}-"]
    assert there(tmp_path) == WHOLE


def test_an_archive_that_had_come_whole_before_a_kill_is_used(
    server: Server, tmp_path: Path
) -> None:
    server.files["w"] = archive("zip")
    download.download(server.url("w"), tmp_path / ".wikitext-2", quiet)
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert server.asked == [None, f"bytes={len(server.files['w'])}-"]
    assert there(tmp_path) == WHOLE
    download.download(server.url("w"), tmp_path / ".wikitext-2", quiet)
    assert not fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert there(tmp_path) == WHOLE, "and is not kept when all is there"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive("zip", valid=b"raw text\n"), "wiki.valid.tokens: its checksum is sha1:"),
        (archive("zip")[:500_000], "not a whole zip or tar archive"),
        (archive("tar.gz")[:500_000], "not a whole zip or tar archive"),
        (b"<html>404</html>", "not a whole zip or tar archive"),
    ],
)
def test_a_wrong_archive_is_refused_and_does_not_stay(
    server: Server, tmp_path: Path, content: bytes, said: str
) -> None:
    server.files["w"] = content
    message = refusal(tmp_path, server.url("w"))
    assert message.startswith(server.url("w"))
    assert said in message
    assert not {name for name in there(tmp_path) if name not in WHOLE}
    server.files["w"] = archive("zip")
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert there(tmp_path) == WHOLE


def test_an_archive_without_the_texts_is_refused(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        opened.writestr("wikitext-2-raw/wiki.train.raw", "raw")
    server.files["w"] = packed.getvalue()
    assert "there is no wiki.train.tokens in it" in refusal(tmp_path, server.url("w"))


def test_what_cannot_be_fetched_is_refused_in_one_line(server: Server, tmp_path: Path) -> None:
    assert "the server says 404 Not Found; give another --url" in refusal(
        tmp_path, server.url("gone")
    )
    assert len(server.asked) == 1, "not asked for again"
    server.statuses = [503] * 9
    assert "cannot be fetched: 503 Service Unavailable; try again" in refusal(
        tmp_path, server.url("w")
    )
    assert "Connection refused" in refusal(tmp_path, "http://127.0.0.1:9/w.zip")
    assert "unknown url type" in refusal(tmp_path, "wikitext.zip")
    assert there(tmp_path) == {}


def test_a_folder_that_cannot_be_written_or_is_full_is_refused_in_one_line(
    server: Server, tmp_path: Path
) -> None:
    server.files["w"] = archive("zip")
    (tmp_path / "file").write_text("")
    assert "File exists; give another --dir" in refusal(tmp_path / "file", server.url("w"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        assert "File too large; give another --dir" in refusal(tmp_path, server.url("w"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fetch("wikitext-2", tmp_path, server.url("w"), quiet)
    assert server.asked[-1] == "bytes=1048576-", "what fitted was kept"


def test_the_command_fetches_tokenizes_and_says_so_and_trainings_find_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("HPO_DATA_DIR", raising=False)
    server.files["w"] = archive("zip")
    bpe = ["--tokenizer", "bpe", "--vocabulary-size", "270"]
    arguments = ["data", "prepare", "wikitext-2", "--url", server.url("w"), *bpe]
    for said in ("fetched into", "already in"):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert f"wikitext-2: {said} {tmp_path / 'data/wikitext-2'}" in done.stdout
        assert "words 200,000 train, 200,000 valid" in done.stdout
    config = DataConfig(name="wikitext-2", tokenizer="bpe", vocabulary_size=270)
    splits = load_splits(config)
    assert str(splits.folder) in done.stdout
    assert splits.vocabulary.decode(splits.tokens("valid")[:9])[:4] == ["valid", "a", "b", "c"]
    elsewhere = CliRunner().invoke(app, [*arguments, "--dir", str(tmp_path / "x")])
    assert f"fetched into {tmp_path / 'x/wikitext-2'}" in elsewhere.stdout


def test_a_name_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("wikitext", "pydocs"):
        done = CliRunner().invoke(app, ["data", "prepare", name, "--dir", str(tmp_path)])
        assert isinstance(done.exception, ConfigError)
        assert "wikitext-2" in str(done.exception)
    assert not list(tmp_path.iterdir())


def wait_for(done: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
