"""What a run came to: its result computed from its records, the report, and what is shown at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inheritune.console import Console
from inheritune.errors import Failed
from inheritune.growth import Growth, layers_in_words
from inheritune.ledger import TOTAL, entries, total
from inheritune.pipeline.shared import Run
from inheritune.report import render_table, render_table4, usage, write_card, write_report
from inheritune.report.records import read_record
from inheritune.result import OwnTraining, assemble, plain_verdict, stage_of
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared

Record = dict[str, Any]


def finish(run: Run, prepared: Prepared, growth: Growth | None) -> Record:
    """Compute `result.json` from the records, write it and the report, show the table.

    Args:
        run: the run.
        prepared: the data.
        growth: what the rounds came to, where the target grew.

    Raises:
        Failed: the ledger lacks a training that the losses show.
    """
    directory, recipe = run.directory, run.recipe
    own = _own_training(run, prepared) if run.reference is not None else None
    trained = ["target", *(["other-data"] if recipe.compare is not None else []), *(arm.name for arm in run.controls)]
    names = ("reference", *(["cut"] if run.has_cut else []), *trained)
    losses = {name: read_json(directory / "losses" / f"{name.replace(':', '-')}.json") for name in names}
    ledger = entries(directory)
    for name in trained:
        if losses[name] is not None and stage_of(name, growth) not in ledger:
            what = f"{directory / 'ledger.json'}: has no entry of the {name}'s training"
            raise Failed(f"{what}; restore the file, or run the recipe into another --out")
    folders = {"target": directory} | {
        name: directory / "controls" / name.replace(":", "-") for name in trained if name != "target"
    }
    result = assemble(
        recipe.name,
        losses={name: record for name, record in losses.items() if record is not None},
        ledger=ledger,
        metrics={name: read_jsonl(folder / "metrics.jsonl") for name, folder in folders.items()},
        own_training=own,
        main_set=prepared.main_set,
        init=run.target.init,
        growth=growth,
    )
    result["sets"] = {
        name: {key: entry[key] for key in ("documents", "tokens", "bytes")}
        for name, entry in prepared.manifest["sets"].items()
    }
    result["model"] = "model"
    write_json(directory / "result.json", result)
    complete(directory)
    return show(directory, result, run.console)


def complete(directory: Path) -> None:
    """What is made of a finished run's records; twice gives the same as once, so a kill between costs nothing."""
    _note_total(directory)
    write_card(directory)


def _note_total(directory: Path) -> None:
    """Put the ledger's sums into it."""
    ledger = entries(directory)
    if ledger:
        write_json(directory / "ledger.json", ledger | {TOTAL: total(directory)})


def trained(run: Run, growth: Growth | None) -> Record:
    """What a run up to the target's training came to: its state; of a growth, how it ended is shown."""
    record = run.state("trained")
    if growth is None or growth.best is None:
        _note_total(run.directory)
        return record
    record |= {"matched": growth.matched is not None, "layers": growth.best["layers"], "model": "model"}
    write_json(run.directory / "result.json", record)
    _note_total(run.directory)
    write_report(run.directory)
    run.console.table(render_table4(run.directory, width=run.console.width))
    best = growth.best
    found = f"matched by {layers_in_words(best['layers'])}" if growth.matched else "not matched"
    if growth.matched and run.reference is not None and best["layers"] == run.reference.layers:
        found += " (all that it has, so nothing was cut)"
    run.console.line(f"The reference is {found}: {plain_verdict(best)}.\nModel:  {run.directory / 'model'}")
    return record


def _own_training(run: Run, prepared: Prepared) -> OwnTraining:
    """What is known of the reference's own training: its tokens, and its validation curve where it ships one."""
    reference = run.reference
    assert reference is not None
    if run.recipe.reference is None:  # trained by this run
        entry = entries(run.directory).get("train reference", {})
        metrics = read_jsonl(run.directory / "reference" / "metrics.jsonl")
        name = f"{run.recipe.name}'s reference"
        return OwnTraining(name=name, tokens=entry.get("tokens"), metrics=metrics, same_documents=True)
    folder = Path(reference.path)
    record = read_json(folder / "inheritune.json") or {}
    held_out = [file["sha256"] for file in prepared.manifest["sets"][prepared.main_set]["files"]]
    return OwnTraining(
        name=reference.source,
        tokens=reference.tokens_trained,
        metrics=read_jsonl(folder / "training.jsonl"),
        same_documents=record.get("held_out_sha256") == held_out,
    )


def show(directory: Path, result: Record, console: Console) -> Record:
    """The report, the table, the verdict, and how to use the model."""
    page = write_report(directory)
    console.table(render_table(result, entries(directory)))
    if "growth" in result:
        console.table(render_table4(directory, width=console.width))
    model = directory / "model"
    console.line(f"\n{result['verdict']}")
    for difference in result.get("differences", {}).values():
        console.line(difference["text"])
    if result.get("tokens_to_match"):
        console.line(result["tokens_to_match"]["text"])
    console.line(f"\nReport: {page}\nModel:  {model}\n")
    for line in usage(str(model), read_record(directory, "recipe.yaml", str, {}) or ""):
        console.line(f"  {line}")
    return result
