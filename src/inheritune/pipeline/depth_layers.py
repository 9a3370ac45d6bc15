"""What each layer of a reference is worth, for `inheritune depth`: measured, and shown."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune import layerwise, reference as references, surgery
from inheritune.console import Console
from inheritune.depth import depths_to_try
from inheritune.distributed import World
from inheritune.errors import Failed, Refused
from inheritune.pipeline import layer_choice
from inheritune.pipeline.depth_asked import BATCH_SEQUENCES, Asked
from inheritune.pipeline.direct import SCAN_POSITIONS
from inheritune.report import degeneracy_table, layers_table

Record = dict[str, Any]

_ATTENTION_SEQUENCES, _ATTENTION_TOKENS = 8, 256


def measured_layers(asked: Asked, most: int, console: Console, world: World) -> Record:
    """What each layer is worth: prefixes scanned, blocks compared, attention looked at.

    Args:
        asked: of what, and on what.
        most: layers that fit the budget; which ones the measures would keep is noted for each number that is tried.
        console: where progress is shown.
        world: the device.

    Returns:
        What `layers.json` holds: `layerwise.scan_record`, with `chosen`, `degeneracy` and `untrained`.

    Raises:
        Refused: the reference cannot be loaded, or does not run each block once, in order.
    """
    found, development = asked.reference, asked.development
    console.stage(f"Measuring the {found.layers} layers of {found.source}")
    model, dtype = layer_choice.loaded(found, "auto", world.device)
    scan = layerwise.scan_prefixes(
        model,
        development,
        sequence_length=asked.sequence_length,
        context_token=asked.prepared.context_token,
        batch_sequences=BATCH_SEQUENCES,
        dtype=dtype,
        positions=SCAN_POSITIONS,
        progress=console.work("scanning", "sequences"),
    )
    record = layerwise.scan_record(
        scan,
        set_name=development.name,
        parameters=references.prefix_parameters(model),
        vocabulary=found.embedding_rows,
    )
    chosen: dict[str, list[int]] = {}
    for count in depths_to_try(most) if scan.turning is not None else ():
        for measure_name in surgery.MEASURES:
            assert scan.turning is not None
            chosen[f"{measure_name}:{count}"] = list(layerwise.choose(scan.turning, measure_name, count))
    return {**record, "chosen": chosen, **_degeneracy(asked, model, dtype, console)}


def _degeneracy(asked: Asked, model: PreTrainedModel, dtype: torch.dtype, console: Console) -> Record:
    """How far attention degenerates, with the same network untrained beside it; why not, where nothing is seen."""
    length = min(_ATTENTION_TOKENS, asked.sequence_length)

    def measured(one: PreTrainedModel, seed: int | None, what: str) -> Record:
        batches = layerwise.first_batches(
            asked.development,
            sequence_length=length,
            batch_sequences=1,
            most_tokens=_ATTENTION_SEQUENCES * length,
        )
        progress = console.work(f"attention of the {what}", "sequences")
        seen = layerwise.measure_degeneracy(one, batches, dtype=dtype, progress=progress)
        return layerwise.degeneracy_record(seen, set_name=asked.development.name, seed=seed)

    try:
        own = measured(model, None, "reference")
        fresh = layerwise.untrained(model, asked.train.seed, trust_remote_code=asked.reference.trust_remote_code)
        return {"degeneracy": own, "untrained": measured(fresh, asked.train.seed, "untrained network")}
    except (Refused, Failed) as error:  # it is shown, and nothing else depends on it
        return {"degeneracy": None, "untrained": None, "no_degeneracy": str(error)}


def show_layers(layers: Record, console: Console) -> None:
    """The measures as tables, and what could not be looked at.

    Args:
        layers: as `measured_layers` returns them.
        console: where.
    """
    seen = layers["degeneracy"]
    if seen is None:
        console.line(f"nothing to look at in attention ({layers['no_degeneracy']}); the other measures are shown")
    else:
        console.table(degeneracy_table(seen, layers["untrained"], width=console.width))
        blind = [layer for layer, heads in enumerate(seen["rank"]) if heads is None]
        if blind:
            which = surgery.spelled(tuple(blind))
            console.line(f"layers without attention of tokens to tokens: {which}; the others are shown")
    console.table(layers_table(layers, width=console.width))
