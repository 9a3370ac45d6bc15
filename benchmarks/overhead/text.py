"""Text to prepare: documents cut from the installation's own Python source, or from a directory of books."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from inheritune.config import SourceConfig
from inheritune.corpus.reading import scan
from inheritune.corpus.sources import resolve


def write(path: Path, megabytes: float, document_characters: int, books: Path | None) -> int:
    """Write documents as JSON lines, about so many megabytes; how many they are. No two are equal."""
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        for document in documents(document_characters, books):
            line = json.dumps({"text": document}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode("utf-8"))
            count += 1
            if written >= megabytes * 1e6:
                break
    return count


def documents(characters: int, books: Path | None) -> Iterator[str]:
    """Pieces of the texts without end; from the second time on each begins with its turn's number."""
    source = SourceConfig(path=str(books) if books else "python-source")
    for turn in itertools.count():
        for file in resolve(source):
            for record in scan(file, 0, file.size):
                text = record.text or ""
                for start in range(0, len(text), characters):
                    piece = text[start : start + characters]
                    if not piece.isspace():
                        yield f"{turn}: {piece}" if turn else piece
