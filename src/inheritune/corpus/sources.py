"""From what the recipe names (files, globs, directories, Python source) to a sorted list of files, each checked.

Everything here happens before the first byte is written, so that bad input costs a second and one clear line.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Literal

from inheritune.config import SourceConfig
from inheritune.corpus.files import Kind, SourceFile
from inheritune.corpus.python_source import list_python_source
from inheritune.corpus.reading import open_stream, refused_if_damaged
from inheritune.errors import Refused

HUB = "hub:"
PYTHON_SOURCE = "python-source"

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
_COMPRESSIONS = {"gz": "gzip", "zst": "zst (Zstandard)"}
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_HEAD_BYTES = 1 << 16


def resolve(source: SourceConfig) -> list[SourceFile]:
    """The files of a source in their stable order; none for one of the hub, which is fetched first.

    Raises:
        Refused: nothing there, nothing in it, or a file that is not what its ending says.
    """
    if source.path == PYTHON_SOURCE:
        return [
            SourceFile(file.path, file.name, "python", "", file.size)
            for package in list_python_source()
            for file in package.files
        ]
    if source.path.startswith(HUB):
        _check_hub(source)
        return []
    files = [_describe(path, source) for path in _expand(source.path)]
    _check_mixture(source, files)
    files = [file for file in files if file.size > 0]
    if not files:
        raise Refused(f"{source.path}: empty; a source must hold text")
    for file in files:
        check_content(file)
    return files


def split_hub(path: str) -> tuple[str, str]:
    """What a `hub:` path names: a data set (its id, or a local mirror's directory), and files in it, or ''."""
    parts = path.removeprefix(HUB).rstrip("/").split("/")
    mirrors = (count for count in range(len(parts), 1, -1) if os.path.isdir("/".join(parts[:count])))
    border = next(mirrors, 2)
    return "/".join(parts[:border]), "/".join(parts[border:])


def _check_hub(source: SourceConfig) -> None:
    """Refuse what can be known to be wrong before anything is downloaded."""
    data_set, files = split_hub(source.path)
    if not data_set:
        raise Refused(f"{source.path}: no data set named; write hub:ORG/NAME")
    if files and (".." in files.split("/") or _kind_of(files) is None):
        raise Refused(f"{source.path}: {files!r} names no files of a data set; write a path or glob of {_ENDINGS}")
    if files and (source.subset is not None or source.split != "train"):
        raise Refused(f"{source.path}: subset and split are of a whole data set; leave them out, or the files' names")


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
            f"{file.name}: its ending says {_COMPRESSIONS[file.compression]}, its content does not; "
            "rename it, or compress it"
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
    with refused_if_damaged(file), open_stream(file) as stream:
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
