"""Data sets of the Hugging Face hub (or a local mirror), fetched once into JSON lines that are read like any file."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from inheritune.config import SourceConfig
from inheritune.corpus.files import SourceFile
from inheritune.corpus.reading import place_of, scan
from inheritune.corpus.sources import resolve, split_hub
from inheritune.errors import Failed, InherituneError, Refused


def fetch(source: SourceConfig, target: Path, *, skip_bad: bool) -> tuple[SourceFile, int]:
    """Write a hub data set's text to `target`, whole or not at all, and say how many bad records were left out.

    A data set named alone is streamed by `datasets`. Files named within it are downloaded into the hub's cache and read
    as strictly as local ones: a data set with a loading script can be had in no other way (datasets 4 and later).

    Raises:
        Refused: it cannot be loaded, has no such files or field, or a record holds no text (unless `skip_bad`).
        Failed: it cannot be written.
    """
    counts = target.with_suffix(".bad")
    files = split_hub(source.path)[1]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            bad = _write(_named(source, skip_bad) if files else _streamed(source, skip_bad), temporary)
        except InherituneError:
            raise
        except Exception as error:  # `datasets` raises whatever its builders, file systems and the network raise
            first = (str(error).strip().splitlines() or [""])[0]
            what = "name and network" if files else "name, subset, split, network"
            raise Refused(f"{source.path}: cannot be loaded ({type(error).__name__}: {first}); check {what}") from error
        counts.write_text(str(bad))
        os.replace(temporary, target)
    name = source.path if files else f"{source.path}/{source.split}"
    return SourceFile(str(target), name, "jsonl", "", target.stat().st_size), int(counts.read_text())


def _write(texts: Iterator[str | None], target: Path) -> int:
    """Write texts as JSON lines; the number of bad records, which come as None.

    Raises:
        Failed: they cannot be written; what reading them raises comes as it is.
    """
    bad = 0
    file = target.open("w", encoding="utf-8")
    try:
        for text in texts:
            if text is None:
                bad += 1
            else:
                _put(file, json.dumps({"text": text}, ensure_ascii=False) + "\n")
        _put(file, "", whole=True)
    finally:
        with contextlib.suppress(OSError):  # of a full disk, which closing meets once more
            file.close()
    return bad


def _put(file: TextIO, line: str, *, whole: bool = False) -> None:
    """Write a line, with `whole` all that is left of it in memory.

    Raises:
        Failed: the disk is full, say: no fault of where the line comes from.
    """
    try:
        file.write(line)
        if whole:
            file.flush()
    except OSError as error:
        what = f"{file.name}: {error.strerror or error}"
        raise Failed(f"{what}; mend it, then start again to go on") from error


def _named(source: SourceConfig, skip_bad: bool) -> Iterator[str | None]:
    """The texts of the files that are named within a data set, in the order of their paths."""
    directory, files = split_hub(source.path)
    if not os.path.isdir(directory):
        from huggingface_hub import snapshot_download

        # to fnmatch, which chooses what is downloaded, `**/` is at least one folder; to glob it may be none
        patterns = [files, files.replace("**/", "")]
        directory = snapshot_download(directory, repo_type="dataset", allow_patterns=patterns)
    if not glob.glob(files, root_dir=directory, recursive=True):
        raise Refused(f"{source.path}: the data set has no such files")
    pattern = os.path.join(glob.escape(directory), files)
    for file in resolve(dataclasses.replace(source, path=pattern)):
        for record in scan(file, 0, file.size):
            if record.text is None and not skip_bad:
                raise Refused(f"{place_of(file, record)}: {record.problem}; set data.on_bad_line to skip it")
            yield record.text


def _streamed(source: SourceConfig, skip_bad: bool) -> Iterator[str | None]:
    """The texts of a whole data set as `datasets` gives its rows."""
    for row, record in enumerate(_load(source)):
        if source.text_field not in record:
            raise Refused(
                f"{source.path}: no field {source.text_field!r}; set text_field to one of {', '.join(record)}"
            )
        text = record[source.text_field]
        if isinstance(text, str) and _encodable(text):
            yield text
        elif skip_bad:
            yield None
        else:
            raise Refused(
                f"{source.path}: row {row}: field {source.text_field!r} is not text; set data.on_bad_line to skip"
            )


def _load(source: SourceConfig) -> Any:
    import datasets

    # Streaming reads what is asked for alone, and leaves no second copy in the user's cache.
    return datasets.load_dataset(split_hub(source.path)[0], source.subset, split=source.split, streaming=True)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
