"""`hpo doctor`, check by check; README's commands run all of it with a real Ray."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from hpo.service import doctor
from hpo.service.doctor import Finding, examine
from hpo.service.opening import Place
from storage import Ledger
from storage.database import HEAD


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_ledger_is_tried_out_and_left_as_it_was(ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger.open(ledger_url, create=True)
    with ledger.sessions() as session:
        before = sa.inspect(session.connection()).get_table_names()
    found = doctor.database(Place(ledger_url, str(tmp_path)))
    assert found.level == "ok", found
    assert f"tables {HEAD}, takes writes" in found.says
    with ledger.sessions() as session:
        assert sa.inspect(session.connection()).get_table_names() == before


def test_a_database_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    found = doctor.database(Place(f"sqlite:///{tmp_path}/hpo.db", str(tmp_path)))
    assert (found.level, list(tmp_path.iterdir())) == ("ok", [])


def test_an_older_ledger_is_not_migrated_by_looking_at_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    with sqlite3.connect(tmp_path / "hpo.db") as database:
        database.executescript((Path(__file__).with_name("first_release.sql")).read_text())
    found = doctor.database(Place(url, str(tmp_path)))
    assert (found.level, found.do) == (
        "warn", f"back it up: the next command brings its tables to {HEAD}"
    )  # fmt: skip
    assert "tables 0001" in found.says


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("sqlite:///no/folder/hpo.db", "the folder .* does not exist"),
        ("sqlite:///{tmp}/text.db", "file is not a database"),
        ("postgresql://me:hunter2@127.0.0.1:9/db", "127.0.0.1.*refused"),
        ("mysql://me:hunter2@host/db", "SQLite or PostgreSQL"),
    ],
)
def test_a_check_that_breaks_is_a_failure_in_one_line_and_the_others_are_made(
    storage: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_bytes(b"not a database" * 100)
    checks = {"database": doctor.database, "runs": doctor.runs_folder}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    before = files(tmp_path)
    found = dict(examine(Place(storage.format(tmp=tmp_path), str(tmp_path / "runs"))))
    assert found["database"].level == "fail"
    assert re.search(says, found["database"].says)
    assert "\n" not in found["database"].says
    assert "hunter2" not in found["database"].says
    assert found["runs"].level in ("ok", "warn")
    assert files(tmp_path) == before


def test_a_runs_folder_that_takes_no_writes_fails_with_what_to_do() -> None:
    found = doctor.runs_folder(Place("sqlite:///hpo.db", "/proc/runs"))
    assert found.level == "fail"
    assert "--runs" in (found.do or "")


def test_a_full_disk_fails_and_a_nearly_full_one_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, level in ((10, "fail"), (2**30, "warn")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert doctor.runs_folder(Place("sqlite:///hpo.db", str(tmp_path))).level == level


def test_what_is_not_installed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("optuna", "no-such-library"))
    found = doctor.packages(Place("sqlite:///hpo.db", "runs"))
    assert (found.level, found.says) == ("fail", "not installed: no-such-library")


def test_a_driver_that_sees_more_gpus_than_torch_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1'; echo 'NVIDIA H100, 570.1'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = doctor.gpus(Place("sqlite:///hpo.db", str(tmp_path)))
    assert (found.level, "sees 0 of 2 GPUs: NVIDIA H100, 570.1" in found.says) == ("warn", True)


def test_wandb_and_data_are_fine_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    place = Place("sqlite:///hpo.db", str(tmp_path))
    assert doctor.wandb(place).do == "wandb login, to send them"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert doctor.wandb(place).says.endswith("with a key")
    monkeypatch.setenv("NETRC", "/dev/null")  # where wandb would look, as in a container
    assert "without a key" in doctor.wandb(place).says
    found: Finding = doctor.data_sets(place)
    assert (found.level, "pydocs; not in" in found.says) == ("ok", True)
    assert list(tmp_path.iterdir()) == [tmp_path / ".netrc"]
