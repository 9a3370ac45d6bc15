"""How far the layers that `inheritune depth` recommends are from the best of a sweep over every n.

    python studies/depth/sweep.py SHARDS WORK [--records DIR]

SHARDS are the demo's (its run directory's `data`). WORK gets what `depth` writes, and each arm's training; DIR, by
default `records` beside this file, a JSON file an arm, and `result.json`. Arms whose record is there are skipped.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inheritune import pipeline, reference as references, surgery
from inheritune.comparison import resampled_means
from inheritune.config import TrainConfig
from inheritune.console import Console
from inheritune.distributed import World
from inheritune.parallel import compute_dtype
from inheritune.planning import training_flops_per_token
from inheritune.reference import Reference, parameters
from inheritune.run_directory import read_json, write_json
from inheritune.tokens import Prepared, open_prepared
from inheritune.training import Trainer
from inheritune.validation import measure

Record = dict[str, Any]

MOST_PARAMETERS = 4_500_000
SEQUENCE_LENGTH = 256
LEARNING_RATE = 5e-4
STEPS = 10
PROBE = {"probe_tokens": 220_000, "batch_sequences": 8}
HELD_OUT_TOKENS = 12_288
TRAIN = TrainConfig(
    batch_sequences=16,
    micro_batch_sequences=16,
    learning_rate=LEARNING_RATE,
    warmup_steps=3,
    max_steps=STEPS,
    validate_every_steps=10**6,
    checkpoint_every_steps=10**6,
    keep_checkpoints=1,
    compile="never",
)


@dataclass(frozen=True)
class Arm:
    """Layers, and what they are trained for."""

    layers: tuple[int, ...]
    at: str
    """`tokens` or `flops`: what is equal."""

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{'-'.join(map(str, self.layers))}@{self.at}"


def arms(found: Record, of_layers: int) -> list[Arm]:
    """The sweep's arms, by what the probe came to."""
    rungs = len(found["probe"]["rungs"])
    finalists = [row for row in found["candidates"] if len(row["losses"]) == rungs]
    best: dict[int, tuple[int, ...]] = {}
    for row in sorted(finalists, key=lambda row: row["losses"][-1]):
        best.setdefault(len(row["layers"]), tuple(row["layers"]))
    most = found["most_layers"]
    prefixes = [tuple(range(count)) for count in range(1, of_layers + 1)]
    equal_tokens = [*prefixes, best[most], tuple(found["recommended"]["layers"])]
    equal_flops = [*prefixes[:most], *best.values()]
    chosen = [Arm(layers, "tokens") for layers in equal_tokens]
    chosen += [Arm(layers, "tokens" if len(layers) == most else "flops") for layers in equal_flops]
    return list(dict.fromkeys(chosen))


class Sweep:
    """Trains arms, each once."""

    def __init__(self, reference: Reference, prepared: Prepared, work: Path, records: Path, most: int) -> None:
        self._reference = reference
        self._prepared = prepared.shortened("held-out", HELD_OUT_TOKENS)
        self._work = work
        self._records = records
        self._console = Console()
        self._dearest = self._flops(tuple(range(most)))

    def _flops(self, layers: tuple[int, ...]) -> float:
        return training_flops_per_token(surgery.plan_cut(self._reference, layers).model, SEQUENCE_LENGTH)

    def record(self, arm: Arm) -> Record:
        """What an arm came to, as recorded or trained now."""
        path = self._records / f"{arm.name}.json"
        held: Record | None = read_json(path)
        if held is None:
            self._console.stage(arm.name)
            held = self._trained(arm)
            write_json(path, held)
        return held

    def _trained(self, arm: Arm) -> Record:
        steps = STEPS if arm.at == "tokens" else int(STEPS * self._dearest / self._flops(arm.layers))
        start, directory = self._work / "starts" / arm.name, self._work / "arms" / arm.name
        if not start.exists():
            surgery.inherit(self._reference, arm.layers, start)
        directory.mkdir(parents=True, exist_ok=True)
        model = references.load(references.find(str(start)))
        config = TrainConfig(**{**vars(TRAIN), "max_steps": steps})
        world = World(rank=0, size=1, device=torch.device("cpu"))
        trainer = Trainer(
            model=model,
            prepared=self._prepared.only("train"),
            config=config,
            directory=directory,
            sequence_length=SEQUENCE_LENGTH,
            passes=3,
            report=self._console.line,
            progress=self._console.progress,
            world=world,
        )
        trained = trainer.run()
        losses = measure(
            model,
            self._prepared.set("held-out"),
            sequence_length=SEQUENCE_LENGTH,
            context_token=self._prepared.context_token,
            batch_sequences=16,
            dtype=compute_dtype("auto", world.device),
        )
        for done in (start, directory):
            shutil.rmtree(done)
        return {
            "layers": list(arm.layers),
            "at": arm.at,
            "parameters": parameters(model),
            **{name: getattr(trained, name) for name in ("steps", "tokens", "flops", "seconds")},
            "loss": round(losses.loss, 4),
            "nats": [round(value, 2) for value in losses.nats.tolist()],
            "document_tokens": losses.tokens.astype(int).tolist(),
        }


def outcome(found: Record, records: Iterable[Record]) -> Record:
    """How far the recommended layers are behind the best within the budget, at equal tokens and at equal FLOPs."""
    records = list(records)
    layers = found["recommended"]["layers"]
    within = [one for one in records if one["parameters"] <= MOST_PARAMETERS]
    deepest = [one for one in within if len(one["layers"]) == found["most_layers"]]
    groups = {
        "equal_tokens": [one for one in within if one["at"] == "tokens"],
        "equal_flops": [one for one in within if one["at"] == "flops"] + deepest,
    }
    return {
        "recommended": found["recommended"],
        "every_arm": [
            {k: one[k] for k in ("layers", "at", "parameters", "tokens", "flops", "loss")} for one in records
        ],
        "seconds": sum(one["seconds"] for one in records) + found["probe"]["seconds"],
        **{name: _behind_best(layers, group) for name, group in groups.items()},
    }


def _behind_best(layers: list[int], group: list[Record]) -> Record:
    own = next(one for one in group if one["layers"] == layers)
    best = min(group, key=lambda one: float(one["loss"]))
    tokens = np.array(own["document_tokens"], np.float64)
    mine, theirs = resampled_means([np.array(own["nats"]), np.array(best["nats"])], tokens)
    return {
        "best": best["layers"],
        "best_loss": best["loss"],
        "recommended_loss": own["loss"],
        "behind": round(own["loss"] - best["loss"], 4),
        "interval": [round(float(x), 4) for x in np.percentile(mine - theirs, [2.5, 97.5])],
    }


def main() -> None:
    """Recommend, sweep, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--records", type=Path, default=Path(__file__).with_name("records"))
    given = parser.parse_args()
    given.records.mkdir(parents=True, exist_ok=True)
    found = pipeline.choose_depth(
        "packaged:demo",
        given.shards,
        out=given.work / "depth",
        max_parameters=MOST_PARAMETERS,
        sequence_length=SEQUENCE_LENGTH,
        learning_rate=LEARNING_RATE,
        **PROBE,
    )
    names = ("reference_fingerprint", "data_fingerprint", "most_layers", "candidates", "probe", "recommended")
    kept = {name: found[name] for name in names}
    write_json(given.records / "depth.json", kept)
    reference = references.find("packaged:demo")
    sweep = Sweep(reference, open_prepared(given.shards), given.work, given.records, found["most_layers"])
    result = outcome(found, [sweep.record(arm) for arm in arms(found, reference.layers)])
    write_json(given.records / "result.json", result)
    for name in ("equal_tokens", "equal_flops"):
        print(f"{name}: {result[name]}")


if __name__ == "__main__":
    main()
