"""A run's reference, found again from its records: the revision and the weights that the run began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inheritune import reference as references
from inheritune.errors import Failed, Refused
from inheritune.reference import Reference
from inheritune.reference.finding import PACKAGED
from inheritune.run_directory import read_json


def recorded_reference(
    run: Path,
    *,
    reference: str | None,
    revision: str | None,
    trust_remote_code: bool,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
) -> Reference | None:
    """The model that a run inherits from, without its weights loaded; None where it has none, or none yet.

    The record goes before the recipe: a branch on the hub moves, the commit that was recorded does not. A relative path
    is looked for in the working directory, then in the run's: the run may have been started from elsewhere.

    Args:
        run: its directory.
        reference: the recipe's; None where the run trained its own, or has none.
        revision: the recipe's.
        trust_remote_code: the recipe's.
        reference_file: the recipe's.
        reference_dtype: the recipe's.

    Raises:
        Refused: it is not there any more, or its weights are others.
    """
    record = _record(run / "reference.json")
    source, own = record.get("source", reference), run / "reference" / "model"
    file = record.get("reference_file") if record else reference_file  # of a directory's file the source has the path
    gguf = record.get("gguf")
    dtype = gguf.get("dtype") if isinstance(gguf, dict) else None if record else reference_dtype
    if reference is None and own.is_dir():  # the record has the path by which the run was called then
        source, revision = str(own), None
    elif isinstance(record.get("source"), str):
        revision = record.get("revision")
    if source is None:
        return None
    if record and revision is None:
        source = _placed(run, str(source))
    found = references.find(str(source), revision, trust_remote_code, file, dtype)
    if record.get("fingerprint", found.fingerprint) != found.fingerprint:
        raise Refused(f"{found.source}: its weights changed since {run} began")
    return found


def _record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except Failed as error:
        raise Refused(str(error)) from error
    return record if isinstance(record, dict) else {}


def _placed(run: Path, source: str) -> str:
    """A source without a revision, a directory, a file or what this package brings, as a path from here.

    Raises:
        Refused: it is not there. The hub is not asked: what it has by that name now would be another model.
    """
    if source.startswith(PACKAGED) or Path(source).expanduser().exists():
        return source
    if not (run / source).exists():
        raise Refused(f"{source}: no such directory, from here or from {run}")
    return str(run / source)
