"""What Ray Tune would do with secrets, pickles and actors, and does not under the service."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pyarrow.fs
import pytest
from ray.train._internal import storage
from ray.tune import TuneError, result_grid
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from hpo.control.messages import Message
from hpo.workers.dispatch import ControllerScheduler, GangTrainable
from hpo.workers.ray_start import configure_ray

pytestmark = pytest.mark.slow

configure_ray()


def test_tune_hands_no_keys_to_its_actors_by_way_of_its_logs() -> None:
    assert class_cache.ENV_VARS_TO_PROPAGATE
    assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]


def test_tunes_actors_take_the_workers_that_ray_has_started_ahead() -> None:
    # Those have no runtime environment, and go to actors that ask for none.
    actor = class_cache._ActorClassCache().get(GangTrainable)
    assert not actor._default_options["runtime_env"]


def test_an_actors_error_is_not_unpickled_from_the_runs_folder(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "ran",)

    trial = Trial("trainable", stub=True)
    trial.run_metadata.pickled_error_filename = "error.pkl"
    trial.storage = SimpleNamespace(
        trial_fs_path=str(tmp_path), storage_filesystem=pyarrow.fs.LocalFileSystem()
    )
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(Code()))
    assert result_grid.ResultGrid._populate_exception(trial) is None
    assert not (tmp_path / "ran").exists()
    assert "get_pickled_error" in inspect.getsource(result_grid), "Tune still goes through it"


class Heard:
    """A controller that remembers what attempts said."""

    def __init__(self) -> None:
        self.said: list[str | None] = []

    def handle(self, job: int, attempt: int, message: Message) -> bool:
        self.said.append(message.detail)
        return False


def test_however_many_attempts_there_are_tune_has_one_folder_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "session"))
    context = storage.StorageContext(str(tmp_path / "kept"), "tune")
    heard = Heard()
    scheduler = ControllerScheduler(heard)  # type: ignore[arg-type]
    for number in range(20):
        assignment = SimpleNamespace(job=number, attempt=1)
        trial = Trial("t", stub=True, storage=context, config={"assignment": assignment})
        scheduler.on_trial_add(None, trial)
        trial.init_local_path()
        for _ in range(2):  # Tune does so once more after the scheduler has heard of it
            trial.handle_error(TuneError(f"RayTaskError: GangFailure: rank {number} is gone"))
            if not trial.run_metadata.num_failures > 1:
                scheduler.on_trial_error(None, trial)
    assert heard.said == [f"rank {number} is gone" for number in range(20)]
    folders = [path.name for path in (tmp_path / "session").rglob("*") if path.is_dir()]
    assert len(folders) == 4
    assert len("".join(trial.get_json_state())) < 10, "of which Tune keeps one for each"
    errors = Path(trial.error_file).read_text()
    assert errors.count("GangFailure") == 1


def test_tune_does_not_name_every_attempt_at_its_end() -> None:
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        assert name in sys.modules, "there is such a logger"
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_a_ray_that_was_imported_before_a_token_was_there_starts_all_the_same(
    tmp_path: Path,
) -> None:
    """As in a notebook that imports ray, where an earlier Ray has left a token."""
    program = """
import ray, secrets
from pathlib import Path
token = Path("~/.ray/auth_token").expanduser()
token.parent.mkdir()
token.write_text(secrets.token_hex(32))
from hpo.workers.ray_start import cluster_size, ray_session
with ray_session(None, "test"):
    assert cluster_size()[0] >= 1
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_ray_that_is_blocked_at_its_end_is_left_and_killed() -> None:
    program = """
from hpo.workers import ray_start, session
ray_start.END_SECONDS = 1.0
with ray_start.ray_session(None, "test") as folder:
    for process in session.processes(folder):
        if process.name() == "raylet":
            process.suspend()
assert not session.processes(folder)
assert not folder.exists()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
