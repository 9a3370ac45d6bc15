"""From what the recipe names (files, globs, directories, Python source) to a sorted list of files, each proven to be what its ending says.

Everything here happens before the first byte is written, so that bad input costs a second and one clear line, not an hour.
"""

from __future__ import annotations

import glob
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from inheritune.config import DataConfig, SourceConfig
from inheritune.errors import Refused

Kind = Literal["jsonl", "parquet", "text", "python"]

HUB = "hub:"
PYTHON_SOURCE = "python-source"
SETS = ("train", "development", "held-out")

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
}
_ENDINGS = ".jsonl, .json, .txt, .md (each also .gz, .zst) or .parquet"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class SourceFile:
    """One file to read, and how."""

    path: str
    """What to open."""
    name: str
    """What messages call it; for Python source a stable name such as `torch/nn/modules/linear.py`."""
    kind: Kind
    compression: Literal["", "gz", "zst"]
    size: int
    """Bytes on disk."""
    text_field: str = "text"
    separator: str | None = None

    @property
    def divisible(self) -> bool:
        """Whether parts of it can be read without what stands before them."""
        return self.kind == "parquet" or (not self.compression and self.record_separator is not None)

    @property
    def record_separator(self) -> bytes | None:
        """The bytes between two records; None where the whole file is one."""
        if self.kind == "jsonl":
            return b"\n"
        return self.separator.encode("utf-8") if self.separator is not None else None


def check_settings(data: DataConfig) -> None:
    """Refuse settings that contradict each other, without looking at any file.

    Raises:
        Refused: one line saying what and how to mend it.
    """
    if not data.sources:
        raise Refused(
            "data.sources: none given; name at least one file, directory, glob, hub:ORG/NAME or python-source"
        )
    if data.tokens is None and len(data.sources) > 1:
        raise Refused(
            "data.tokens: unset with several sources, but weights are shares of a budget; set it, such as 100M"
        )
    if data.tokens is not None and data.tokens < 1:
        raise Refused(f"data.tokens: {data.tokens} leaves nothing to train on; set at least 1")
    for key, share in (("validation_share", data.validation_share), ("development_share", data.development_share)):
        if not 0 <= share < 1:
            raise Refused(f"data.{key}: {share} is no share; give a number from 0 to below 1")
    if data.validation_share + data.development_share >= 1:
        raise Refused(
            "data.validation_share + data.development_share: 1 or more leaves no training documents; lower them"
        )
    if data.held_out_document_tokens is not None and data.held_out_document_tokens < 1:
        raise Refused("data.held_out_document_tokens: must be at least 1; leave it unset to keep documents whole")
    for name in data.validation_sets:
        if name in SETS or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise Refused(
                f"data.validation_sets: {name!r} cannot name a set; use letters, digits, - and _, not {', '.join(SETS)}"
            )
    for source in [*data.sources, *data.validation_sets.values()]:
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise Refused(
                f"{source.path}: weight {source.weight} is no share; give a number above 0, or leave the source out"
            )
        if source.document_separator == "":
            raise Refused(f"{source.path}: document_separator is empty; leave it unset for one document a file")


def resolve(source: SourceConfig) -> list[SourceFile]:
    """The files of a source in their stable order; none for a hub data set, which is fetched first.

    Raises:
        Refused: nothing there, nothing in it, or a file that is not what its ending says.
    """
    if source.path == PYTHON_SOURCE:
        from inheritune.corpus.python_source import list_python_source

        return [
            SourceFile(file.path, file.name, "python", "", file.size)
            for package in list_python_source()
            for file in package.files
        ]
    if source.path.startswith(HUB):
        if not source.path[len(HUB) :].strip("/"):
            raise Refused(f"{source.path}: no data set named; write hub:ORG/NAME")
        return []
    files = [_describe(path, source) for path in _expand(source.path)]
    _check_mixture(source, files)
    files = [file for file in files if file.size > 0]
    if not files:
        raise Refused(f"{source.path}: empty; a source must hold text")
    for file in files:
        check_content(file)
    return files


def _expand(pattern: str) -> list[str]:
    """Paths of regular files that a file name, directory or glob stands for, sorted."""
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        found = [str(entry) for entry in Path(path).rglob("*") if entry.is_file() and _visible(entry.relative_to(path))]
        found = [name for name in found if _kind_of(name) is not None]
        if not found:
            raise Refused(f"{pattern}: a directory without any {_ENDINGS} file")
        return sorted(found)
    if os.path.exists(path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not found:
        raise Refused(f"{pattern}: no such file, directory or match")
    return found


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _kind_of(name: str) -> tuple[Kind, Literal["", "gz", "zst"]] | None:
    stem, ending = os.path.splitext(name.lower())
    compression: Literal["", "gz", "zst"] = ""
    if ending == ".gz":
        compression = "gz"
    elif ending == ".zst":
        compression = "zst"
    if compression:
        stem, ending = os.path.splitext(stem)
    kind = _KINDS.get(ending)
    if kind is None or (kind == "parquet" and compression):
        return None
    return kind, compression


def _describe(path: str, source: SourceConfig) -> SourceFile:
    found = _kind_of(path)
    if found is None:
        raise Refused(f"{path}: unknown ending; a source is {_ENDINGS}")
    kind, compression = found
    if source.document_separator is not None and kind != "text":
        raise Refused(
            f"{path}: document_separator is for plain text and Markdown; a {kind} record is a document already"
        )
    return SourceFile(
        path, path, kind, compression, os.path.getsize(path), source.text_field, source.document_separator
    )


def _check_mixture(source: SourceConfig, files: list[SourceFile]) -> None:
    """A README beside data must not become a document by accident."""
    if os.path.isdir(os.path.expanduser(source.path)) and len({file.kind for file in files}) > 1:
        first = {file.kind: file.name for file in reversed(files)}
        raise Refused(
            f"{source.path}: holds files of several kinds ({', '.join(sorted(first.values()))}); choose by a glob"
        )


def check_content(file: SourceFile) -> None:
    """Refuse a file whose first bytes (for Parquet: schema) show that it is not what its ending says.

    Raises:
        Refused: what it is instead, or what is missing.
    """
    try:
        with open(file.path, "rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise Refused(f"{file.name}: cannot be read ({error.strerror})") from error
    if file.kind == "parquet":
        _check_parquet(file, magic)
        return
    expected = {"gz": _GZIP_MAGIC, "zst": _ZSTD_MAGIC}.get(file.compression, b"")
    if not magic.startswith(expected) and not (file.compression == "zst" and _ZSTD_SKIPPABLE.match(magic)):
        raise Refused(
            f"{file.name}: its ending says {file.compression}, its content does not; rename it, or compress it"
        )
    if not file.compression:
        for ending, other in (("gz", _GZIP_MAGIC), ("zst", _ZSTD_MAGIC)):
            if magic.startswith(other):
                raise Refused(f"{file.name}: its content is {ending}-compressed; rename it to {file.name}.{ending}")
    head = _read_head(file)
    if b"\0" in head:
        raise Refused(f"{file.name}: binary (or UTF-16) content; text must be UTF-8")
    if file.kind == "jsonl" and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise Refused(f"{file.name}: one JSON array, not JSON lines; write a record a line (jq -c '.[]')")


def _read_head(file: SourceFile) -> bytes:
    from inheritune.corpus.reading import open_stream

    stream: BinaryIO | Any
    with open_stream(file) as stream:
        return bytes(stream.read(_HEAD_BYTES))


def _check_parquet(file: SourceFile, magic: bytes) -> None:
    import pyarrow
    import pyarrow.parquet

    if magic != b"PAR1":
        raise Refused(f"{file.name}: its ending says Parquet, its content does not")
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            schema = table.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"{file.name}: damaged Parquet ({str(error).splitlines()[0]})") from error
    if file.text_field not in schema.names:
        raise Refused(f"{file.name}: no column {file.text_field!r}; set text_field to one of {', '.join(schema.names)}")
    column = schema.field(file.text_field).type
    if pyarrow.types.is_dictionary(column):
        column = column.value_type
    if not (pyarrow.types.is_string(column) or pyarrow.types.is_large_string(column)):
        raise Refused(
            f"{file.name}: column {file.text_field!r} holds {column}, not text; set text_field to a column of strings"
        )
