"""Weight files: whether they are there, whole, and safe to read. Only headers and opcodes are read, no tensor.

Weights come from safetensors, or from pickles that `torch.load(weights_only=True)` accepts; nothing else is unpickled.
"""

from __future__ import annotations

import json
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inheritune.errors import Refused

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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


def stored_dtype(file: Path) -> str:
    """The dtype of the first floating-point tensor of a checked weight file, such as bfloat16."""
    if file.suffix == ".safetensors":
        stored = [_DTYPES.get(entry["dtype"]) for entry in _safetensors_header(file.name, file).values()]
    else:
        tensors = torch.load(file, map_location="meta", weights_only=True).values()
        stored = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()]
    return next((dtype for dtype in stored if dtype is not None), "float32")


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
        if name != file.name or not file.exists():
            raise Refused(f"{source}: {name} is missing, one of {len(files)} weight files that {index.name} names")
        held = check(source, file)
        absent = [tensor for tensor, place in places.items() if place == file.name and tensor not in held]
        if absent:
            raise Refused(f"{source}: {file.name} lacks {absent[0]}, which {index.name} says is there")
    return files


def _safetensors_header(source: str, file: Path) -> dict[str, Any]:
    """The header of a safetensors file whose size is what the header promises."""
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
    return header


def _safetensors_names(source: str, file: Path) -> set[str]:
    return set(_safetensors_header(source, file))


def _pickle_names(source: str, file: Path) -> set[str]:
    """The tensors of a pickled state dict that holds nothing but tensors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle's protocol, which is no help to the user
            tensors = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # a pickle may hold anything, so reading it may fail in any way; none runs its code
        match = re.search(r"GLOBAL (\S+)", str(error))
        wanted = match.group(1) if match else _first_global(file)
        why = f"is an unsafe pickle: it asks for {wanted}" if wanted else "is truncated or holds more than tensors"
        raise Refused(f"{source}: {file.name} {why}; give the weights as safetensors") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
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
