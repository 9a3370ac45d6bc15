"""The work of one preparation, written down: which files, cut into which tasks; the same for any number of workers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.corpus.files import SourceFile
from inheritune.run_directory import read_json, write_json

SCAN_TASK_BYTES = 32 << 20

Piece = tuple[int, int, int]  # file number, start, end: bytes, or row groups of Parquet


@dataclass(frozen=True)
class Plan:
    """What is read, by which tasks."""

    files: list[SourceFile]
    source_of: list[int]
    """(files,): the number of each file's source."""
    tasks: list[list[Piece]]
    seed: int
    skip_bad: bool
    end_of_text: int
    begin_of_sequence: int | None
    """What each document begins with; None: nothing."""
    token_bytes: int

    def save(self, directory: Path) -> None:
        """Write it for workers, and for a later call that goes on with the work."""
        write_json(directory / "plan.json", asdict(self))


@functools.lru_cache(maxsize=1)
def load_plan(directory: Path) -> Plan:
    """Read a plan; the last one read is kept, since every task asks for it."""
    record: dict[str, Any] = read_json(directory / "plan.json")
    files = [SourceFile(**file) for file in record.pop("files")]
    tasks = [[(int(a), int(b), int(c)) for a, b, c in task] for task in record.pop("tasks")]
    return Plan(files=files, tasks=tasks, **record)


def divide(files: list[SourceFile], task_bytes: int = SCAN_TASK_BYTES) -> list[list[Piece]]:
    """Tasks of about `task_bytes` each: small files together, large ones in parts where they can be."""
    tasks: list[list[Piece]] = []
    current: list[Piece] = []
    filled = 0
    for number, file in enumerate(files):
        for start, end, size in _parts(file, task_bytes):
            if current and filled + size > task_bytes:
                tasks.append(current)
                current, filled = [], 0
            current.append((number, start, end))
            filled += size
    return [*tasks, current] if current else tasks


def _parts(file: SourceFile, task_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes) of a file's parts."""
    if file.kind == "parquet":
        yield from _row_groups(file, task_bytes)
    elif file.divisible and file.size > task_bytes:
        for start in range(0, file.size, task_bytes):
            end = min(start + task_bytes, file.size)
            yield start, end, end - start
    else:
        yield 0, file.size, file.size


def _row_groups(file: SourceFile, task_bytes: int) -> Iterator[tuple[int, int, int]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]
    first, filled = 0, 0
    for group, size in enumerate(sizes):
        if group > first and filled + size > task_bytes:
            yield first, group, filled
            first, filled = group, 0
        filled += size
    if sizes:
        yield first, len(sizes), filled
