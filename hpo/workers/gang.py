"""The gang: the ranks of one trial, one process each, kept warm for the next trial.

`Rank` is the actor that holds one rank's process. `Gang` drives all ranks in step and turns
whatever goes wrong into a typed `GangFailure`. A gang that failed is killed as a whole, and built
again for the next trial. A dead or hung rank never holds up the others.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hpo.control.assignment import Assignment
from hpo.control.messages import Job, Kind, RankProgress
from hpo.errors import HpoError
from hpo.study.sections import Resources
from hpo.workers.failures import Failure, first_cause, typed
from hpo.workers.rank_log import RankLog
from trainer.config.settings import is_url

if TYPE_CHECKING:
    from trainer.run import StepInfo

T = TypeVar("T")

SETTLE_SECONDS = 5.0  # after a first failure, how long the other ranks may take to say theirs
_RANK_NAME = "rank-"
POLL_SECONDS = 2.0  # between two looks at a gang's progress


class GangFailure(HpoError):
    """The gang could not go on; it has been killed and can be built again."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(kind, detail)  # as it is pickled
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


@ray.remote(concurrency_groups={"control": 1})
class Rank:
    """One rank's process. Trials run in its main concurrency group; `control` answers meanwhile."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._world: Any = None
        self._run: Any = None
        self._log: RankLog | None = None
        self._folder: Path | None = None  # of the run, if it is on this machine
        self._stop = False
        self._progress = RankProgress(None, 0, None, 0)

    def meet(self) -> tuple[str, int]:
        """Return an address and a free port of this rank's node, for the process group."""
        from trainer.engine.distributed import free_port

        return ray.util.get_node_ip_address(), free_port()

    def join(self, address: str, port: int, spans_nodes: bool) -> Failure | None:
        """Join the process group, once."""
        from trainer.engine.distributed import LOOPBACK, join

        def enter() -> None:
            # On one node it is the network that Ray uses: of a Ray of ours, loopback.
            if spans_nodes or address == LOOPBACK:
                _use_network_of(ray.util.get_node_ip_address())
            self._world = join(self._rank, self._ranks, 0, address, port)

        return typed(enter)

    def start(self, assignment: Assignment) -> tuple[int, list[Any]] | Failure:
        """Build the run of an assignment; return its first step and its earlier reports.

        It is a run of our trainer, or of the user's own function.
        """

        def build() -> tuple[int, list[Any]]:
            output_dir = assignment.document["output_dir"]
            self._folder = None if is_url(output_dir) else Path(output_dir)
            self._log = RankLog(output_dir, self._rank, assignment.attempt)
            self._progress = RankProgress(assignment.job, 0, None, self._progress.ticks + 1)
            self._run = self._make_run(assignment)
            if self._stop:
                self._run.request_stop()
            return self._run.step, self._run.history()

        return self._logged(build)

    def _make_run(self, assignment: Assignment) -> Any:
        own, document, attempt = assignment.own_function, assignment.document, assignment.attempt
        studies = assignment.studies
        if own is not None:
            from hpo.workers.own_run import OwnRun

            return OwnRun(own, document, self._world, self._tick, attempt, studies)
        from trainer.config.train import resolve
        from trainer.run import Run

        config = resolve(document, assignment.label)
        # Studies that share a teacher number their attempts at it each for itself.
        number = None if isinstance(assignment.job, str) else attempt
        return Run(config, self._world, self._stepped, self._tick, self._note, number, studies)

    def advance(self) -> Any:
        """Train to the next evaluation; return the run's report."""
        return self._logged(lambda: self._run.advance())

    def close(self) -> Failure | None:
        """Free the run. The process is ready for the next."""

        def free() -> None:
            run, self._run = self._run, None
            if run is not None:
                run.close()

        return typed(free)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def progress(self) -> RankProgress:
        """Return how far this rank has come."""
        return self._progress

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def request_stop(self, jobs: Collection[Job] | None = None) -> None:
        """Checkpoint and stop at the next step of a run of `jobs`; else of this and later runs."""
        self._stop = self._stop or jobs is None
        if self._run is not None and (jobs is None or self._progress.job in jobs):
            self._run.request_stop()

    def _logged(self, work: Callable[[], T]) -> T | Failure:
        answer = typed(work, self._folder)
        if self._log is not None:
            self._log.keep()
        return answer

    def _stepped(self, info: StepInfo) -> None:
        self._progress = replace(self._progress, step=info.step, loss=info.loss)
        self._tick()

    def _note(self, text: str) -> None:
        print(text, flush=True)  # into the rank's log
        self._progress = replace(self._progress, note=text)

    def _tick(self, step: int | None = None) -> None:
        known = self._progress
        step = known.step if step is None else step
        self._progress = replace(known, step=step, ticks=known.ticks + 1)


class Gang:
    """The ranks of one trial in its placement group, one bundle each."""

    def __init__(
        self, placement: PlacementGroup, resources: Resources, hang_seconds: float
    ) -> None:
        self._hang_seconds = hang_seconds
        self._ranks: list[Any] = [
            Rank.options(  # type: ignore[attr-defined]
                name=f"{_RANK_NAME}{os.getpid()}-{time.monotonic_ns()}-{index}",
                num_cpus=resources.cpus_per_rank,
                num_gpus=resources.gpus_per_rank,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement, placement_group_bundle_index=index
                ),
            ).remote(index, resources.ranks)
            for index in range(resources.ranks)
        ]
        places = self._all("meet")
        spans_nodes = len({address for address, _ in places}) > 1
        self._all("join", *places[0], spans_nodes)

    def start(self, assignment: Assignment) -> tuple[int, list[Any]]:
        """Build the run on every rank; return rank 0's answer. Raises GangFailure."""
        first: tuple[int, list[Any]] = self._all("start", assignment)[0]
        return first

    def advance(self) -> Any:
        """Train to the next evaluation; return rank 0's report. Raises GangFailure."""
        return self._all("advance")[0]

    def close(self) -> None:
        """Free the run on every rank; the processes stay. Raises GangFailure."""
        self._all("close")

    def kill(self) -> None:
        """Kill every rank, whatever it is doing."""
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Call `method` on every rank at once. A failure of one rank is a failure of the gang."""
        futures = [getattr(rank, method).remote(*arguments) for rank in self._ranks]
        answers = self._wait(futures)
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            self.kill()
            cause = first_cause(failures)
            raise GangFailure(cause.kind, cause.detail)
        return answers

    def _wait(self, futures: list[Any]) -> list[Any]:
        """Return the answers of all ranks, or Failures once one has failed or all hang."""
        answers: dict[Any, Any] = {}
        watch = _Watch(self._ranks[0], self._hang_seconds)
        deadline: float | None = None
        while len(answers) < len(futures):
            waiting = [future for future in futures if future not in answers]
            done, _ = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            for future in done:
                answers[future] = _answer(future)
                if isinstance(answers[future], Failure) and deadline is None:
                    deadline = time.monotonic() + SETTLE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                break
            if not done and (hang := watch.hung()):
                return [hang]
        return [answers[future] for future in futures if future in answers]


class _Watch:
    """Notices a gang without progress. It asks one rank, since a collective holds up all ranks."""

    def __init__(self, rank: Any, hang_seconds: float) -> None:
        self._rank = rank
        self._limit = hang_seconds
        self._ticks = -1
        self._since = time.monotonic()

    def hung(self) -> Failure | None:
        """Return a failure once there has been no progress for too long."""
        try:
            progress = ray.get(self._rank.progress.remote(), timeout=POLL_SECONDS)
        except (GetTimeoutError, RayError):
            progress = None  # a stopped process does not answer; a dead one is seen elsewhere
        if progress is not None and progress.ticks != self._ticks:
            self._ticks, self._since = progress.ticks, time.monotonic()
        if time.monotonic() - self._since < self._limit:
            return None
        return Failure("worker_lost", f"no progress for {self._limit:g} s: the gang hangs")


def progress() -> dict[Job, RankProgress]:
    """Return the progress of each running job, from a rank that has a note if there is one.

    Ranks that do not answer are left out.
    """
    futures = [rank.progress.remote() for rank in _living_ranks()]
    done, _ = ray.wait(futures, num_returns=len(futures), timeout=1.0) if futures else ([], [])
    answers = [answer for future in done if isinstance(answer := _answer(future), RankProgress)]
    answers.sort(key=lambda answer: answer.note is not None)
    return {answer.job: answer for answer in answers if answer.job is not None}


def request_stop(jobs: Collection[Job] | None = None) -> None:
    """Have the ranks that work at `jobs`, else all of them, checkpoint and stop at the next step.

    Without `jobs` they stop in every later run too.
    """
    for rank in _living_ranks():
        rank.request_stop.remote(jobs)


def kill_all() -> None:
    """Kill every rank of this controller."""
    for rank in _living_ranks():
        ray.kill(rank, no_restart=True)


def _living_ranks() -> list[Any]:
    # By name: the driver has no handle on actors that a gang's own actor made.
    ranks: list[Any] = []
    if not ray.is_initialized():
        return ranks
    for name in ray.util.list_named_actors():
        if name.startswith(_RANK_NAME):
            with contextlib.suppress(ValueError):  # it ended just now
                ranks.append(ray.get_actor(name))
    return ranks


def _answer(future: Any) -> Any:
    try:
        return ray.get(future)
    except OutOfMemoryError as error:
        return Failure("out_of_memory", str(error))
    except RayTaskError as error:  # the process lives: its code raised where nothing typed it
        return Failure("error", str(error))
    except RayError as error:
        return Failure("worker_lost", f"{type(error).__name__}: {error}", dead=True)


def _use_network_of(address: str) -> None:
    """Have this process talk to other ranks over the network that `address` is in."""
    # Gloo would go by the host's name, which may stand for an address that no other node reaches.
    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
