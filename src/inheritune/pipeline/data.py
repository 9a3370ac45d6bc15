"""The data of a run: its tokenizer, and its text as token shards, prepared or found as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

from inheritune import corpus, reference as references, scratch
from inheritune.config import Recipe
from inheritune.errors import Failed, Refused
from inheritune.pipeline import checks
from inheritune.pipeline.shared import Run
from inheritune.run_directory import read_object, write_json
from inheritune.tokens import Prepared, open_prepared

_TOKENIZER_BYTES = 40_000_000
"""Text that a tokenizer is trained on at most: more changes a few thousand entries little, and takes minutes."""


def tokenizer(run: Run) -> str:
    """Where the tokenizer is: the reference's own, or the one of an architecture, trained if it names none."""
    architecture = run.recipe.architecture
    if architecture is None:
        assert run.reference is not None
        return str(run.reference.path)
    if architecture.tokenizer is not None:
        return architecture.tokenizer
    out = run.directory / "tokenizer"
    if not out.exists():
        run.console.stage(f"Training a tokenizer of {architecture.vocabulary:,} entries")
        temporary = run.directory / ".tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with run.timed("tokenizer"):
            texts = corpus.iterate_training_texts(
                checks.resolved_data(run.recipe.data, run.reference), max_bytes=_TOKENIZER_BYTES
            )
            scratch.train_tokenizer(texts, architecture.vocabulary, temporary, run.recipe.data.sequence_length)
            temporary.rename(out)
    return str(out)


def prepare(run: Run) -> Prepared:
    """The run's token shards, prepared if they are not there yet, and checked.

    Raises:
        Refused: they do not fit the reference or the recipe.
        Failed: they are damaged.
    """
    if run.recipe.data.prepared is not None:
        prepared = open_prepared(Path(run.recipe.data.prepared))
    else:
        prepared = _prepared(run, run.recipe, run.directory / "data")
    checks.check_prepared(prepared, run.reference, run.directory)
    prepared.verify()
    record = read_object(run.directory / "data.json") or {}
    write_json(run.directory / "data.json", record | {"fingerprint": prepared.manifest["fingerprint"]})
    _apart(run, "own", prepared, prepared)
    for name, entry in prepared.manifest["sets"].items():
        run.console.line(f"  {name}: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
    for name, removed in prepared.manifest.get("seen_removed", {}).items():
        if removed:
            run.console.line(f"  {name}: {removed:,} documents taken out, which the reference was trained on")
    if run.reference is not None:
        references.check_vocabulary(run.reference, prepared.manifest["tokenizer"]["vocabulary"])
    checks.check_blocks(run.recipe, prepared)
    return prepared


def prepare_other(run: Run, prepared: Prepared) -> Prepared:
    """The other data of `compare`, which must not hold what the target is judged by.

    Raises:
        Refused: it does not fit the reference, overlaps, or does not last for the target's steps.
        Failed: it is damaged.
    """
    other = run.recipe.compare
    assert other is not None
    if other.prepared is not None:
        found = open_prepared(Path(other.prepared))
    else:
        data = dataclasses.replace(run.recipe.data, tokens=other.tokens, passes=other.passes)
        out = run.directory / "other-data" / "data"
        found = _prepared(run, dataclasses.replace(run.recipe, data=data), out)
    checks.check_other(prepared, found)
    if run.reference is not None:
        checks.check_tokenizer(found, run.reference)
    found.verify()
    _begun_with(run, "other", found)
    _apart(run, "other", found, prepared)
    checks.shared_steps(run.recipe, prepared, found)
    entry = found.manifest["sets"]["train"]
    run.console.line(f"  other data: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
    return found


def _begun_with(run: Run, name: str, prepared: Prepared) -> None:
    """Refuse shards that are not those that this run began with; `data.json` keeps their fingerprint."""
    record = read_object(run.directory / "data.json") or {}
    made = prepared.manifest["fingerprint"]
    if record.get(name, made) != made:
        raise Refused(f"{prepared.directory}: the shards changed since this run began; choose another --out")
    write_json(run.directory / "data.json", record | {name: made})


def _apart(run: Run, name: str, trained: Prepared, judged: Prepared) -> None:
    """Check once that what models are trained on is not what they are judged by; `data.json` keeps what was found."""
    record = read_object(run.directory / "data.json") or {}
    if name in record.get("shared", {}):
        return
    found = checks.check_apart(trained, judged)
    for set_name, (shared, documents) in found.items():
        if shared:
            run.console.line(f"  {set_name}: {shared} of {documents} documents begin as training documents do")
    write_json(run.directory / "data.json", record | {"shared": {**record.get("shared", {}), name: found}})


def _prepared(run: Run, recipe: Recipe, out: Path) -> Prepared:
    words = tokenizer(run)
    run.console.stage("Preparing the data")
    stage = "prepare" if out == run.directory / "data" else "prepare other data"
    # what was prepared before costs nothing now, and its entry in the ledger stays
    with contextlib.nullcontext() if (out / "manifest.json").exists() else run.timed(stage):
        try:
            corpus.prepare(checks.resolved_data(recipe.data, run.reference), words, out, report=run.console.line)
        except Refused as error:
            if stage == "prepare":
                raise
            kept = "the data prepared first is kept, name it as data.prepared"  # a refusal would take it away
            raise Failed(f"compare: {error}; {kept}") from error
    return open_prepared(out)
