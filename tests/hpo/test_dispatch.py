"""What Ray Tune would do with secrets, pickles and actors, and does not under the service."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pyarrow.fs
import pytest
from ray.tune import result_grid
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from hpo.workers.dispatch import GangTrainable
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
