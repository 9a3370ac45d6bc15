"""Strict reading: every record of a file, in order, as text or as a problem with its line; none skipped in silence.

A record has a position (byte offset in the uncompressed stream, or row of a Parquet file), by which it can be read
again without parsing what stands before it.
"""

from __future__ import annotations

import bisect
import gzip
import io
import json
import mmap
import tokenize
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from inheritune.corpus.files import SourceFile
from inheritune.errors import Refused

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256


class Record(NamedTuple):
    """One record: its text, or what is wrong with it."""

    position: int
    """Byte offset in the uncompressed stream, or row."""
    length: int
    """Bytes in the uncompressed stream; 1 for a row."""
    text: str | None
    problem: str = ""
    fault: int = 0
    """Bytes from `position` to what is wrong."""


class Malformed(ValueError):
    """A record that holds no text; `fault` is where in its bytes."""

    def __init__(self, problem: str, fault: int = 0) -> None:
        super().__init__(problem)
        self.fault = fault


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike zstandard's own reader it says when the last frame is cut short."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._file.read(_CHUNK >> 3)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError("the last frame is cut short")
                    return 0
            self._frame = self._frame or self._new()
            self._ready = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(file: SourceFile) -> AbstractContextManager[BinaryIO]:
    """The file's uncompressed bytes."""
    if file.compression == "gz":
        return cast(BinaryIO, gzip.open(file.path, "rb"))
    if file.compression == "zst":
        return io.BufferedReader(_ZstdStream(open(file.path, "rb")), _CHUNK)
    return open(file.path, "rb")


def scan(file: SourceFile, start: int, end: int) -> Iterator[Record]:
    """Every record that begins in part [start, end) of a file (bytes, or Parquet row groups), good or bad, in order.

    Raises:
        Refused: the file itself is damaged (a compressed stream that breaks off, say).
    """
    with refused_if_damaged(file):
        yield from _scan_parquet(file, start, end) if file.kind == "parquet" else _scan_bytes(file, start, end)


@contextmanager
def refused_if_damaged(file: SourceFile) -> Iterator[None]:
    """Turn what decompression raises for a damaged stream, or Parquet, into a refusal that names the file."""
    import zstandard

    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise Refused(
            f"{file.name}: damaged, its compressed content breaks off ({error}); fetch or write it again"
        ) from error
    except (OSError, ValueError, NotImplementedError) as error:
        # pyarrow's kinds of these; an error of the file system has a number
        if file.kind != "parquet" or getattr(error, "errno", None) is not None:
            raise
        why = " ".join(str(error).split())
        raise Refused(f"{file.name}: damaged, it cannot be read as Parquet ({why}); fetch or write it again") from error


def _scan_bytes(file: SourceFile, start: int, end: int) -> Iterator[Record]:
    for position, raw in _raw_records(file, start, end):
        if not raw or (file.kind == "jsonl" and not raw.strip()):
            continue
        try:
            yield Record(position, len(raw), decode(file, position, raw))
        except Malformed as error:
            yield Record(position, len(raw), None, str(error), error.fault)


def _raw_records(file: SourceFile, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    separator = file.record_separator
    if separator is None:
        with open_stream(file) as stream:
            yield 0, stream.read()
    elif file.compression:
        with open_stream(file) as stream:
            yield from _split(stream, separator, 0, None)
    else:
        first, last = _aligned(file.path, separator, start), _aligned(file.path, separator, end)
        with open(file.path, "rb") as stream:
            stream.seek(first)
            yield from _split(stream, separator, first, last)


def _split(stream: BinaryIO, separator: bytes, position: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each record between `position`, where the stream stands, and `stop`."""
    buffer = bytearray()
    origin = position  # offset of buffer[0]
    searched = 0
    remaining = None if stop is None else stop - position
    while chunk := stream.read(_CHUNK if remaining is None else min(_CHUNK, remaining)):
        if remaining is not None:
            remaining -= len(chunk)
        buffer += chunk
        begin = 0
        while (found := buffer.find(separator, searched)) >= 0:
            yield origin + begin, bytes(memoryview(buffer)[begin:found])
            begin = searched = found + len(separator)
        del buffer[:begin]
        origin += begin
        searched = max(0, len(buffer) - len(separator) + 1)
    if buffer:
        yield origin, bytes(buffer)


def _aligned(path: str, separator: bytes, offset: int) -> int:
    """The first offset >= `offset` where a record surely begins: after a separator that no earlier match overlaps.

    A scan from the file's start finds that separator too, so parts cut at such places hold exactly the records of the
    whole, even for separators that overlap themselves (a run of line feeds cut at blank lines).
    """
    if offset == 0:
        return 0
    width = len(separator)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if offset >= len(content):
            return len(content)
        place = max(0, offset - 2 * width + 1)
        previous = -width
        while (found := content.find(separator, place)) >= 0:
            if found + width >= offset and found - previous >= width:
                return found + width
            previous, place = found, found + 1
        return len(content)


def decode(file: SourceFile, position: int, raw: bytes) -> str:
    """A record's bytes to its text.

    Raises:
        Malformed: no text in it.
    """
    if file.kind == "python":
        return _decode_python(raw)
    if position == 0:
        raw = raw.removeprefix(_BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"byte 0x{raw[error.start]:02x} is not UTF-8", error.start) from None
    return _decode_json(text, file.text_field) if file.kind == "jsonl" else text


def _decode_json(line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # a ValueError of its own for a number of over 4300 digits
        raise Malformed(f"not JSON ({error})") from None
    if not isinstance(record, dict) or field not in record:
        raise Malformed(f"no field {field!r} (text_field names it)")
    text = record[field]
    if not isinstance(text, str):
        raise Malformed(f"field {field!r} is not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed(f"field {field!r} holds half a surrogate pair") from None
    return text


def _decode_python(raw: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
        text.encode("utf-8")
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise Malformed(f"not decodable by its encoding line ({error})") from None
    return text


def _scan_parquet(file: SourceFile, first_group: int, last_group: int) -> Iterator[Record]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        row = sum(table.metadata.row_group(group).num_rows for group in range(first_group))
        for group in range(first_group, min(last_group, table.num_row_groups)):
            for raw in _column(table, group, file.text_field):
                yield _row_record(row, raw)
                row += 1


def _column(table: Any, group: int, field: str) -> Iterator[bytes | None]:
    """A row group's text column as bytes, a few rows at a time."""
    import pyarrow

    for batch in table.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[group], columns=[field]):
        column = batch.column(0)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        # As bytes, because pyarrow's own decoding stops at a faulty value without saying which.
        yield from column.cast(pyarrow.large_binary()).to_pylist()


def _row_record(row: int, raw: bytes | None) -> Record:
    if raw is None:
        return Record(row, 1, None, "null where text should be")
    try:
        return Record(row, 1, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Record(row, 1, None, f"byte 0x{raw[error.start]:02x} is not UTF-8")


def place_of(file: SourceFile, record: Record) -> str:
    """`FILE:LINE` (or row) of what is wrong in a record. Lines count from 1; the file is read up to there again."""
    if file.kind == "parquet":
        return f"{file.name}: row {record.position}"
    line, remaining = 1, record.position + record.fault
    with open_stream(file) as stream:
        while remaining > 0 and (chunk := stream.read(min(_CHUNK, remaining))):
            line += chunk.count(b"\n")
            remaining -= len(chunk)
    return f"{file.name}:{line}"


def read_again(file: SourceFile, positions: Sequence[int], lengths: Sequence[int]) -> Iterator[str]:
    """The texts of records that `scan` found, by ascending position.

    Raises:
        Malformed, OSError, EOFError: the file is not what it was.
    """
    if file.kind == "parquet":
        yield from _read_rows(file, positions)
        return
    with open_stream(file) as stream:
        place = 0
        for position, length in zip(positions, lengths, strict=True):
            if file.compression == "zst":
                while place < position and (skipped := stream.read(min(_CHUNK, position - place))):
                    place += len(skipped)
            else:
                stream.seek(position)
            raw = stream.read(length)
            place = position + len(raw)
            yield decode(file, position, raw)


def _read_rows(file: SourceFile, rows: Sequence[int]) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        row = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            wanted = set(rows[bisect.bisect_left(rows, row) : bisect.bisect_left(rows, row + count)])
            if wanted:
                for number, raw in enumerate(_column(table, group, file.text_field), row):
                    if number in wanted:
                        text = _row_record(number, raw).text
                        if text is None:
                            raise Malformed(f"row {number} holds no text any more")
                        yield text
            row += count
