"""The header of a GGUF file: metadata, and where its tensors lie (ggml-org/ggml, docs/gguf.md).

The readers of the `gguf` package and of transformers believe what a file says of itself: a count of 2**60 is a loop of
as many turns. So counts, lengths and offsets are checked here first, against the file's size and against limits that no
model comes near. What is read is as long as what the file holds; no tensor is touched.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import Refused

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_STRING, _ARRAY = 8, 9
_ALIGNMENT, _MOST_ALIGNMENT = 32, 65_536
_MOST_DIMENSIONS = 4

# A model of 671B parameters has some 1,100 tensors, 50 keys and 300,000 elements in arrays.
_MOST_TENSORS = _MOST_KEYS = 16_384
_MOST_ELEMENTS = 4_194_304
_MOST_HEADER_BYTES = 256 * 1024 * 1024
_MOST_NAME_BYTES = 65_535
_MOST_STRING_BYTES = 1024 * 1024

BlockSizes = Mapping[int, tuple[str, int, int]]
"""By number of a ggml type: its name, the values of a block, and the bytes of a block."""


@dataclass(frozen=True)
class Array:
    """An array of the metadata; its elements are not kept."""

    kind: int
    """The number of its elements' type."""
    count: int

    @property
    def of_strings(self) -> bool:
        """Whether its elements are strings."""
        return self.kind == _STRING

    @property
    def of_integers(self) -> bool:
        """Whether its elements are integers."""
        return self.kind in _INTEGERS


@dataclass(frozen=True)
class HeldTensor:
    """A tensor of a GGUF file."""

    name: str
    kind: str
    """Its ggml type, such as Q4_1."""
    values: int
    """How many it has."""
    offset: int
    """Where its bytes begin, counted from the first byte of the data."""
    bytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    metadata: dict[str, Any]
    """Numbers, booleans and strings as they are; of an array its kind and length."""
    tensors: tuple[HeldTensor, ...]
    data: int = 0
    """The byte of the file that the tensors' places are counted from."""

    def integer(self, key: str) -> int | None:
        """A whole number of the metadata; None where there is none of that name, or it is of another type."""
        value = self.metadata.get(key)
        return value if type(value) is int else None

    def text(self, key: str) -> str | None:
        """A string of the metadata; None where there is none of that name, or it is of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def array(self, key: str) -> Array | None:
        """An array of the metadata; None where there is none of that name, or it is of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, Array) else None


def is_gguf(path: Path) -> bool:
    """Whether a file is meant as GGUF, by its name or by its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(source: str, path: Path, blocks: BlockSizes) -> Header:
    """Read a GGUF file's header, if all that it states is possible in a file of this size.

    Args:
        source: what errors call the file.
        path: a regular file.
        blocks: the types of tensors that can be dequantised.

    Raises:
        Refused: it is no GGUF file, truncated, damaged, or of a kind that is not supported.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(len(MAGIC))
        if begin == b"vers":
            raise Refused(f"{source}: a Git LFS pointer, not weights; fetch them with `git lfs pull`")
        if begin != MAGIC:
            raise Refused(f"{source}: no GGUF file: it begins with {begin!r}, not with {MAGIC!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(source, content, size, blocks).header()


class _Reader:
    """Reads a header from its first byte to its last; nothing is read that does not lie in the file."""

    def __init__(self, source: str, content: mmap.mmap, size: int, blocks: BlockSizes) -> None:
        self._source, self._content, self._size, self._blocks = source, content, size, blocks
        self._at = len(MAGIC)
        self._elements = 0

    def header(self) -> Header:
        """All of it."""
        version = self._number("I", "its version")
        if version not in _VERSIONS:
            if version == 0 or version & 0xFFFF == 0:
                raise Refused(f"{self._source}: GGUF for big-endian machines, which transformers does not read")
            raise Refused(
                f"{self._source}: GGUF of version {version}, and only {' and '.join(map(str, _VERSIONS))} can be read; "
                "convert the model again"
            )
        tensors = self._count("its number of tensors", _MOST_TENSORS)
        keys = self._count("its number of keys", _MOST_KEYS)
        metadata: dict[str, Any] = {}
        for number in range(keys):
            key = self._string(f"the name of key {number}", _MOST_NAME_BYTES)
            if key in metadata:
                raise self._damaged(f"it has the key {plain(key)} twice")
            metadata[key] = self._value(plain(key), self._number("I", f"the type of {plain(key)}"))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {plain(repr(alignment))}, no power of 2")
        held = [self._tensor(number, alignment) for number in range(tensors)]
        data = -(-self._at // alignment) * alignment
        self._check_places(held, data)
        return Header(metadata, tuple(held), data)

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], key)
        if kind == _STRING:
            return self._string(key, _MOST_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        raise self._damaged(f"{key} is of type {kind}, and there are 0 to {max(_SCALARS)}")

    def _array(self, key: str) -> Array:
        kind = self._number("I", f"the type of {key}'s elements")
        if kind not in _SCALARS and kind != _STRING:
            raise self._damaged(f"{key} is an array of type {kind}, not of numbers or strings")
        count = self._number("Q", f"the length of {key}")
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise self._damaged(f"its arrays up to {key} have {self._elements:,} elements, above {_MOST_ELEMENTS:,}")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[kind]}"), key)
        else:
            what, length = f"a string in {key}", f"the length of a string in {key}"
            for _ in range(count):
                self._skip(self._number("Q", length), what)
        return Array(kind, count)

    def _tensor(self, number: int, alignment: int) -> HeldTensor:
        name = self._string(f"the name of tensor {number}", _MOST_NAME_BYTES)
        what = f"tensor {plain(name)}"
        dimensions = self._number("I", f"the dimensions of {what}")
        if dimensions > _MOST_DIMENSIONS:
            raise self._damaged(f"{what} has {dimensions:,} dimensions, and {_MOST_DIMENSIONS} are the most")
        shape = [self._number("Q", f"the shape of {what}") for _ in range(dimensions)]
        kind, offset = self._number("I", f"the type of {what}"), self._number("Q", f"the place of {what}")
        if kind not in self._blocks:
            known = ", ".join(name for name, _, _ in self._blocks.values())
            raise Refused(f"{self._source}: {what} is of quantisation type {kind}, which is not known here ({known})")
        word, block_values, block_bytes = self._blocks[kind]
        if not all(shape) or not shape or shape[0] % block_values:
            raise self._damaged(f"{what} has shape {shape[::-1]}, which {word} in blocks of {block_values} cannot hold")
        if offset % alignment:
            raise self._damaged(f"{what} begins at {offset:,}, no multiple of {alignment}")
        values = math.prod(shape)
        return HeldTensor(name, word, values, offset, values // block_values * block_bytes)

    def _check_places(self, tensors: list[HeldTensor], data: int) -> None:
        """Each tensor lies in the file, and none on another: a small file could otherwise ask for any memory."""
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise self._damaged("two of its tensors have one name")
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda one: one.offset):
            if data + tensor.offset + tensor.bytes > self._size:
                raise self._beyond(f"tensor {plain(tensor.name)}", data + tensor.offset + tensor.bytes)
            if tensor.offset < end:
                raise self._damaged(f"tensor {plain(tensor.name)} lies on {plain(before)}")
            end, before = tensor.offset + tensor.bytes, tensor.name

    def _count(self, what: str, most: int) -> int:
        count: int = self._number("Q", what)
        if count > most:
            raise self._damaged(f"{what} is {count:,}, above {most:,}")
        return count

    def _number(self, kind: str, what: str) -> Any:
        start = self._at
        self._skip(struct.calcsize(f"<{kind}"), what)
        (value,) = struct.unpack_from(f"<{kind}", self._content, start)
        return value

    def _string(self, what: str, most: int) -> str:
        length = self._number("Q", f"the length of {what}")
        if length > most:
            raise self._damaged(f"{what} has {length:,} bytes, above {most:,}")
        start = self._at
        self._skip(length, what)
        try:
            return self._content[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is no UTF-8") from None

    def _skip(self, count: int, what: str) -> None:
        self._at += count
        if self._at > self._size:
            raise self._beyond(what, self._at)
        if self._at > _MOST_HEADER_BYTES:
            raise self._damaged(f"its header is longer than {_MOST_HEADER_BYTES:,} bytes")

    def _beyond(self, what: str, end: int) -> Refused:
        return Refused(
            f"{self._source}: truncated or damaged: {what} would end at byte {end:,}, and the file has {self._size:,}; "
            "copy it again"
        )

    def _damaged(self, what: str) -> Refused:
        return Refused(f"{self._source}: damaged, or no model: {what}; copy it again")


def plain(text: str) -> str:
    """A word from a file, as one that fits into a line and does no harm to a terminal."""
    shown = re.sub(r"[^\x20-\x7e]", "?", text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
