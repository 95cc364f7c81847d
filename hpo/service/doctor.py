"""`hpo doctor`: whether a study could be run here, and what to do if not.

It is a table of small checks, each of one thing. A check that raises counts as failed. The checks
leave nothing behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import netrc
import os
import platform
import shutil
import stat
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpo.service.opening import Place, new_runs, storage_url
from trainer.config.settings import is_url
from trainer.runs.store import check_writable

CLOCK_SECONDS = 5.0  # a clock that is further off is worth a word
ROUND_TRIP_SECONDS = 0.05  # the controller waits for several with each report
FSYNC_SECONDS = 0.5  # of a MiB
FULL_BYTES, LOW_BYTES = 2**28, 2**32  # free on the disk of the run folders

LIBRARIES = ("torch", "deepspeed", "ray", "optuna", "sqlalchemy")


@dataclass(frozen=True)
class Finding:
    """What a check has found, in one line, and what to do about it, in another line."""

    level: Literal["ok", "warn", "fail"]
    says: str
    do: str | None = None


def examine(place: Place) -> Iterator[tuple[str, Finding]]:
    """Give each check's name and finding, as soon as it is known."""
    for name, check in CHECKS.items():
        try:
            yield name, check(place)
        except Exception as error:  # noqa: BLE001 - whatever it is, the person came for it
            reason = " ".join(str(error).split())
            yield name, Finding("fail", reason or type(error).__name__)


def packages(_: Place) -> Finding:
    """Check that the libraries are installed that trials need."""
    versions, missing = [f"python {platform.python_version()}"], []
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(library)
    if missing:
        do = "pip install --requirement requirements.lock"
        return Finding("fail", f"not installed: {', '.join(missing)}", do)
    return Finding("ok", ", ".join(versions))


def database(place: Place) -> Finding:
    """Check that the ledger's database answers, takes writes and tells the time."""
    from storage.database import shown
    from storage.disks import network_disk
    from storage.probe import probe

    given = storage_url(place.storage)
    url, found = shown(given), probe(given)
    if disk := network_disk(given):
        says = f"{url}: is on a network disk ({disk}), where SQLite cannot keep machines apart"
        return Finding("warn", says, "keep it on a local disk, or use PostgreSQL")
    if found is None:
        return Finding("ok", f"{url}: not there yet; `hpo start` makes it")
    tables = f"tables {found.tables}" if found.tables else "no ledger in it yet"
    milliseconds = f"{found.round_trip * 1000:.1f} ms a round trip"
    says = f"{url}: {found.server}, {tables}, takes writes, {milliseconds}"
    if abs(found.clock_ahead) > CLOCK_SECONDS:
        way = "ahead of" if found.clock_ahead > 0 else "behind"
        says = f"{says}, its clock {abs(found.clock_ahead):.0f} s {way} this machine's"
        return Finding("warn", says, "leases go by its clock alone; set both by NTP to read times")
    if found.round_trip > ROUND_TRIP_SECONDS:
        return Finding("warn", says, "run the controller nearer to it")
    if found.tables not in (None, found.newest_tables):
        do = f"back it up: the next command brings its tables to {found.newest_tables}"
        return Finding("warn", says, do)
    return Finding("ok", says)


def runs_folder(place: Place) -> Finding:
    """Check that the disk of the run folders takes writes, has room and keeps what it is told."""
    runs = new_runs(place.runs)
    if is_url(runs):
        check_writable(runs)
        return Finding("ok", f"{runs}: takes objects")
    folder = Path(runs)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            seconds = statistics.median(_fsync_seconds(file.fileno()) for _ in range(3))
    except OSError as error:
        says = f"{there}: {str(error.strerror).lower()}"
        return Finding("fail", says, "free some room there, or give another --runs")
    free = shutil.disk_usage(there).free
    says = f"{there}: {free / 2**30:.1f} GiB free, {seconds * 1000:.0f} ms to keep a MiB"
    if free < LOW_BYTES:
        do = "a trial keeps its newest two checkpoints: make room, or give another --runs"
        return Finding("fail" if free < FULL_BYTES else "warn", says, do)
    if seconds > FSYNC_SECONDS:
        return Finding("warn", says, "every report waits for it: give --runs on a faster disk")
    return Finding("ok", says)


def _fsync_seconds(file: int) -> float:
    began = time.perf_counter()
    os.write(file, b"\0" * 2**20)
    os.fsync(file)
    return time.perf_counter() - began


def data_sets(_: Place) -> Finding:
    """Say which data sets are on this machine."""
    from trainer.config.cache import cache_dir
    from trainer.data.corpora import CORPORA
    from trainer.data.splits import data_folder
    from trainer.data.tokens import SPLITS

    cache = cache_dir()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("fail", f"the cache {cache} cannot be written to", "set $HPO_CACHE_DIR")
    folder = data_folder(None)
    missing = [
        name
        for name, corpus in CORPORA.items()
        if not all((folder / corpus.file(split)).is_file() for split in SPLITS)
    ]
    here = ", ".join(["pydocs", *(name for name in CORPORA if name not in missing)])
    if not missing:
        return Finding("ok", f"{here} are here, in {folder}")
    do = "where a study needs one: hpo data prepare NAME"
    return Finding("ok", f"{here}; not in {folder}: {', '.join(missing)}", do)


def gpus(_: Place) -> Finding:
    """Compare the GPUs that the driver sees with those that torch sees."""
    import torch

    smi = shutil.which("nvidia-smi")
    listed: list[str] = []
    if smi:
        query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - fixed words
        listed = answer.stdout.splitlines() if answer.returncode == 0 else []
    count = torch.cuda.device_count()
    built = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"
    if len(listed) > count:
        do = "install a torch that is built for this driver's CUDA, or look at CUDA_VISIBLE_DEVICES"
        return Finding("warn", f"{built} sees {count} of {len(listed)} GPUs: {listed[0]}", do)
    if count == 0:
        return Finding("ok", "none; trainings run on the CPU")
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    driver = listed[0].rpartition(", ")[2] if listed else "unknown"
    return Finding("ok", f"{names}; driver {driver}, {built}")


def wandb(_: Place) -> Finding:
    """Say where the runs of a study with `tracking.wandb` would go."""
    if importlib.util.find_spec("wandb") is None:
        return Finding("ok", "not installed; only tracking.wandb needs it")
    version = importlib.metadata.version("wandb")
    if os.environ.get("WANDB_MODE"):
        return Finding("ok", f"{version}, $WANDB_MODE is {os.environ['WANDB_MODE']}")
    if os.environ.get("WANDB_API_KEY") or _key_in_netrc():
        return Finding("ok", f"{version}, with a key")
    return Finding("ok", f"{version}, without a key: runs stay here", "wandb login, to send them")


def _key_in_netrc() -> bool:
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai")  # as wandb does
        return found is not None
    except (OSError, netrc.NetrcParseError):
        return False


def ray(place: Place) -> Finding:
    """Join the given Ray cluster, or start a local Ray."""
    from hpo.service.preflight import cluster_resources
    from hpo.workers import ray_start
    from trainer.terminal import Quiet

    began = time.perf_counter()
    open_to_others: list[str] = []
    if place.ray_address:
        cpus, count = cluster_resources(place.ray_address)
        says = f"joined {place.ray_address}"
    else:
        with (
            Quiet() as quiet,
            ray_start.ray_session(None, "hpo-doctor", output=quiet.errors) as folder,
        ):
            cpus, count = ray_start.cluster_size()
            open_to_others = ray_start.exposed(folder)
        says = "starts here, for this account alone,"
    says = f"{says} in {time.perf_counter() - began:.0f} s: {cpus:g} CPUs, {count:g} GPUs"
    if open_to_others:
        do = "have a firewall close them; their token keeps others from using them"
        return Finding("warn", f"{says}; other machines reach {', '.join(open_to_others)}", do)
    return Finding("ok", says)


def token(_: Place) -> Finding:
    """Check that no other account can read the token of the user's Ray clusters."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not file.exists():
        return Finding("ok", "none kept here; only --ray-address needs one")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        says = f"{file} has mode {mode:o}: who reads it runs code as you"
        return Finding("warn", says, f"chmod 600 {file}; delete it if you join no Ray cluster")
    return Finding("ok", f"{file} is yours alone")


CHECKS: dict[str, Callable[[Place], Finding]] = {
    "packages": packages,
    "database": database,
    "runs": runs_folder,
    "data": data_sets,
    "gpus": gpus,
    "wandb": wandb,
    "token": token,
    "ray": ray,
}
