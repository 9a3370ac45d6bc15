"""Data sets of the Hugging Face hub (or a local mirror), fetched once into JSON lines that are read like any file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from inheritune.config import SourceConfig
from inheritune.corpus.files import SourceFile
from inheritune.corpus.sources import HUB
from inheritune.errors import InherituneError, Refused


def fetch(source: SourceConfig, target: Path, *, skip_bad: bool) -> tuple[SourceFile, int]:
    """Stream a hub data set's text to `target`, whole or not at all, and say how many bad records were left out.

    Raises:
        Refused: it cannot be loaded, has no such field, or a record holds no text (unless `skip_bad`).
    """
    counts = target.with_suffix(".bad")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            bad = _write(source, temporary, skip_bad)
        except InherituneError:
            raise
        except Exception as error:  # `datasets` raises whatever its builders, file systems and the network raise
            first = (str(error).strip().splitlines() or [""])[0]
            raise Refused(
                f"{source.path}: cannot be loaded ({type(error).__name__}: {first}); check name, subset, split, network"
            ) from error
        counts.write_text(str(bad))
        os.replace(temporary, target)
    name = f"{source.path}/{source.split}"
    return SourceFile(str(target), name, "jsonl", "", target.stat().st_size), int(counts.read_text())


def _write(source: SourceConfig, target: Path, skip_bad: bool) -> int:
    bad = 0
    with target.open("w", encoding="utf-8") as file:
        for row, record in enumerate(_load(source)):
            text = record.get(source.text_field)
            if isinstance(text, str) and _encodable(text):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            elif skip_bad and source.text_field in record:
                bad += 1
            elif source.text_field not in record:
                raise Refused(
                    f"{source.path}: no field {source.text_field!r}; set text_field to one of {', '.join(record)}"
                )
            else:
                raise Refused(
                    f"{source.path}: row {row}: field {source.text_field!r} is not text; set data.on_bad_line to skip"
                )
    return bad


def _load(source: SourceConfig) -> Any:
    import datasets

    # Streaming reads what is asked for alone, and leaves no second copy in the user's cache.
    return datasets.load_dataset(source.path[len(HUB) :], source.subset, split=source.split, streaming=True)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
