"""What a run goes on with: its own records, whose shape is checked when they are read, before anything is trained.

A kill leaves a record whole or not at all; what is found otherwise was damaged or edited. It is named with what to do
about it, since a run makes each of these records again.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from inheritune.decision import Verdict
from inheritune.errors import Failed
from inheritune.pipeline.shared import Record
from inheritune.run_directory import read_json, read_jsonl
from inheritune.tokens import Prepared

_BY_DOCUMENT = ("nats", "correct", "tokens", "bytes")
_NUMBERS = ("steps", "planned_steps", "tokens", "flops", "learning_rate")
_VERDICT = tuple(field.name for field in dataclasses.fields(Verdict))


def is_whole(result: Any) -> bool:
    """Whether a `result.json` is that of a finished run; one that is not is computed again from the other records."""
    if not isinstance(result, dict) or result.get("state") != "done" or not isinstance(result.get("target"), dict):
        return False
    differences = result.get("differences", {})
    if not isinstance(differences, dict) or not isinstance(result.get("verdict"), str):
        return False
    shown = [*differences.values(), *([result["tokens_to_match"]] if result.get("tokens_to_match") else [])]
    return all(isinstance(entry, dict) and isinstance(entry.get("text"), str) for entry in shown)


def losses(path: Path, prepared: Prepared) -> Record | None:
    """A model's losses by document, `losses/NAME.json`; None where it was not measured yet.

    Raises:
        Failed: it is no such record of these sets.
    """
    record = read_json(path)
    wrong = None if record is None else _wrong_losses(record, prepared)
    if wrong is not None:
        raise Failed(f"{path}: damaged, {wrong}; delete it and give the same command again")
    assert record is None or isinstance(record, dict)
    return record


def _wrong_losses(record: Any, prepared: Prepared) -> str | None:
    """What is wrong with a record of losses, in words."""
    if not isinstance(record, dict) or not isinstance(record.get("sets"), dict):
        return "it holds no losses by set"
    if not (_is_count(record.get("layers")) and _is_count(record.get("parameters"))):
        return "it lacks the model's layers or parameters"
    for name in prepared.measured_names:
        values, documents = record["sets"].get(name), len(prepared.set(name).document_ends)
        if not isinstance(values, dict):
            return f"it lacks {name}"
        for key in _BY_DOCUMENT:
            column = values.get(key)
            if not isinstance(column, list) or len(column) != documents:
                return f"{key} of {name} is no list of {documents} values, one a document"
            if not all(map(_is_number, column)):
                return f"{key} of {name} holds what is no number"
    return None


def rounds(path: Path) -> list[Record]:
    """The rounds that are over, a line each of `growth.jsonl`; none where it is absent.

    Raises:
        Failed: a line is no round's record.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        wrong = _wrong_round(record)
        if wrong is not None:
            what = f"{path}:{number}: no record of a round, {wrong}"
            raise Failed(f"{what}; remove the line and give the same command again")
    return records


def _wrong_round(record: Record) -> str | None:
    """What is wrong with a round's record, in words."""
    whole, verdict = record.get("state") == "finished", record.get("verdict")
    expected = {
        "state": record.get("state") in ("finished", "abandoned"),
        "growth": record.get("growth") in ("cold", "warm"),
        "round": _is_count(record.get("round")),
        "layers": _is_count(record.get("layers")),
        "seed": record.get("seed") == 0 or _is_count(record.get("seed")),
        # not its type alone: checkpoints are deleted in the directory that it names
        "directory": record.get("directory") == f"rounds/{folder_of(record.get('layers'), record.get('seed'))}",
        "verdict": _is_verdict(verdict) if whole else verdict is None,
        "validation_loss": not whole or _is_number(record.get("validation_loss")),
        "forecast": whole or isinstance(record.get("forecast"), dict | None),
        "curve": isinstance(record.get("curve"), list) and all(map(_is_pair, record["curve"])),
        **{name: _is_number(record.get(name)) for name in _NUMBERS},
    }
    wrong = next((name for name, right in expected.items() if not right), None)
    if wrong is None:
        return None
    return f"{wrong} is damaged" if wrong in record else f"{wrong} is missing"


def folder_of(layers: Any, seed: Any) -> str:
    """A round's directory in `rounds/`."""
    return f"{layers}-seed-{seed}" if seed else f"{layers}"


def _is_verdict(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != set(_VERDICT):
        return False
    return type(value["matched"]) is bool and _is_number(value["difference"]) and isinstance(value["text"], str)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
