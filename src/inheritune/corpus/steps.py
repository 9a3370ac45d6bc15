"""What a worker does: scan a task's pieces into an index of documents, or tokenise a task's documents.

Each task writes its results atomically, under names that its number alone decides, so a killed task is done again.
A step is called as datatrove calls a pipeline step: (data, rank, world_size).
"""

from __future__ import annotations

import functools
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.corpus.files import SourceFile
from inheritune.corpus.placement import DOCUMENT, content_hash, place_document
from inheritune.corpus.plan import Plan, load_plan
from inheritune.corpus.reading import Malformed, Record, place_of, read_again, scan
from inheritune.corpus.tokenizing import Encoder
from inheritune.errors import Failed, Refused
from inheritune.run_directory import write_json

WANTED = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("file", "<u4"),
        ("position", "<u8"),
        ("length", "<u8"),
        ("bytes", "<u8"),
        ("limit", "<u8"),  # keep the first so many tokens; 0: all
    ]
)
_LOADING = threading.Lock()
"""numpy parses an array's header by `ast`, which in Python 3.11 now and then fails where two threads do it at once."""
TOKENISED = np.dtype([("tokens", "<u8"), ("bytes", "<u8"), ("cut", "?")])

_BATCH_BYTES = 256 << 10
"""Small, since what the tokenizer returns takes some thirty times as much memory, and slows it down."""
_BATCH_DOCUMENTS = 2048


@dataclass
class SourceCounts:
    """What a scan counted, by source."""

    bad: int = 0
    empty: int = 0
    first_bad: str = ""


@dataclass(frozen=True)
class Scan:
    """Reads every record of the plan's task `rank`."""

    work: str

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write scan/RANK.npy (documents) and scan/RANK.json (counts by source)."""
        work = Path(self.work)
        plan = load_plan(work)
        rows: list[tuple[int, ...]] = []
        counts: dict[int, SourceCounts] = {}
        for number, start, end in plan.tasks[rank]:
            file = plan.files[number]
            count = counts.setdefault(plan.source_of[number], SourceCounts())
            for record in scan(file, start, end):
                row = _row(plan, number, record, count)
                if row is not None:
                    rows.append(row)
        save_array(work / "scan" / f"{rank:05d}.npy", np.array(rows, DOCUMENT))
        write_json(work / "scan" / f"{rank:05d}.json", {str(source): vars(count) for source, count in counts.items()})


def _row(plan: Plan, number: int, record: Record, count: SourceCounts) -> tuple[int, ...] | None:
    file = plan.files[number]
    if record.text is None:
        # Of an installation's source files a few are undecodable by design (codec tests), and nobody can mend them.
        if not plan.skip_bad and file.kind != "python":
            raise Refused(f"{place_of(file, record)}: {record.problem}; mend it, or set data.on_bad_line to skip")
        count.bad += 1
        count.first_bad = count.first_bad or f"{place_of(file, record)}: {record.problem}"
        return None
    if not record.text or record.text.isspace():
        count.empty += 1
        return None
    content = record.text.encode("utf-8")
    return (*place_document(content, plan.seed), number, record.position, record.length, len(content))


@dataclass(frozen=True)
class Tokenise:
    """Tokenises the documents of task `rank` of one wave."""

    work: str
    wave: str

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write WAVE/RANK.ds (tokens, document after document) and WAVE/RANK.npy (their counts)."""
        work = Path(self.work)
        directory = work / self.wave
        plan = load_plan(work)
        with _LOADING:
            borders = np.load(directory / "borders.npy")
            wanted = np.load(directory / "wanted.npy", mmap_mode="r")[borders[rank] : borders[rank + 1]]
        results = np.zeros(len(wanted), TOKENISED)
        target = directory / f"{rank:05d}.ds"
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        writer = _Writer(plan, load_encoder(work / "tokenizer.json"), results)
        with temporary.open("wb") as output:
            for batch in _batches(_texts(plan, wanted)):
                output.write(writer.tokens(batch, wanted))
        os.replace(temporary, target)
        save_array(directory / f"{rank:05d}.npy", results)


@functools.lru_cache(maxsize=1)
def load_encoder(path: Path) -> Encoder:
    """The tokenizer; the last one is kept, since every task asks for it."""
    return Encoder(path)


@dataclass
class _Writer:
    plan: Plan
    encoder: Encoder
    results: npt.NDArray[Any]
    done: int = field(default=0)

    def tokens(self, texts: list[str], wanted: npt.NDArray[Any]) -> bytes:
        """A batch as token bytes: begin-of-sequence where wanted, text, end-of-text; or cut to the document's limit."""
        begin = [] if self.plan.begin_of_sequence is None else [self.plan.begin_of_sequence]
        pieces: list[list[int]] = []
        limits, sizes = (wanted[key][self.done : self.done + len(texts)].tolist() for key in ("limit", "bytes"))
        for text, ids, limit, size in zip(texts, self.encoder.encode(texts), limits, sizes, strict=True):
            count = len(ids)
            ids[:0] = begin
            ids.append(self.plan.end_of_text)
            cut = 0 < limit < len(ids)
            kept = size
            if cut:
                del ids[limit:]
                if limit - len(begin) < count:
                    kept = self.encoder.bytes_covered(text, limit - len(begin))
            self.results[self.done] = (len(ids), kept, cut)
            self.done += 1
            pieces.append(ids)
        return np.fromiter(chain.from_iterable(pieces), f"<u{self.plan.token_bytes}").tobytes()


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _texts(plan: Plan, wanted: npt.NDArray[Any]) -> Iterator[str]:
    """The documents' texts, read again and compared with what was scanned."""
    place = 0
    for number, group in groupby(wanted["file"].tolist()):
        count = len(list(group))
        rows = wanted[place : place + count]
        for row, text in zip_longest(rows, reread(plan.files[number], rows)):
            found = row is not None and text is not None and _same(row, text)
            yield text if found else _changed(plan.files[number])
        place += count


def reread(file: SourceFile, rows: npt.NDArray[Any]) -> Iterator[str]:
    """The texts of scanned documents of one file, in ascending position.

    Raises:
        Failed: the file is not what it was when it was scanned.
    """
    import zstandard

    try:
        yield from read_again(file, rows["position"].tolist(), rows["length"].tolist())
    except (Malformed, OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):  # pyarrow's are ValueErrors
        _changed(file)


def _same(row: Any, text: str) -> bool:
    high, low = content_hash(text.encode("utf-8"))
    return bool(row["high"] == high and row["low"] == low)


def _changed(file: SourceFile) -> str:
    raise Failed(f"{file.name}: changed while it was being prepared; let it rest and start again")


def save_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Save a NumPy array atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, values)
    os.replace(temporary, path)
