"""Layers chosen by what a reference does with tokens: `influence:N` and `angular:N` become indices, and a record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune import layerwise, reference as references, surgery
from inheritune.errors import Failed, Refused
from inheritune.parallel import compute_dtype, place
from inheritune.reference import Reference
from inheritune.run_directory import read_json, write_json
from inheritune.tokens import TokenSet

Record = dict[str, Any]

_NAME = "layer_choice.json"
_EARLIER = "influence.json"
"""What runs wrote that were begun by a version without `angular`."""
_MOST_TOKENS = 65_536
_SAID = {
    "influence": "the blocks of the greatest influence",
    "angular": "outside the stretch that turns least",
    surgery.PROBE: "the best of the candidates",
}


def read(run: Path) -> Record | None:
    """A run's choice of layers, where one was measured.

    Raises:
        Failed: the record is no such choice.
    """
    for name in (_NAME, _EARLIER):
        record: Any = read_json(run / name)
        if record is None:
            continue
        if not _is_choice(record):
            raise Failed(
                f"{run / name}: damaged, it names no choice of layers; delete it and give the same command again"
            )
        found: Record = record
        return found
    return None


def _is_choice(record: Any) -> bool:
    """Whether a record has what later stages take from it."""
    known = isinstance(record, dict) and record.get("measure", "influence") in _SAID
    return known and isinstance(record.get("tokens"), int) and are_layers(record.get("layers"))


def are_layers(found: Any) -> bool:
    """Whether a record's value is a choice of layers: indices in ascending order."""
    whole = isinstance(found, list) and bool(found) and all(type(index) is int and index >= 0 for index in found)
    return whole and found == sorted(set(found))


@contextlib.contextmanager
def kept_data() -> Iterator[None]:
    """What a pass over tokens refuses comes when data is prepared, which a refusal would take with it."""
    try:
        yield
    except Refused as error:
        raise Failed(f"{error}; the prepared data is kept, name it as data.prepared") from error


def write(run: Path, record: Record) -> None:
    """Note a run's choice of layers."""
    write_json(run / _NAME, record)


def choice_record(
    reference: Reference,
    tokens: TokenSet,
    word: int | str,
    *,
    sequence_length: int,
    batch_sequences: int,
    compute: str,
    device: torch.device,
) -> Record:
    """The layers that a word such as `angular:13` means, measured on the beginning of a set.

    Returns:
        As `record_of`.
    """
    asked = surgery.measured(word, reference.layers)
    turning = measured_turning(
        reference,
        tokens,
        sequence_length=sequence_length,
        batch_sequences=batch_sequences,
        compute=compute,
        device=device,
    )
    return record_of(turning, asked, tokens.name)


def measured_turning(
    reference: Reference,
    tokens: TokenSet,
    *,
    sequence_length: int,
    batch_sequences: int,
    compute: str,
    device: torch.device,
) -> layerwise.Turning:
    """What a reference's blocks do to the hidden state of the beginning of a set."""
    model, dtype = loaded(reference, compute, device)
    batches = layerwise.first_batches(
        tokens, sequence_length=sequence_length, batch_sequences=batch_sequences, most_tokens=_MOST_TOKENS
    )
    return layerwise.measure_turning(model, batches, dtype=dtype)


def record_of(turning: layerwise.Turning, asked: tuple[str, int], set_name: str) -> Record:
    """A choice of layers as JSON.

    Args:
        turning: what was measured.
        asked: the measure to choose by, and how many layers to keep.
        set_name: of the tokens.

    Returns:
        `measure`, `layers` (the indices kept), `tokens`, `set`; both measures, whichever chose: `influence` of every
        block, and `angular`, whose entry (k - 1, a) is the angular distance of the k blocks from block a on.
    """
    measure, count = asked
    return {
        "measure": measure,
        "layers": list(layerwise.choose(turning, measure, count)),
        "tokens": turning.tokens,
        "set": set_name,
        "influence": [round(value, 6) for value in turning.influence],
        "angular": turning.stretches(),
    }


def in_words(record: Record) -> str:
    """A choice in a line: `angular on 65,536 tokens: layers 0 to 9, 25 to 29, outside the stretch that turns least`."""
    measure = record.get("measure", "influence")  # an earlier record knows no other
    layers = surgery.spelled(tuple(record["layers"]))
    return f"{measure} on {record['tokens']:,} tokens: layers {layers}, {_SAID[measure]}"


def loaded(reference: Reference, compute: str, device: torch.device) -> tuple[PreTrainedModel, torch.dtype]:
    """A reference in float32 on the device, and the dtype of matrix products, as runs measure it."""
    try:
        model = references.load(reference)
    except Failed as error:
        raise Refused(str(error)) from error  # nothing is written yet: the input is at fault
    return place(model.float(), device), compute_dtype(compute, device)
