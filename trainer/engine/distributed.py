"""The process group, which a process joins once and uses for all the runs that it trains.

It is DeepSpeed's communication on top of torch.distributed, gloo on CPUs and nccl on GPUs. Nothing
here knows a config, a model or a run.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from trainer.config.settings import ConfigError
from trainer.engine.waiting import heard

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
JOIN_SECONDS = 300.0  # within which all ranks must have come


@dataclass(frozen=True)
class World:
    """This process' place among the `ranks` that train together, and the device it computes on."""

    rank: int
    ranks: int
    local_rank: int
    device: torch.device

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 alone; every rank returns its value, or raises its exception."""
        if self.ranks == 1:
            return work()
        if self.rank > 0:
            outcome = self._share(None)
            if isinstance(outcome, _Raised):
                raise outcome.error
            return outcome  # type: ignore[no-any-return]
        try:
            value = work()
        except Exception as error:
            self._share(_Raised(error))
            raise
        self._share(value)
        return value

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Make `tensor` of every rank, on `device`, equal to that of rank 0."""
        if self.ranks > 1:
            dist.broadcast(tensor, src=0)

    def sum(self, tensor: torch.Tensor) -> None:
        """Make `tensor` of every rank, on `device`, the sum of all of them."""
        if self.ranks > 1:
            dist.all_reduce(tensor)

    def stacked(self, tensor: torch.Tensor) -> torch.Tensor:
        """The `tensor` of every rank, on `device`, along a new first axis in the order of ranks."""
        if self.ranks == 1:
            return tensor[None]
        each = [torch.empty_like(tensor) for _ in range(self.ranks)]
        dist.all_gather(each, tensor)
        return torch.stack(each)

    def largest(self, value: float) -> float:
        """The largest `value` of any rank."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.ranks > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def _share(self, outcome: Any) -> Any:
        box = [outcome]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


@dataclass(frozen=True)
class _Raised:
    error: Exception


@cache
def load_deepspeed() -> Any:
    """Import DeepSpeed, change this process and DeepSpeed as our runs need it, and return it.

    It sets the environment variable DS_ACCELERATOR where there is no GPU, and replaces three of
    DeepSpeed's own values. `join` calls it first; all of `trainer` takes DeepSpeed from here.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at the first import
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.compiler

    # DeepSpeed's Muon, which we do not use, would load torch's compiler: a second in every process.
    deepspeed.runtime.compiler.compile = lambda: deepspeed.runtime.compiler.dummy_decorator
    # DeepSpeed would compile it for a minute, and wait for ever on the lock of a killed build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed would copy every gradient to fp64 for the norm, which takes 2 % of a step. torch
    # clips in fp32 too.
    deepspeed.get_accelerator().is_fp64_supported = lambda: False
    return deepspeed


def join(
    rank: int,
    ranks: int,
    local_rank: int,
    master_addr: str,
    master_port: int,
    *,
    hosted: bool = False,
    say: Callable[[str], None] = print,
) -> World:
    """Join the process group as `rank` of `ranks`, once in a process; return when all have.

    Rank 0 listens on `master_port` at `master_addr`, unless that is `hosted` by torchrun's agent.
    `local_rank` is the GPU to use, if any. `say` is told of a long wait. Raises DistError when the
    others are not there after JOIN_SECONDS.
    """
    assert not dist.is_initialized(), "a process joins once"
    deepspeed = load_deepspeed()
    from deepspeed.constants import default_pg_timeout

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(local_rank))
    os.environ.update(MASTER_ADDR=master_addr, MASTER_PORT=str(master_port))
    backend, device = "gloo", torch.device("cpu")
    if torch.cuda.is_available():
        backend, device = "nccl", torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    store: Store = HashStore()  # nobody to meet: it listens nowhere
    if ranks > 1:
        store = heard(
            lambda: _meet(rank, ranks, master_addr, master_port, hosted),
            lambda: say(
                f"rank {rank} waits for all of {ranks} ranks at {master_addr}:{master_port}, "
                f"for at most {JOIN_SECONDS:.0f} s"
            ),
        )
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=default_pg_timeout
    )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return World(rank, ranks, local_rank, device)


def _meet(rank: int, ranks: int, address: str, port: int, hosted: bool) -> Store:
    """Return the store of the process group, once all ranks are there. Raises DistError."""
    serves = rank == 0 and not hosted
    listener: dict[str, Any] = {}
    if serves and address == LOOPBACK:  # torch itself would listen on every interface
        try:
            listener = {"master_listen_fd": socket.create_server((address, port)).detach()}
        except OSError as error:
            raise dist.DistNetworkError(f"{address}:{port}: {error.strerror}") from error
    limit = timedelta(seconds=JOIN_SECONDS)
    return TCPStore(address, port, ranks, serves, timeout=limit, **listener)


def from_environment(say: Callable[[str], None] = print) -> World:
    """Join as torchrun's variables say, or alone where there are none. `say` tells of a long wait.

    Raises ConfigError where only some of them are set, or where the other ranks do not come.
    """
    if "WORLD_SIZE" not in os.environ:
        return join(0, 1, 0, LOOPBACK, free_port())
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is set in the environment but not {', '.join(missing)}; "
            "start with torchrun, or unset WORLD_SIZE"
        )
    rank, ranks, local_rank, port = (int(os.environ[name]) for name in names[:4])
    address = os.environ["MASTER_ADDR"]
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return join(rank, ranks, local_rank, address, port, hosted=hosted, say=say)
    except dist.DistError as error:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={ranks} in the environment: the other ranks are not at "
            f"MASTER_ADDR and MASTER_PORT, {address}:{port} ({str(error).splitlines()[0]}); start "
            "with torchrun, or unset WORLD_SIZE"
        ) from None


def leave() -> None:
    """Leave the process group, at the end of the process."""
    dist.destroy_process_group()


def free_port() -> int:
    """A TCP port that nothing on this machine listens on now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
