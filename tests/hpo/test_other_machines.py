"""A SQLite file is one machine's: a network disk is warned of, another machine's study refused."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from hpo.service import doctor, launch
from hpo.service.opening import Place
from hpo.study.load import load_study
from storage.disks import network_disk
from tests.hpo.stage import Stage
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have this machine's disks be those of a list of places and kinds."""

    def mounted(*disks: tuple[object, str]) -> None:
        listed = [SimpleNamespace(mountpoint=str(at), fstype=kind) for at, kind in disks]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: listed)

    return mounted


def test_this_disk_is_none_of_the_network(tmp_path: Path) -> None:
    assert network_disk(f"sqlite:///{tmp_path}/hpo.db") is None
    assert network_disk("postgresql://me@host/hpo") is None


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "NFS"])
def test_a_network_disk_is_known_by_the_innermost_mount(
    kind: str, tmp_path: Path, mounts: Any
) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    mounts(("/", "ext4"), (tmp_path / "far", "tmpfs"), (tmp_path / "far", kind))
    for place in ("far", "far/deep", "link"):
        found = network_disk(f"sqlite:///{tmp_path}/{place}/hpo.db")
        assert found == f"{kind} at {tmp_path}/far"
    assert network_disk(f"sqlite:///{tmp_path}/farther.db") is None
    mounts(("/", kind), (tmp_path, "ext4"))
    assert network_disk(f"sqlite:///{tmp_path}/hpo.db") is None


def test_a_start_a_resume_and_the_doctor_warn_of_a_network_disk(
    tmp_path: Path, mounts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mounts(("/", "ext4"), (tmp_path, "nfs4"))
    place, said = Place("sqlite:///hpo.db"), list[str]()
    assert (doctor.database(place).level, list(tmp_path.glob("hpo.db*"))) == ("warn", [])
    config = load_study(written(tmp_path), trials=2)
    launch.start(config, "study.yaml", place, may_rename=False, say=said.append)
    launch.resume("tiny", place, trials=None, same_machine=False, say=said.append)
    warning = f"warning: sqlite:///hpo.db is on a network disk (nfs4 at {tmp_path}): "
    assert len(said) == 2
    assert all(line.startswith(warning) for line in said)
    found = doctor.database(place)
    assert found.level == "warn"
    assert f"is on a network disk (nfs4 at {tmp_path})" in found.says


def test_same_machine_is_refused_where_another_machine_runs_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    stage = Stage(url)
    stage.controller()
    place = Place(url, str(tmp_path))
    join = partial(launch.resume, "played", place, trials=None, same_machine=True, say=print)
    assert join().join
    with stage.ledger.sessions() as session:
        session.execute(sa.text("UPDATE hpo_controllers SET host = 'atlas'"))
        session.commit()
    with pytest.raises(ConfigError) as refusal:
        join()
    assert str(refusal.value).startswith("--same-machine: study played is being run by process ")
    assert f"on atlas, and this is {socket.gethostname()}; " in str(refusal.value)
    stage.lapse()
    assert join().join, "it is dead"
