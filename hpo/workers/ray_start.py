"""Starts Ray on this machine for one session, or joins a cluster, within a limit.

A Ray of ours listens on loopback alone, and takes a token that only this session's folder has.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import site
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    AuthenticationTokenLoader,
    Config,
)
from ray.job_config import JobConfig
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from hpo.control.outage import RayLost
from hpo.ours import ROOT
from hpo.study.sections import Resources, local_cpus
from hpo.workers import session
from hpo.workers.waiting import overseen

START_SECONDS, END_SECONDS = 180.0, 20.0
STOP_SECONDS = 4.0  # in which a start that is stopped may come to its end, and be left in order
_LOOK_SECONDS = 0.1  # between two looks at a signal that came


_TUNE_SETTINGS = {  # Tune's files would be a second store, and Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def configure_ray() -> None:
    """Change this process' environment, and Ray's and Tune's own settings, to what we need.

    Called before Ray is started or joined; a second call changes nothing more.
    """
    os.environ.update(_TUNE_SETTINGS)
    # Tune hands AWS keys to its actors in their runtime environment, which Ray writes into its
    # logs. A node's workers have the keys that the node was started with.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    )
    # Tune gives its actors PL_DISABLE_FORK, which is Lightning's. With a runtime environment of
    # their own, they and their ranks would not get the worker processes that Ray starts ahead.
    class_cache.DEFAULT_ENV_VARS.clear()
    # Tune reads a failed actor's error back from a pickle in its folder, which is in the study's.
    Trial.get_pickled_error = lambda trial: None
    # Tune writes all trials into a file, which it would read for a restore that never comes.
    Trial.get_json_state = lambda trial: ("{}", "{}")
    # At the end Tune would name each attempt that failed, and each that it has no results of: all.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Job(JobConfig):  # type: ignore[misc]
    """What Ray tells its workers of us: where our packages are, unless every Python finds them.

    The working folder and that of a script are kept off their path, whose files may have the names
    of our packages, or of a library. A training function's own folder is in its assignment.
    """

    def __init__(self) -> None:
        everywhere = {os.path.realpath(path) for path in site.getsitepackages()}
        super().__init__(_py_driver_sys_path=[] if str(ROOT) in everywhere else [str(ROOT)])

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def ray_session(
    address: str | None,
    namespace: str,
    *,
    output: IO[str] | None = None,
    logs: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Path]:
    """Start a local Ray, or join the cluster at `address`, while the block runs; give its folder.

    The folder is this session's own. Raises RayLost, with Ray's logs kept in `logs`, if Ray is not
    there in time, and KeyboardInterrupt once `stopped`. `output` is told of a long wait.
    """
    configure_ray()
    with session.session_folder() as folder:
        options: dict[str, Any] = {"address": address}
        if address is None:
            options = {
                "address": "local",
                "num_cpus": local_cpus(),
                "include_dashboard": False,
                "_temp_dir": str(folder / session.RAY),
            }
        start = _Start({**options, "namespace": namespace})
        what = f"Ray at {address}" if address else "Ray on this machine"
        with _token(folder if address is None else None):
            try:
                with overseen(f"waiting for {what}", START_SECONDS, output):
                    start.wait(stopped)
            except RayLost:
                if logs is not None:
                    session.keep_logs(folder, logs)
                raise
        try:
            yield folder
        finally:
            start.end()


class _Start(threading.Thread):
    """Starts Ray and ends it, in a thread of its own: a signal and a limit need not wait for that.

    It lasts as long as the session: Linux ends Ray's processes with the thread that made them.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(name="ray", daemon=True)
        self._over = threading.Event()
        self._options = options
        self._done = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Start Ray, and end it once the session is over."""
        try:
            ray.init(
                job_config=_Job(),
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.WARNING,
                **self._options,
            )
        except BaseException as error:  # noqa: BLE001 - raised again by `wait`
            self._error = error
        self._done.set()
        self._over.wait()
        ray.shutdown()

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Start, and return when Ray is there. Raises RayLost and KeyboardInterrupt."""
        self.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._done.wait(_LOOK_SECONDS):
            if stopped():
                deadline = min(deadline, time.monotonic() + STOP_SECONDS)
            if time.monotonic() > deadline:
                if stopped():
                    raise KeyboardInterrupt
                raise RayLost(f"Ray did not start: nothing answers after {START_SECONDS:.0f} s")
        if self._error is not None:  # Ray raises plain ones too, when a node takes too long
            raise RayLost(f"Ray did not start: {' '.join(str(self._error).split())}")

    def end(self) -> None:
        """End Ray. A blocked one is left after END_SECONDS, to be killed with its session."""
        self._over.set()
        self.join(END_SECONDS)
        if self.is_alive():
            atexit.unregister(ray.shutdown)  # it would wait at the end of this process


@contextmanager
def _token(folder: Path | None) -> Iterator[None]:
    """Have Ray take the token of the session in `folder`, a new one, while Ray starts.

    Without a folder it takes the user's token, if there is one: a cluster demands it by default.
    """
    before = dict(os.environ)
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    if folder is not None:
        token = folder / session.TOKEN
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.update({session.TOKEN_PATH: str(token), "RAY_AUTH_MODE": "token"})
        # A node that can have no others is at 127.0.0.1, and there its servers listen.
        ray_constants.ENABLE_RAY_CLUSTER = False
    elif _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray has read both when it was imported or last started.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name in (session.TOKEN_PATH, "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _has_token() -> bool:
    given = {"RAY_AUTH_TOKEN", session.TOKEN_PATH} & os.environ.keys()
    return bool(given) or Path("~/.ray/auth_token").expanduser().exists()


def cluster_size() -> tuple[float, float]:
    """Return the numbers of CPUs and GPUs of the Ray that this process has joined."""
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def places(resources: Resources) -> int:
    """Return for how many ranks the nodes of that Ray have room, each rank on one node."""
    wanted = {"CPU": resources.cpus_per_rank, "GPU": resources.gpus_per_rank}
    return sum(
        min(int(node["Resources"].get(kind, 0) // n) for kind, n in wanted.items() if n)
        for node in ray.nodes()
        if node["Alive"]
    )


def exposed(folder: Path) -> list[str]:
    """Return the servers of the session in `folder` that other machines reach, as texts."""
    return [
        f"{process.name()} on {connection.laddr.ip}:{connection.laddr.port}"
        for process in session.processes(folder)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith("127.")
        and connection.laddr.ip != "::1"
    ]
