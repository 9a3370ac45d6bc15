"""`prepare`: the phases in order, what makes a directory finished, and what is cleaned up when input is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inheritune.config import DataConfig
from inheritune.corpus.build import HASHES, MANIFEST, Build
from inheritune.corpus.files import SourceFile
from inheritune.corpus.plan import load_plan
from inheritune.corpus.settings import check_settings
from inheritune.corpus.sources import resolve
from inheritune.corpus.steps import load_encoder
from inheritune.corpus.tokenizing import TokenizerFacts, load_tokenizer
from inheritune.corpus.worker import check_executor
from inheritune.errors import Failed, Refused
from inheritune.run_directory import lock, read_json

FORMAT = 1
_TASKS = 2
"""Changes with how work is cut into tasks: marks of tasks that were cut otherwise say nothing."""
WORK = ".work"

_WITHOUT_EFFECT = ("workers", "executor", "slurm", "passes", "sequence_length", "document_mask", "relation", "prepared")
"""Settings that do not change what is written."""


def check_sources(data: DataConfig) -> None:
    """Refuse what can be refused before anything is written: settings, missing or empty sources, wrong kinds of file.

    Raises:
        Refused: the first thing that is wrong, in one line.
    """
    check_settings(data)
    check_executor(data)
    _resolve_all(data)
    read_seen(data.exclude_seen)


def prepare(
    data: DataConfig, tokenizer_directory: Path | str | Any, out: Path, *, report: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Turn the sources into token shards under `out` and return the manifest, which is written last.

    The tokenizer is a local directory, a hub id, or one already loaded. A finished preparation of the same settings is
    returned at once; one that was killed goes on. `report` takes lines about progress.

    Raises:
        Refused: bad input; what was written on the way is removed.
        Failed: a source changed meanwhile, a worker died; start again to go on.
    """
    check_settings(data)
    facts = load_tokenizer(tokenizer_directory)
    add_bos = facts.adds_bos(data.add_bos)
    settings = _settings(data)
    if (finished := _finished(out, settings, facts)) is not None:
        return finished
    check_executor(data)
    files = _resolve_all(data)
    seen = read_seen(data.exclude_seen)
    if out.exists() and not out.is_dir():
        raise Refused(f"{out}: is a file; choose another directory")
    unfinished = (out / WORK).exists()
    if out.exists() and not unfinished and any(entry.name != ".lock" for entry in out.iterdir()):
        mend = "choose another directory, or remove this one if a damaged run left it"
        raise Refused(f"{out}: not empty, and no preparation (it holds no {MANIFEST}); {mend}")
    remove_empty = unfinished or not out.exists()
    with lock(out):
        load_plan.cache_clear()  # the same directory may have held another plan
        load_encoder.cache_clear()
        try:
            work = _work_directory(out, _work_id(settings, facts, files))
            build = Build(data, files, facts, add_bos, seen, out, work, _workers(data), report or _silent)
            manifest = build.run(_header(tokenizer_directory, data, facts, add_bos))
        except Refused:
            _clean(out, remove_empty)
            raise
        except OSError as error:
            where = error.filename or out
            raise Failed(f"{where}: {error.strerror or error}; mend it, then start again to go on") from error
        shutil.rmtree(out / WORK)
    return manifest


def _header(tokenizer: Path | str | Any, data: DataConfig, facts: TokenizerFacts, add_bos: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "config": _recorded(data),
        "tokenizer": {
            "path": str(tokenizer if isinstance(tokenizer, (Path, str)) else getattr(tokenizer, "name_or_path", "")),
            "fingerprint": facts.fingerprint,
            "vocabulary": facts.vocabulary,
            "end_of_text": facts.end_of_text,
            "begin_of_sequence": facts.begin_of_sequence,
            "token_bytes": facts.token_bytes,
        },
        "add_bos": add_bos,
    }


def _recorded(data: DataConfig) -> dict[str, Any]:
    """The settings as the manifest keeps them: of the list of seen documents its content counts, not its path."""
    record = dataclasses.asdict(data)
    if data.exclude_seen is not None:
        content = Path(data.exclude_seen).expanduser().read_bytes()
        record["exclude_seen"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return record


def _settings(data: DataConfig) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(_recorded(data)))
    return {key: value for key, value in record.items() if key not in _WITHOUT_EFFECT}


def _finished(out: Path, settings: dict[str, Any], facts: TokenizerFacts) -> dict[str, Any] | None:
    """The manifest of a finished preparation of these settings; None where there is no finished one.

    Raises:
        Refused: it holds another one.
    """
    try:
        manifest: Any = read_json(out / MANIFEST)
    except Failed:
        manifest = {}
    if manifest is None:
        return None
    if not isinstance(manifest, dict) or not {"config", "tokenizer", "sets"} <= manifest.keys():
        raise Failed(f"{out / MANIFEST}: damaged, no manifest; delete {out} and give the same command again")
    there = manifest.get("config", {})
    for key, value in settings.items():
        if there.get(key) != value:
            differ = f"data.{key}: {there.get(key)} there, {value} here"
            raise Refused(f"{out}: holds a different preparation ({differ}); choose another directory")
    if manifest["tokenizer"]["fingerprint"] != facts.fingerprint:
        raise Refused(f"{out}: holds a different preparation (made with another tokenizer); choose another directory")
    shutil.rmtree(out / WORK, ignore_errors=True)
    assert isinstance(manifest, dict)
    return manifest


def _resolve_all(data: DataConfig) -> list[list[SourceFile]]:
    return [resolve(source) for source in [*data.sources, *data.validation_sets.values()]]


def read_seen(path: str | None) -> list[bytes]:
    """The hashes of a list of seen documents: of one length, from 8 to 16 bytes.

    Raises:
        Refused: no such file, or a line that is no such hash.
    """
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="ascii").split()
    except (OSError, ValueError, RuntimeError) as error:  # a path with a null byte, a home that there is not
        raise Refused(f"{path!r}: data.exclude_seen cannot be read ({error})") from error
    width = len(lines[0]) if lines else 16
    for number, line in enumerate(lines, 1):
        if len(line) != width or width % 2 or not 16 <= width <= 32 or not re.fullmatch(r"[0-9a-fA-F]+", line):
            raise Refused(
                f"{path}:{number}: no content hash of 16 to 32 hexadecimal digits like the first; write one a line"
            )
    return [bytes.fromhex(line) for line in lines]


def _work_id(settings: dict[str, Any], facts: TokenizerFacts, files: list[list[SourceFile]]) -> str:
    inputs = [[(file.name, file.size, Path(file.path).stat().st_mtime_ns) for file in source] for source in files]
    return hashlib.sha256(json.dumps([FORMAT, _TASKS, settings, facts.fingerprint, inputs]).encode()).hexdigest()[:16]


def _work_directory(out: Path, work_id: str) -> Path:
    """Where unfinished work of this id is kept; that of another is thrown away."""
    work = (out / WORK).resolve()
    if work.exists() and not (work / work_id).exists():
        _drop_unfinished(out)
    (work / work_id).mkdir(parents=True, exist_ok=True)
    return work / work_id


def _drop_unfinished(out: Path) -> None:
    """Remove what a preparation that never finished left: its work and the sets it had begun to write."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for directory in [path.parent for path in out.glob("*/*.ds")]:
        shutil.rmtree(directory, ignore_errors=True)
    (out / HASHES).unlink(missing_ok=True)


def _workers(data: DataConfig) -> int:
    """As many as asked for; by default one a core that this process may use, or, 0, of the cluster."""
    return data.workers if data.workers > 0 or data.executor != "local" else len(os.sched_getaffinity(0))


def _silent(line: str) -> None:
    pass


def _clean(out: Path, remove_empty: bool) -> None:
    _drop_unfinished(out)
    (out / ".lock").unlink(missing_ok=True)
    if remove_empty and not any(out.iterdir()):
        out.rmdir()
