"""A run's directory: its records, written whole or not at all, and the lock that gives it to one process.

Everything that a run writes goes through here, so that a reader (or the same run, started again after it was killed)
never sees half a file: a record is written under a temporary name in the same directory, flushed to the disk, then
renamed. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inheritune.errors import Failed, Refused

_AGAIN = "delete it and give the same command again"
"""What to do about a damaged record that a run makes again."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that `path` holds either what it held before or all of `content`.

    Raises:
        OSError: as the file system says (disk full, no permission); the old file is then untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write a record as indented JSON, atomically. NaN and infinities are an error: JSON has none."""
    write_atomic(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, mend: str = _AGAIN) -> Any:
    """Read a JSON record; None where the file is absent.

    Args:
        path: of the file.
        mend: what to do about a damaged one.

    Raises:
        Failed: it holds no JSON, which no kill leaves behind: it was damaged or edited.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Failed(f"{path}: damaged, not JSON ({error}); {mend}") from None


def read_object(path: Path, *keys: str, mend: str = _AGAIN) -> dict[str, Any] | None:
    """Read a JSON object that has text under some keys; None where the file is absent.

    Args:
        path: of the file.
        keys: those that what follows cannot do without.
        mend: what to do about a damaged one.

    Raises:
        Failed: it is no such object: it was damaged or edited.
    """
    record = read_json(path, mend=mend)
    if record is None:
        return None
    if not isinstance(record, dict):
        raise Failed(f"{path}: damaged, it is no record; {mend}")
    lacking = next((key for key in keys if not isinstance(record.get(key), str)), None)
    if lacking is not None:
        raise Failed(f"{path}: damaged, it has no {lacking}; {mend}")
    return record


class JsonlWriter:
    """Appends records to a JSONL file, a line each, flushed at every line so that a killed run loses none."""

    def __init__(self, path: Path) -> None:
        _drop_half_line(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record as one line.

        NaN and infinities become null, since JSON has neither; but within a value (losses by set) they stay, as
        Python's own reader takes them: a loss that is no number is not one that was not measured.
        """
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = json.dumps(finite, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_half_line(path: Path) -> None:
    """Cut a file off after its last whole line: what a kill left behind it would spoil the next record."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file's records; a last line that a kill cut short is dropped. Empty where the file is absent.

    Raises:
        Failed: a line before the last is no JSON, or no record.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # not of JSON, or of numbers and nesting beyond Python's limits
            if number == len(lines):
                break
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise Failed(f"{path}:{number}: not JSON ({why}); mend or remove the line") from None
        if not isinstance(record, dict):
            raise Failed(f"{path}:{number}: no record (name: value); mend or remove the line")
        records.append(record)
    return records


def keep_records(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the records of a training's JSONL file that are not wanted, if there are any; it is replaced at once.

    Raises:
        Failed: a line is no record of a step.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        if type(record.get("step")) is not int:
            raise Failed(f"{path}:{number}: a record without its step; mend or remove the line")
    kept = [record for record in records if wanted(record)]
    if len(kept) < len(records):
        write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; the lock goes with the process, however it ends.

    Raises:
        Refused: another process holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{directory}: cannot be made ({error.strerror}); choose another --out") from error
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise Refused(
                f"{directory}: in use by another run (process {holder}); wait for it to end, or choose another --out"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        for left in directory.glob(".*.tmp"):  # of a record that a kill cut short; directories are their makers' own
            if left.is_file():
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def clear(directory: Path, *, remove: bool) -> None:
    """Take away all that a refused run put into a directory that was new or empty, and the directory if it was new."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if remove:
        directory.rmdir()
