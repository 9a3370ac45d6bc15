"""Where this process computes: its rank, its device, its group. The only file that reads the launcher's environment.

One process is the common case: no group is made, and every reduction is the value itself. Under torchrun every process
joins the group of its device (NCCL on GPUs, gloo on CPUs) and a second gloo group, over which the others wait for
rank 0 while it prepares data or measures alone, however long that takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from inheritune.errors import Failed, InherituneError, Interrupted, Refused

T = TypeVar("T")
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=30)
_COLLECTIVE_SECONDS = 600


@dataclass(frozen=True)
class World:
    """This process among the run's processes."""

    rank: int
    size: int
    device: torch.device
    patient: Any = None
    """The gloo group of all ranks that waits without a timeout; None in a world of one."""

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes records for all."""
        return self.rank == 0

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place; the tensor is on this rank's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def on_main(self, work: Callable[[], T]) -> T:
        """Do some work on rank 0 alone; every rank gets its value, or its error. The others wait, without a timeout.

        Raises:
            InherituneError, Interrupted: what the work raised; where it raised anything else, the other ranks fail.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        if not self.main:
            dist.broadcast_object_list(told, 0, group=self.patient)
            kind, content = told[0]
            if kind != "value":
                raise _mirrored(kind, content)
            value: T = content
            return value
        try:
            value = work()
            told = [("value", value)]
        except BaseException as error:
            told = [(type(error).__name__, (str(error), getattr(error, "exit_code", 1)))]
            raise
        finally:
            dist.broadcast_object_list(told, 0, group=self.patient)
        return value

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.patient)
        return values


def _mirrored(kind: str, content: tuple[str, int]) -> InherituneError | Interrupted:
    """Rank 0's error on another rank, which does not say it again."""
    message, code = content
    error: InherituneError | Interrupted
    if kind == "Refused":
        error = Refused(message)
    elif kind in ("Interrupted", "KeyboardInterrupt"):
        error = Interrupted(message, code if kind == "Interrupted" else 130)
    else:
        error = Failed(message)
    error.said = True
    return error


def single() -> World:
    """The world of a command that one process does alone, on the GPU where there is one, else on the CPU.

    Raises:
        Refused: a launcher started several processes of it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise Refused(f"WORLD_SIZE={size}: this command is done by one process; start it without torchrun")
    return World(rank=0, size=1, device=_device(0))


@contextmanager
def joined() -> Iterator[World]:
    """The world that the launcher's environment describes; its groups are left again at the end.

    Raises:
        Refused: an environment that is not whole.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield single()
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise Refused(f"WORLD_SIZE={size}, but {', '.join(missing)} is not set; start several processes by torchrun")
    device = _device(int(os.environ["LOCAL_RANK"]))
    on_gpu = device.type == "cuda"
    timeout = timedelta(seconds=_COLLECTIVE_SECONDS)
    try:
        store, rank, _ = next(rendezvous("env://", timeout=timeout))
        # torchrun keeps its store over a restart, and in it the addresses of ranks that are gone. (Of several machines
        # each counts its own restarts: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 does it, see docs/clusters.md.)
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:200]
        raise Failed(
            f"the other ranks cannot be reached by way of {where} ({reason}); start all of them again"
        ) from error
    try:
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield World(dist.get_rank(), dist.get_world_size(), device, patient)
    finally:
        dist.destroy_process_group()


def background_group(world: World) -> Any:
    """A gloo group of all ranks for a thread of its own: collectives of two threads must not share a group."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE) if world.size > 1 else None


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank is gone: backends say so in words of their own."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")
    return any(word in str(error).lower() for word in words)
