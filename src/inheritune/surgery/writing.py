"""Writing: the tensors of a cut go from the reference's files to the target's, and each gets its checksum.

Nothing is loaded: the kernel copies bytes from file to file; what was written is then mapped and hashed, while it goes
to the disk. The files are safetensors (an eight-byte length, a header in JSON, then the tensors end to
end; huggingface/safetensors, README, "Format"), laid out as transformers does: one file, or shards of at most 5 GB and
an index.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from inheritune.reference import DTYPES, StoredTensor, WeightReader
from inheritune.surgery.bits import raw, same_bits
from inheritune.surgery.cut import Cut, Kept, TensorRecord

_SHARD_BYTES = 5 * 10**9
_CHUNK = 1 << 20
_HASHERS = 4
_WORDS = {dtype: word for word, dtype in DTYPES.items()}


def write_weights(cut: Cut, directory: Path, progress: Callable[[int, int], None] | None = None) -> list[TensorRecord]:
    """Write a cut's tensors into a directory, and account for every one.

    Args:
        cut: what `plan_cut` decided. Where the reference's files hold a head of its own values although its config
            says tied, the config is corrected.
        directory: exists; gets `model.safetensors`, or shards and their index.
        progress: told bytes done and bytes in all.

    Returns:
        A record a tensor: those of the files in their order, then the tied ones.
    """
    kept, tied = _without_copies(cut)
    shards = _shards(kept)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        files = {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard}
        total = sum(one.source.bytes for one in kept)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    tell = _Progress(2 * sum(one.source.bytes for one in kept), progress)
    reader = WeightReader()  # one for all: of pickles, what is read whole is read once
    places = {
        name: _write_shard(directory / name, shard, reader, tell) for name, shard in zip(names, shards, strict=True)
    }
    sums: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        sums |= _checksums(directory / name, shard, places[name], tell)
    records = [
        TensorRecord(
            one.name, "inherited", one.source.name, one.module, one.source.shape, _word(one.source), sums[one.name]
        )
        for one in kept
    ]
    by_module = {place: record for record in records for place in record.module}
    for name, first in tied.items():
        same = by_module[first]
        records.append(TensorRecord(name, "tied", first, (name,), same.shape, same.dtype, same.sha256))
    return records


def _without_copies(cut: Cut) -> tuple[list[Kept], dict[str, str]]:
    """Leave out a tied tensor that the reference's files hold a second time, as pickled ones do.

    If it has values of its own, it is not tied, whatever the config says: so transformers loads it, too.
    """
    held = {place: one for one in cut.kept for place in one.module}
    kept, tied, reader = list(cut.kept), dict(cut.tied), WeightReader()
    for name, first in cut.twice.items():
        one, other = held[first], held[name]
        if one.source.shape == other.source.shape and same_bits(reader.read(one.source), reader.read(other.source)):
            kept.remove(other)
            tied[name] = first
        else:
            cut.config.tie_word_embeddings = False
            cut.config.get_text_config().tie_word_embeddings = False
            owner, _, attribute = name.rpartition(".")
            own = torch.nn.Parameter(cut.model.get_parameter(name).clone())
            setattr(cut.model.get_submodule(owner), attribute, own)
    return kept, tied


def _shards(kept: list[Kept]) -> list[list[Kept]]:
    """The tensors in the order of the reference's files, in shards of at most 5 GB."""
    shards: list[list[Kept]] = [[]]
    size = 0
    for one in kept:
        if size and size + one.source.bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(one)
        size += one.source.bytes
    return shards


def _write_shard(path: Path, kept: list[Kept], reader: WeightReader, tell: _Progress) -> list[int]:
    """Write one safetensors file; where each tensor begins in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in kept:
        end = offset + one.source.bytes
        word, shape = _WORDS[one.source.dtype], list(one.source.shape)
        header[one.name] = {"dtype": word, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    offsets = [start + header[one.name]["data_offsets"][0] for one in kept]
    # a mapping of its own begins on a page: copying to or from an odd address takes longer (benchmarks/copying.py)
    with path.open("wb") as file, contextlib.ExitStack() as stack, mmap.mmap(-1, _CHUNK) as buffer:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.flush()
        if start + offset > file.tell():
            # room first: a disk that is too small says so at once, and writing is faster (benchmarks/copying.py)
            os.posix_fallocate(file.fileno(), 0, start + offset)
        opened = {source: stack.enter_context(source.open("rb")) for source in {one.source.file for one in kept}}
        for one, place in zip(kept, offsets, strict=True):
            if one.source.offset is None:
                _write(file.fileno(), raw(reader.read(one.source)).numpy().data, place)
            else:
                source = opened[one.source.file].fileno()
                _copy(source, one.source.offset, file.fileno(), place, one.source.bytes, buffer)
            tell.add(one.source.bytes)
    return offsets


def _copy(source: int, start: int, target: int, place: int, count: int, buffer: mmap.mmap) -> None:
    """Copy bytes between open files.

    The kernel does it where it can, into room taken first: of the ways that `benchmarks/copying.py` compares the one
    that varies least. What it could not do goes through a small buffer, which also says what is wrong.
    """
    done = 0
    with contextlib.suppress(AttributeError, OSError):
        while done < count and (copied := os.copy_file_range(source, target, count - done, start + done, place + done)):
            done += copied
    with memoryview(buffer) as whole:
        while done < count:
            with whole[: min(len(whole), count - done)] as room:
                read = os.preadv(source, [room], start + done)
            if not read:
                raise OSError(errno.EIO, "the weight file became shorter while it was read")
            with whole[:read] as piece:
                _write(target, piece, place + done)
            done += read


def _write(descriptor: int, content: memoryview, place: int) -> None:
    """Write all of a buffer at a place of an open file."""
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def _checksums(path: Path, kept: list[Kept], offsets: list[int], tell: _Progress) -> dict[str, str]:
    """SHA-256 of each tensor as it was written, by name."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

        def digest(one: Kept, place: int) -> str:
            found = hashlib.sha256()
            with memoryview(mapped) as whole:
                for start in range(place, place + one.source.bytes, _CHUNK):
                    end = min(start + _CHUNK, place + one.source.bytes)
                    with whole[start:end] as piece:
                        found.update(piece)
                    tell.add(end - start)
            return found.hexdigest()

        with ThreadPoolExecutor(1 + min(_HASHERS, os.cpu_count() or 1)) as pool:
            on_disk = pool.submit(os.fsync, file.fileno())
            sums = dict(zip((one.name for one in kept), pool.map(digest, kept, offsets), strict=True))
            on_disk.result()  # the kernel tells of a failed write once
        return sums


class _Progress:
    """Bytes done, counted over threads."""

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._total, self._report, self._done, self._lock = total, report, 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._report is not None:
                self._report(self._done, self._total)


def _word(stored: StoredTensor) -> str:
    return str(stored.dtype).removeprefix("torch.")
