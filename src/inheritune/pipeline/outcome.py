"""What a run came to: its result computed from its records, the report, and what is shown at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.errors import Failed
from inheritune.reference import Reference
from inheritune.report import render_table, usage, write_report
from inheritune.result import OwnTraining, assemble
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared

Record = dict[str, Any]


def finish(
    directory: Path, recipe: Recipe, inits: list[str], reference: Reference | None, prepared: Prepared, console: Console
) -> Record:
    """Compute `result.json` from the records, write it and the report, show the table.

    Args:
        directory: the run directory.
        recipe: the run's.
        inits: what the target and the trained controls start from, the target first.
        reference: the reference, if there is one.
        prepared: the data.
        console: where the outcome is shown.

    Raises:
        Failed: the ledger lacks a training that the losses show.
    """
    own = _own_training(reference, prepared) if reference is not None else None
    trained = ["target", *inits[1:]]
    names = ("reference", *(["cut"] if "cut" in recipe.controls else []), *trained)
    losses = {name: read_json(directory / "losses" / f"{name}.json") for name in names}
    ledger = read_json(directory / "ledger.json")
    for name in trained:
        if losses[name] is not None and (not isinstance(ledger, dict) or f"train {name}" not in ledger):
            what = f"{directory / 'ledger.json'}: has no entry of the {name}'s training"
            raise Failed(f"{what}; restore the file, or run the recipe into another --out")
    result = assemble(
        recipe.name,
        losses={name: record for name, record in losses.items() if record is not None},
        ledger=ledger,
        metrics={name: read_jsonl(directory_of(directory, name) / "metrics.jsonl") for name in trained},
        own_training=own,
        main_set=prepared.main_set,
        init=inits[0],
    )
    result["sets"] = {
        name: {key: entry[key] for key in ("documents", "tokens", "bytes")}
        for name, entry in prepared.manifest["sets"].items()
    }
    result["model"] = "model"
    write_json(directory / "result.json", result)
    return show(directory, result, console)


def _own_training(reference: Reference, prepared: Prepared) -> OwnTraining:
    """What is known of the reference's own training: its tokens, and its validation curve where it ships one."""
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
    console.table(render_table(result, read_json(directory / "ledger.json")))
    model = directory / "model"
    console.line(f"\n{result['verdict']}")
    for difference in result.get("differences", {}).values():
        console.line(difference["text"])
    if result.get("tokens_to_match"):
        console.line(result["tokens_to_match"]["text"])
    console.line(f"\nReport: {page}\nModel:  {model}\n")
    for line in usage(str(model)):
        console.line(f"  {line}")
    return result


def directory_of(directory: Path, name: str) -> Path:
    """Where a trained model's records, checkpoints and export are in a run directory."""
    return directory if name == "target" else directory / "controls" / name


def called(name: str) -> str:
    """A model's name in a sentence."""
    plain = {"reference": "reference", "target": "target", "cut": "untrained cut"}
    return plain.get(name, f"{name} control")
