"""The finished sets on disk, in datatrove's shard format: NAME.ds (tokens) and NAME.ds.index (where documents end).

Beside them stands NAME.ds.bytes, the bytes of text that each document's tokens cover, for bits per byte.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.corpus.selection import Chosen, TokenisedDocuments
from inheritune.run_directory import write_atomic

FILE_TOKENS = 100_000_000

_WRITE_BYTES = 4 << 20
_LISTED = 1 << 14
"""Documents whose numbers are Python's at a time: as such they take five times the memory."""


class TaskTokens:
    """The tokens that tasks wrote, by task; files are mapped, not read."""

    def __init__(self, files: list[Path], token_bytes: int) -> None:
        self._files = files
        self.token_bytes = token_bytes
        self._open = functools.lru_cache(maxsize=256)(self._map)

    def _map(self, task: int) -> npt.NDArray[Any]:
        # as a plain array: a slice of a memmap costs ten times as much as one of an array
        return np.asarray(np.memmap(self._files[task], f"<u{self.token_bytes}", mode="r"))

    def read(self, task: int, offset: int, tokens: int) -> bytes:
        """Some tokens of a task's file, as their bytes."""
        return self._open(task)[offset : offset + tokens].tobytes()


def write_set(
    directory: Path, chosen: Chosen, tokenised: TokenisedDocuments, source: TaskTokens, file_tokens: int = FILE_TOKENS
) -> dict[str, Any]:
    """Write a set's shards, each atomically, and return its entry in the manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (first, last) in enumerate(_file_borders(chosen.tokens, file_tokens)):
        part = chosen.sorted_by(np.arange(first, last))
        files.append(_write_file(directory / f"{number:05d}.ds", part, tokenised, source))
    for path in directory.iterdir():
        # Of an attempt with other settings that was killed while it wrote.
        if path.name.removesuffix(".index").removesuffix(".bytes") not in {file["name"] for file in files}:
            path.unlink()
    unique = chosen.unique_tokens
    return {
        "documents": len(chosen.documents),
        "tokens": chosen.total,
        **({"unique_tokens": unique} if unique < chosen.total else {}),
        "bytes": int(chosen.bytes.sum()),
        "cut_documents": int(chosen.cut.sum()),
        "files": files,
    }


def _file_borders(tokens: npt.NDArray[np.int64], file_tokens: int) -> Iterator[tuple[int, int]]:
    """Runs of whole documents of at most `file_tokens` tokens (or one longer document)."""
    ends = np.cumsum(tokens)
    first, start = 0, 0
    while first < len(tokens):
        last = max(first + 1, int(np.searchsorted(ends, start + file_tokens, side="right")))
        yield first, last
        first, start = last, int(ends[last - 1])


def _write_file(path: Path, part: Chosen, tokenised: TokenisedDocuments, source: TaskTokens) -> dict[str, Any]:
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for block in _blocks(part, tokenised, source):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    index, sizes = np.cumsum(part.tokens).astype("<u8").tobytes(), part.bytes.astype("<u8").tobytes()
    write_atomic(path.with_name(f"{path.name}.index"), index)
    write_atomic(path.with_name(f"{path.name}.bytes"), sizes)
    return {
        "name": path.name,
        "documents": len(part.documents),
        "tokens": part.total,
        "bytes": int(part.bytes.sum()),
        "cut_documents": int(part.cut.sum()),
        "sha256": digest.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "bytes_sha256": hashlib.sha256(sizes).hexdigest(),
    }


def _blocks(part: Chosen, tokenised: TokenisedDocuments, source: TaskTokens) -> Iterator[bytes]:
    pieces: list[bytes] = []
    size = 0
    for first in range(0, len(part.documents), _LISTED):
        some = part.documents[first : first + _LISTED]
        places = (tokenised.task[some], tokenised.offset[some], part.tokens[first : first + _LISTED])
        for task, offset, tokens in zip(*(column.tolist() for column in places), strict=True):
            pieces.append(source.read(task, offset, tokens))
            size += len(pieces[-1])
            if size >= _WRITE_BYTES:
                yield b"".join(pieces)
                pieces, size = [], 0
    yield b"".join(pieces)
