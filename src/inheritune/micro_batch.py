"""How many sequences of a micro-batch fit into memory: measured on one and two, estimated for more, tried on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from inheritune.distributed import World
from inheritune.hardware import available_memory_bytes
from inheritune.run_directory import read_json, write_json

_USABLE = 0.7
"""Share of the memory that is free now that a micro-batch may take: allocators and libraries want some of their own."""


def found_once(
    find: Callable[[], int], path: Path, world: World, *, most: int, parallel: str, report: Callable[[str], None]
) -> int:
    """What `find` finds, once for these ranks and this device: kept in a record, so that a resumed run has the same.

    Args:
        find: finds the sequences of a micro-batch; a collective call.
        path: the record.
        world: the ranks.
        most: more than this is never needed, and a record that says more is of another run.
        parallel: how the ranks share the training state.
        report: told what was found.
    """
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    setting = {"ranks": world.size, "device": device, "parallel": parallel}
    held = world.on_main(lambda: read_json(path))
    sequences = held.get("sequences") if isinstance(held, dict) and held.get("setting") == setting else None
    if type(sequences) is int and 1 <= sequences <= most:
        return sequences
    found = find()
    report(f"Micro-batches of {found} sequences a rank.")
    world.on_main(lambda: write_json(path, {"sequences": found, "setting": setting}))
    return found


def largest_micro_batch(
    run: Callable[[int], None],
    world: World,
    *,
    most: int,
    batch_sequences: int,
    later_bytes: int,
    held: Iterable[torch.Tensor] = (),
) -> int:
    """The largest micro-batch of a rank that fits into memory; on many ranks a collective call, and the same on each.

    What a forward keeps for its backward is counted on one and on two sequences: the difference is what a sequence
    takes. On a GPU the size found is then tried, and halved until it fits. On a CPU more than two are not tried, since
    there the system kills the process that fills the memory.

    Args:
        run: does a forward and a backward of so many sequences, and drops the gradients.
        world: the ranks.
        most: more sequences than this are never needed.
        batch_sequences: sequences of a step, over all ranks.
        held: tensors in memory already, which autograd keeps without any cost: the parameters.
        later_bytes: what training will allocate once and has not yet: gradients, the optimiser's moments.

    Returns:
        Sequences; such that a step's micro-batches are of near equal size.
    """
    held = list(held)
    one = saved_bytes(lambda: run(1), held)
    fixed, each = one, one
    sharers = world.size if world.device.type == "cpu" else 1  # a CPU's ranks share one memory
    usable = _USABLE * available_memory_bytes(world.device) / sharers - later_bytes
    if most >= 2:
        two = _bytes_of_two(run, held)
        if None in world.gathered(two):
            most = 1
        elif two is not None:
            each = max(1, two - one)
            fixed = max(0, one - each)
    found = max(1, min(most, int((usable - fixed) / each)))
    found = min(world.gathered(found))
    while world.device.type == "cuda" and found > 1 and not _fits(run, found, world):
        found = math.ceil(found / 2)
    rounds = math.ceil(batch_sequences / (found * world.size))
    return math.ceil(batch_sequences / (rounds * world.size))


def _bytes_of_two(run: Callable[[int], None], held: Iterable[torch.Tensor]) -> int | None:
    """What two sequences keep; None where they do not fit into memory."""
    try:
        return saved_bytes(lambda: run(2), held)
    except torch.OutOfMemoryError:
        return None


def _fits(run: Callable[[int], None], sequences: int, world: World) -> bool:
    """Whether a pass of so many sequences ends without running out of memory, on every rank."""
    try:
        run(sequences)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    torch.cuda.empty_cache()
    return all(world.gathered(fits))


def saved_bytes(run: Callable[[], None], held: Iterable[torch.Tensor] = ()) -> int:
    """The most bytes that autograd keeps at a time for the backward of `run`; each storage counts once, `held` not."""
    count = _Count({tensor.untyped_storage().data_ptr() for tensor in held})

    def pack(tensor: torch.Tensor) -> _Kept:
        return _Kept(tensor, count)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run()
    return count.peak


class _Count:
    """Bytes of the storages kept now, and the most so far."""

    def __init__(self, ignored: set[int]) -> None:
        self.peak = self.now = 0
        self._holders: dict[int, int] = {}
        self._ignored = ignored

    def add(self, key: int, size: int) -> None:
        self._holders[key] = self._holders.get(key, 0) + 1
        if self._holders[key] == 1 and key not in self._ignored:
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key] and key not in self._ignored:
            self.now -= size


class _Kept:
    """A tensor that autograd keeps; counted as long as it does."""

    def __init__(self, tensor: torch.Tensor, count: _Count) -> None:
        self.tensor, self._count = tensor, count
        storage = tensor.untyped_storage()
        # noted now: FSDP empties the storages of gathered weights while autograd keeps them
        self._key, self._size = storage.data_ptr(), storage.nbytes()
        count.add(self._key, self._size)

    def __del__(self) -> None:
        self._count.drop(self._key, self._size)
