"""Training state on disk. A checkpoint is a directory that is either whole or absent, written beside the training.

`checkpoints/step_00001000/` holds `shard-*.safetensors` (tensors alone, written by torch.distributed.checkpoint: a rank
writes what it holds, and any number of ranks reads it again) and `state.json`: everything else, and every file's
SHA-256. A save copies the tensors to memory, and a thread does the rest: it writes under a temporary name, reads again
what it wrote and compares it with the copy, writes `state.json`, renames the directory. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from inheritune.distributed import World, background_group
from inheritune.errors import Failed
from inheritune.run_directory import read_json, write_json

_PREFIX = "step_"
_FILE_BYTES = 1 << 30
"""The writer makes a copy of each file's content in memory, so files are kept small."""
Tensors = dict[str, torch.Tensor]
Record = dict[str, Any]


def checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in `directory`, oldest first; whether they are damaged is seen when they are loaded."""
    if not directory.is_dir():
        return []
    return sorted(
        path for path in directory.iterdir() if path.name.startswith(_PREFIX) and (path / "state.json").exists()
    )


class Checkpointer:
    """Writes and reads one training's checkpoints; with several ranks every call is collective.

    Args:
        directory: where they are.
        world: the ranks.
        keep: how many of the last are kept.
        report: told in a line what went wrong.
    """

    def __init__(self, directory: Path, world: World, keep: int, report: Callable[[str], None]) -> None:
        self._directory, self._world, self._keep, self._report = directory, world, keep, report
        self._group = background_group(world)
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self._room: Tensors = {}
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._damaged: set[Path] = set()
        if world.size == 1:  # said of every save and load; it is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def drop_half_written(self) -> None:
        """Delete what a kill left half written; only a training may, which alone writes here."""
        if self._world.main and self._directory.is_dir():
            for left in self._directory.glob(".*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def reserve(self, tensors: Tensors) -> None:
        """Make room for copies of such tensors while training goes on.

        It is kept from save to save, for fresh pages take several times as long as the copy (benchmarks/overheads.py);
        without this call the first save makes it.
        """
        local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}

        def work() -> None:
            with contextlib.suppress(RuntimeError):  # no room: what remains is made when it is needed
                for name, tensor in local.items():
                    self._room[name] = _room_for(tensor).zero_()

        self.finish()
        self._problem = None
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def save(self, step: int, tensors: Tensors, state: Record) -> None:
        """Write the checkpoint after `step` steps while training goes on, and delete all but the last ones.

        Where the file system refuses (disk full, say) older checkpoints stay and the user is told; the run goes on.

        Args:
            step: how many steps are done.
            tensors: copied before the call returns; a sharded one is a DTensor.
            state: everything else, as JSON.
        """
        self.finish()
        staged = self._copied(tensors)
        final = self._directory / f"{_PREFIX}{step:08d}"

        def work() -> None:
            try:
                self._problem = self._write(final, staged, state | {"step": step})
            except (Exception, CheckpointException) as error:  # a rank was lost, which training will say
                self._problem = _reason(error)
            if self._problem is None and self._world.main:
                self._prune(final)

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def _prune(self, newest: Path) -> None:
        """Keep the last whole checkpoints up to the newest; those beyond it are damaged, else training had gone on."""
        there = checkpoints(self._directory)
        self._damaged.discard(newest)
        whole = [path for path in there if path.name <= newest.name and path not in self._damaged]
        for path in there:
            if path not in whole[-self._keep :]:
                shutil.rmtree(path, ignore_errors=True)

    def finish(self) -> bool:
        """Wait for the save under way, if there is one; whether it, or the last one before, succeeded."""
        if self._thread is None:
            return self._problem is None
        self._thread.join()
        self._thread = None
        if self._problem is not None:
            what = f"{self._directory}: checkpoint not written ({self._problem})"
            self._report(f"{what}; what is there is kept, the next comes in time.")
        return self._problem is None

    def save_now(self, final: Path, tensors: Tensors, state: Record) -> None:
        """Write a directory of tensors and wait for it: the best weights so far, for `export: best`.

        Raises:
            Failed: the file system refused.
        """
        self.finish()
        problem = self._write(final, self._copied(tensors), state)
        if problem is not None:
            raise Failed(f"{final}: could not be written ({problem}); mend it and start the same command again")

    def latest(self) -> tuple[Path, Record] | None:
        """The last checkpoint that is whole, with its `state.json`; of a damaged one the user is told in a line."""
        paths = self._world.on_main(lambda: checkpoints(self._directory))
        for path in reversed(paths):
            state, problem = self._checked(path)
            if problem is None and path.name == f"{_PREFIX}{state['step']:08d}":
                return path, state
            self._damaged.add(path)
            problem = problem or f"{path}: damaged, it is of another step"
            then = "training begins anew" if path == paths[0] else "the checkpoint before it is used"
            self._report(f"{problem}; {then}.")
        return None

    def load(self, path: Path, tensors: Tensors) -> None:
        """Read a directory's tensors into `tensors`, in place, however many ranks wrote it.

        Raises:
            Failed: it is damaged, or holds other tensors.
        """
        try:
            load_sharded(
                tensors,
                storage_reader=HuggingFaceStorageReader(str(path)),
                process_group=self._group,
                no_dist=self._world.size == 1,
            )
        except (
            Exception,
            CheckpointException,
        ) as error:  # the file system's, safetensors', the reader's
            raise Failed(
                f"{path}: cannot be loaded ({_reason(error)}); delete it and start the command again"
            ) from error

    def checked(self, path: Path) -> Record:
        """The `state.json` of a directory whose files are as they were written.

        Raises:
            Failed: they are not.
        """
        state, problem = self._checked(path)
        if problem is not None:
            raise Failed(problem)
        return state

    def held(self, path: Path, state: Record) -> set[str]:
        """The names of the tensors in a directory, whose `state.json` is given."""
        names: set[str] = set()
        for file in state["files"]:
            with safe_open(path / file, framework="pt") as opened:
                names |= set(opened.keys())
        return names

    def _checked(self, path: Path) -> tuple[Record, str | None]:
        """A directory's `state.json`, and what is wrong with its files; each rank reads some of them."""
        problem = None
        try:
            state = read_json(path / "state.json")
        except (Failed, OSError):
            state = None
        if not isinstance(state, dict) or state.get("sha256") != _digest(state):
            return {}, f"{path / 'state.json'}: damaged, its checksum differs"
        foreign = {file.name for file in path.glob("*.safetensors")} - set(state["files"])
        if foreign:
            return {}, f"{path / min(foreign)}: does not belong to the checkpoint"
        for name, digest in sorted(state["files"].items())[self._world.rank :: self._world.size]:
            try:
                if _sha256(path / name) != digest:
                    problem = f"{path / name}: damaged, its checksum differs"
            except OSError as error:
                problem = f"{path / name}: {error.strerror}"
        found = [one for one in self._world.gathered(problem) if one is not None]
        return state, found[0] if found else None

    def _copied(self, tensors: Tensors) -> Tensors:
        """Copies in memory, each sharded as its tensor is; good until the next call."""
        copies = {name: self._staged(name, tensor.detach()) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return copies

    def _staged(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in memory, under way where the tensor is on a GPU."""
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        room = self._room.get(name)
        if room is None or room.shape != local.shape or room.dtype != local.dtype:
            room = self._room[name] = _room_for(local)
        room.copy_(local, non_blocking=True)
        if not isinstance(tensor, DTensor):
            return room
        mesh = tensor.device_mesh
        if mesh.device_type != "cpu" and mesh not in self._meshes:
            self._meshes[mesh] = init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)
        mesh = self._meshes.get(mesh, mesh)
        staged: DTensor = DTensor.from_local(
            room, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        return staged

    def _write(self, final: Path, staged: Tensors, state: Record) -> str | None:
        """Write, read again, compare, mark, rename; what went wrong, if anything did, is the same on every rank."""
        temporary = final.with_name(f".{final.name}.tmp")
        sums: dict[str, str] = {}

        def prepare() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        def write() -> None:
            writer = HuggingFaceStorageWriter(
                str(temporary), fqn_to_index_mapping=_file_numbers(staged), save_distributed=True
            )
            save_sharded(staged, storage_writer=writer, process_group=self._group, no_dist=self._world.size == 1)

        def compare() -> None:
            for file in sorted(temporary.glob(f"shard-{self._world.rank + 1:05d}-*.safetensors")):
                _compare(file, staged)
                sums[file.name] = _sha256(file)

        def complete() -> None:
            whole = state | {"files": files}
            write_json(temporary / "state.json", whole | {"sha256": _digest(whole)})
            _flush(temporary)
            before = final.with_name(f".{final.name}.before.tmp")
            shutil.rmtree(before, ignore_errors=True)
            if final.exists():  # deleting it first would leave neither for as long as that takes
                final.rename(before)
            temporary.rename(final)
            _flush(final.parent)
            shutil.rmtree(before, ignore_errors=True)

        files: dict[str, str] = {}
        problem = self._together(prepare, main_only=True) or self._together(write) or self._together(compare)
        if problem is None:
            for part in self._exchanged(sums):
                files |= part
            problem = self._together(complete, main_only=True)
        if problem is not None and self._world.main:
            shutil.rmtree(temporary, ignore_errors=True)
        return problem

    def _together(self, work: Callable[[], None], *, main_only: bool = False) -> str | None:
        """Do a piece of work on every rank, or on the main one; the first problem that any of them had, on all."""
        problem = None
        if self._world.main or not main_only:
            try:
                work()
            except (Exception, CheckpointException) as error:  # told, whatever it is; training goes on
                problem = _reason(error)
        return next((one for one in self._exchanged(problem) if one is not None), None)

    def _exchanged(self, value: Any) -> list[Any]:
        """Every rank's value, over the group of this thread."""
        if self._world.size == 1:
            return [value]
        values: list[Any] = [None] * self._world.size
        torch.distributed.all_gather_object(values, value, group=self._group)
        return values


def _room_for(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor like it in memory; for one on a GPU pinned, where the system lets so much be pinned."""
    if tensor.is_cuda:
        with contextlib.suppress(RuntimeError):
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
    return torch.empty_like(tensor, device="cpu")


def _file_numbers(tensors: Tensors) -> dict[str, int]:
    """Which file of a rank each tensor goes to, from 1, so that a file holds about `_FILE_BYTES` at most."""
    numbers, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > _FILE_BYTES:
            number, size = number + 1, 0
        numbers[name] = number
        size += tensor.nbytes
    return numbers


def _compare(file: Path, staged: Tensors) -> None:
    """Read a written file again: every tensor must have the bits that it has in memory.

    Raises:
        OSError: one has not.
    """
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  (it is no dict)
            tensor = staged[name]
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            ours, read = (one.reshape(-1).view(torch.uint8) for one in (local, opened.get_tensor(name)))
            if not torch.equal(ours, read):
                raise OSError(f"{name} reads otherwise than it was written")


def _digest(state: Record) -> str:
    """SHA-256 of a training state, its own checksum left out."""
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(directory: Path) -> None:
    """Bring a directory's entries to the disk."""
    with contextlib.suppress(OSError):  # some network file systems do not know it
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: BaseException) -> str:
    """An error in one line; of several ranks' the first."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SafetensorError | RuntimeError):
        return " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
