"""Runs kept in an S3 bucket, by a real server: whole or not there, whoever is killed or late."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.forks import CHILD, PARENT
from tests.trainer.processes import measured, state, train, train_here
from trainer.config.cache import cache_dir
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.engine.distributed import World
from trainer.export import export
from trainer.run import Run
from trainer.runs.checkpoint import CheckpointError
from trainer.runs.claim import FolderInUse
from trainer.runs.identity import Identity
from trainer.runs.remote import local_checkpoint
from trainer.runs.remote_folder import open_folder
from trainer.runs.store import Store, StoreError, check_writable

pytestmark = pytest.mark.slow

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of our own, known to this process and its children."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = Store("s3://runs")
        store._files.mkdir("runs")
        yield "s3://runs"
    server.stop()


@pytest.fixture
def url(bucket: str, request: pytest.FixtureRequest) -> str:
    """A run's URL that no other test has."""
    return f"{bucket}/{abs(hash(request.node.name))}"


@pytest.fixture(autouse=True)
def node(tmp_path: Path, token_cache: None) -> Iterator[Callable[[str], Path]]:
    """Makes this machine another node, by name: with a cache folder of its own."""
    tokens = cache_dir()

    def become(name: str) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(tokens, folder, ignore=shutil.ignore_patterns("scratch", "teachers"))
        patch.setenv("HPO_CACHE_DIR", str(folder))
        return folder

    with pytest.MonkeyPatch.context() as patch:
        become("first")
        yield become


def at(url: str, document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "output_dir": url}


def brought(url: str, folder: Path) -> Path:
    """All that is kept of a run, in a folder here."""
    store = Store(url)
    for name in store.names(""):
        store.download(name, folder / name)
    return folder


def whole(url: str) -> list[str]:
    """The checkpoints that are kept of a run, oldest first."""
    names = Store(url).names("checkpoints")
    return sorted(name[12:].rpartition("/")[0] for name in names if name.endswith("progress.json"))


@pytest.mark.parametrize(
    ("die_in", "die_call", "die_after", "goes_on_at"),
    [
        (
            "trainer.runs.store.Store.upload",
            5,
            False,
            0,
        ),  # the tensors are there, and not their name
        ("trainer.runs.store.Store.upload", 6, True, 4),
        ("trainer.runs.store.Store.delete", 3, False, 8),
    ],
)
def test_a_killed_run_goes_on_elsewhere_as_if_nothing_had_happened(
    uninterrupted: Callable[[int], Path],
    tiny: Tiny,
    tmp_path: Path,
    url: str,
    node: Callable[[str], Path],
    die_in: str,
    die_call: int,
    die_after: bool,
    goes_on_at: int,
) -> None:
    document = at(url, tiny(tmp_path))
    assert train(document, die_in=die_in, die_call=die_call, die_after=die_after) == [None]
    node("second")
    reports = train(document)[0]
    assert [report.step for report in reports] == [s for s in (4, 8, 12) if s > goes_on_at] or [12]
    found = brought(url, tmp_path / "found")
    newest = tmp_path / "found" / "checkpoints" / whole(url)[-1]
    assert measured(found) == measured(uninterrupted(1))
    assert (newest / "state.safetensors").read_bytes() == state(uninterrupted(1))
    assert len(whole(url)) == 2
    assert {path.name for path in found.iterdir()} == {
        "identity.json", "config.yaml", "metrics.jsonl", "result.json", "checkpoints",
    }  # fmt: skip


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, tiny: Tiny, tmp_path: Path, url: str
) -> None:
    document = at(url, tiny(tmp_path))
    train_here(document, world)
    assert whole(url) == ["attempt-0001/step-00000008", "attempt-0001/step-00000012"]
    store = Store(url)
    store.write(f"checkpoints/{whole(url)[1]}/state.safetensors", b"half")
    assert [report.step for report in train_here(document, world)] == [12]
    assert whole(url) == ["attempt-0001/step-00000008", "attempt-0002/step-00000012"]
    for checkpoint in whole(url):
        store.write(f"checkpoints/{checkpoint}/progress.json", b"{")
    with pytest.raises(CheckpointError):
        train_here(document, world)


def test_an_attempt_that_is_late_changes_nothing(
    world: World, tiny: Tiny, tmp_path: Path, url: str, node: Callable[[str], Path]
) -> None:
    config = resolve(at(url, tiny(tmp_path)), "test")
    late = Run(config, world, attempt=1)
    late.advance()
    node("second")
    newer = open_folder(config, 2, lambda: None, Identity())
    found = newer.resume()
    assert found is not None
    assert found[1].step == 4
    before = brought(url, tmp_path / "before")
    with pytest.raises(FolderInUse, match="attempt 2 trains in .*, and this is attempt 1"):
        late.advance()
    late.close()
    with pytest.raises(FolderInUse):
        open_folder(config, 1, lambda: None, Identity())
    after = brought(url, tmp_path / "after")
    files = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(after) for path in after.rglob("*") if path.is_file())
    assert all((before / file).read_bytes() == (after / file).read_bytes() for file in files)
    newer.close()


def test_nothing_stays_on_the_node(
    world: World, tiny: Tiny, tmp_path: Path, url: str, node: Callable[[str], Path]
) -> None:
    scratch = node("first") / "scratch"
    document = at(url, tiny(tmp_path))
    train(document, die_in="trainer.runs.store.Store.upload", die_call=5)
    (left,) = scratch.iterdir()
    os.utime(left, (0, 0))
    run = Run(resolve(document, "test"), world)
    (mine,) = scratch.iterdir()
    assert mine != left
    run.close()
    assert not list(scratch.iterdir())


def test_a_fork_begins_at_a_parent_that_is_kept_elsewhere(
    world: World, tiny: Tiny, tmp_path: Path, url: str, node: Callable[[str], Path]
) -> None:
    run = Run(resolve(at(f"{url}/parent", tiny(tmp_path, **PARENT)), "test"), world)
    run.advance(), run.advance()
    run.close()
    node("second")
    fork = {"run": f"{url}/parent", "step": 4}
    document = at(f"{url}/fork", tiny(tmp_path, **CHILD, fork=fork))
    child = Run(resolve(document, "test"), world)
    assert child.step == 4
    child.close()
    assert whole(f"{url}/fork") == ["attempt-0001/step-00000004"]
    assert [report.step for report in train_here(document, world)] == [8, 12]


def test_a_teacher_that_is_kept_elsewhere_is_brought_to_a_node_once(
    world: World, tiny: Tiny, tmp_path: Path, url: str, node: Callable[[str], Path]
) -> None:
    train_here(at(f"{url}/teacher", tiny(tmp_path)), world)
    cache = node("second")
    assert export(f"{url}/teacher", 2, tmp_path / "model")[1].startswith("step 12, layers")
    distillation = {"enabled": True, "teacher": f"{url}/teacher", "top_k": 4}
    for student in ("one", "two"):
        document = tiny(tmp_path / student, distillation=distillation, steps=4)
        assert train_here(document, world)[-1].metrics["distillation_loss"] > 0
    (folder,) = (path for path in (cache / "teachers").iterdir() if path.is_dir())
    assert (folder / local_checkpoint(12)).is_dir()
    document["distillation"]["teacher"] = f"{url}/nowhere"
    with pytest.raises(ConfigError, match="nowhere: no run has ended there"):
        Run(resolve(document, "test"), world)


def test_what_is_wrong_with_a_url_is_one_line_without_its_secrets(bucket: str) -> None:
    check_writable(f"{bucket}/prefix")
    assert not Store(bucket).names("prefix")
    for wrong in ("s3://me:planted@runs/x", "s3://runs/x?token=planted"):
        with pytest.raises(ConfigError, match="come from the environment") as refused:
            check_writable(wrong)
        assert "planted" not in str(refused.value)
    for wrong in ("s3://no-such-bucket/x", "nonsense://runs"):
        with pytest.raises(StoreError) as missing:
            check_writable(wrong)
        assert str(missing.value).startswith(f"{wrong}: ")
        assert "\n" not in str(missing.value)
