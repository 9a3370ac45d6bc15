"""The training documents' text as it is, for training a tokenizer."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from inheritune.config import DataConfig, SourceConfig
from inheritune.corpus.files import SourceFile
from inheritune.corpus.hub import fetch
from inheritune.corpus.placement import place_document, thresholds
from inheritune.corpus.plan import divide
from inheritune.corpus.reading import place_of, scan
from inheritune.corpus.selection import split_budget
from inheritune.corpus.settings import check_settings
from inheritune.corpus.sources import HUB, resolve
from inheritune.errors import Refused

_PART_BYTES = 1 << 20


def iterate_training_texts(data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Texts of training documents, about `max_bytes` of UTF-8 in all, each source by its weight.

    Parts of the sources are read in a seeded order, each from its start, so nothing needs to be indexed first.

    Raises:
        Refused: bad input, as `prepare` would find it.
    """
    check_settings(data)
    budgets = split_budget(max_bytes, [source.weight for source in data.sources])
    with tempfile.TemporaryDirectory() as directory:
        spool = Path(directory)
        held_apart = {
            place_document(text.encode("utf-8"), 0)[:2]
            for number, source in enumerate(data.validation_sets.values())
            for text in _texts(data, _files(data, source, spool / f"validation-{number}.jsonl"))
        }
        first_train = thresholds(data.validation_share, data.development_share)[1]
        for number, (source, budget) in enumerate(zip(data.sources, budgets, strict=True)):
            taken = 0
            for text in _texts(data, _files(data, source, spool / f"{number}.jsonl")):
                if taken >= budget:
                    break
                content = text.encode("utf-8")
                placement = place_document(content, 0)
                if placement.place >= first_train and placement[:2] not in held_apart:
                    taken += len(content)
                    yield text


def _files(data: DataConfig, source: SourceConfig, spool: Path) -> list[SourceFile]:
    if source.path.startswith(HUB):
        return [fetch(source, spool, skip_bad=data.on_bad_line == "skip")[0]]
    return resolve(source)


def _texts(data: DataConfig, files: list[SourceFile]) -> Iterator[str]:
    pieces = [piece for task in divide(files, _PART_BYTES) for piece in task]

    def order(piece: tuple[int, int, int]) -> bytes:
        number, start, _ = piece
        return hashlib.blake2b(f"{data.seed} {files[number].name} {start}".encode()).digest()

    for number, start, end in sorted(pieces, key=order):
        file = files[number]
        for record in scan(file, start, end):
            if record.text is not None and record.text and not record.text.isspace():
                yield record.text
            elif record.text is None and file.kind != "python" and data.on_bad_line == "error":
                raise Refused(f"{place_of(file, record)}: {record.problem}; mend it, or set data.on_bad_line to skip")
