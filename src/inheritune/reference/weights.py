"""Weight files: whether they are there, whole, and safe to read; and single tensors of them, as bytes or as tensors.

Weights come from safetensors, or from pickles that `torch.load(weights_only=True)` accepts; nothing else is unpickled.
Checking reads headers and opcodes alone. Tensors are mapped into memory, not read into it, except from the pickles that
torch wrote before version 1.6, which cannot be.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from inheritune.errors import Refused

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_SAMPLES, _SAMPLE_BYTES = 256, 16 * 1024
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64},
}
"""Names of dtypes in safetensors' headers."""


def one_line(error: BaseException) -> str:
    """An error of a library as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300].rstrip() or type(error).__name__


def weight_files(source: str, path: Path) -> tuple[Path, ...]:
    """The weight files that transformers would read, in its order of preference, each checked to be whole and safe.

    Args:
        source: what errors call the reference.
        path: its directory.

    Raises:
        Refused: there are none, or they are incomplete, damaged or unsafe.
    """
    for name, check in ((_SAFE, _safetensors_names), (_PICKLED, _pickle_names)):
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            check(source, path / name)
            return (path / name,)
        if index.is_file():
            return _shards(source, index, check)
    raise Refused(f"{source}: no weights: {path} holds neither {_SAFE} nor {_PICKLED}, whole or in shards")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a weight file, not yet read."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None
    """Where its bytes begin in the file, row by row; None in a pickle."""

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of checked weight files, by name, in the files' order."""
    found = {}
    for file in files:
        if file.suffix == ".safetensors":
            start, header = _safetensors_header(file.name, file)
            for name, entry in header.items():
                offset = start + entry["data_offsets"][0]
                found[name] = StoredTensor(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]), offset)
        else:
            for name, tensor in _load_pickle(file, "meta").items():
                found[name] = StoredTensor(name, file, tensor.dtype, tuple(tensor.shape), None)
    return found


class WeightReader:
    """Reads single tensors of weight files; of files that must be read whole it keeps one at a time."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._pickled: dict[str, torch.Tensor] = {}

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """A tensor, contiguous; mapped from its file where the file's format allows."""
        if stored.file.suffix == ".safetensors":
            with safe_open(stored.file, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.name)
            return tensor
        if self._file != stored.file:
            self._pickled = {}  # before the next is read: never two at once
            self._pickled = _load_pickle(stored.file, "cpu")
            self._file = stored.file
        return self._pickled[stored.name].contiguous()


def _load_pickle(file: Path, device: str) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the pickle's protocol, which is no help to the user
        loaded: dict[str, torch.Tensor] = torch.load(
            file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    return loaded


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over weight files in order of name: each one's name, size in bytes, and a sample of its content.

    The sample is 256 stretches of 16 KiB, evenly spaced, first and last included; smaller files are taken whole. It
    tells other weights apart (training changes all of them) and costs milliseconds whatever the reference's size.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for sample in range(_SAMPLES):
                stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def stored_dtype(tensors: Iterable[StoredTensor]) -> str:
    """The dtype of the first floating-point tensor, such as bfloat16."""
    floating = (tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point)
    return str(next(floating, torch.float32)).removeprefix("torch.")


def _shards(source: str, index: Path, check: Callable[[str, Path], set[str]]) -> tuple[Path, ...]:
    """The shards of an index; every tensor it names must be in its shard."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
        if not names:
            raise ValueError("it names no file")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"{source}: {index.name} is no index of weights: {one_line(error)}") from error
    files = tuple(index.parent / name for name in names)
    for name, file in zip(names, files, strict=True):
        if name != file.name or not file.is_file():
            raise Refused(f"{source}: {name} is missing, one of {len(files)} weight files that {index.name} names")
        held = check(source, file)
        absent = [tensor for tensor, place in places.items() if place == file.name and tensor not in held]
        if absent:
            raise Refused(f"{source}: {file.name} lacks {absent[0]}, which {index.name} says is there")
    return files


def _safetensors_header(source: str, file: Path) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's tensors begin, and its header, if its size is what the header promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise Refused(f"{source}: {file.name} is a Git LFS pointer, not weights; fetch them with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise Refused(f"{source}: {file.name} is truncated or no safetensors file ({size} bytes); copy it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{source}: {file.name} is no safetensors file: its header cannot be read") from error
    stated = 8 + length + max(ends, default=0)
    if stated != size:
        raise Refused(f"{source}: {file.name} has {size} bytes, not the {stated} that its header states; copy it again")
    header.pop("__metadata__", None)
    return 8 + length, header


def _safetensors_names(source: str, file: Path) -> set[str]:
    """The tensors of a safetensors file whose header is possible: shapes, dtypes and places fit each other."""
    header = _safetensors_header(source, file)[1]
    try:
        with safe_open(file, framework="pt"):
            pass  # the library checks all of the header
    except SafetensorError as error:
        raise Refused(f"{source}: {file.name} is no safetensors file: {one_line(error)}") from error
    odd = [(name, entry["dtype"]) for name, entry in header.items() if entry["dtype"] not in DTYPES]
    if odd:
        name, dtype = odd[0]
        raise Refused(f"{source}: {file.name} holds {name} as {dtype}; give the model in bfloat16, float16 or float32")
    return set(header)


def _pickle_names(source: str, file: Path) -> set[str]:
    """The tensors of a pickled state dict that holds nothing but tensors."""
    try:
        tensors: Any = _load_pickle(file, "meta")
    except Exception as error:  # a pickle may hold anything, so reading it may fail in any way; none runs its code
        match = re.search(r"GLOBAL (\S+)", str(error))
        wanted = match.group(1) if match else _first_global(file)
        why = f"is an unsafe pickle: it asks for {wanted}" if wanted else "is truncated or holds more than tensors"
        raise Refused(f"{source}: {file.name} {why}; give the weights as safetensors") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided
        for name, value in tensors.items()
    ):
        raise Refused(f"{source}: {file.name} is no state dict (names and tensors); give the weights as safetensors")
    return set(tensors)


def _first_global(file: Path) -> str | None:
    """The first class or function that a plain pickle asks for, read from its opcodes; nothing is executed.

    torch 2.13 names it only in pickles of protocol 2, which `torch.save` writes.
    """
    strings: list[str] = []
    try:
        with file.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except ValueError:  # no pickle
        return None
    return None
