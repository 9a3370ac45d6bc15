"""Which half of a real model to keep: every arm one training, a record each; killed at any moment, it goes on.

    python studies/real_reference/study.py PHASE REFERENCE SHARDS WORK [--records DIR]

PHASE is `reference`, `screening`, `rates`, `main` or `distilled`, in this order: each takes what those before it found.
SHARDS are what the `prepare` command of the README here wrote. WORK gets checkpoints, which go once an arm is recorded;
DIR (by default `records` beside this file) one JSON file an arm. Arms whose record is there are skipped, and those that
another process is at: start one process a core, each with OMP_NUM_THREADS=1 and pinned, so that all arms get the same
hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from inheritune import environment, reference as references, surgery
from inheritune.config import DistillConfig, ObjectiveConfig, TrainConfig
from inheritune.console import Console
from inheritune.errors import Refused
from inheritune.parallel import compute_dtype, uncompile_blocks
from inheritune.pipeline.layer_choice import choice_record
from inheritune.reference import Reference, parameters
from inheritune.run_directory import lock, read_json, read_jsonl, write_json
from inheritune.surgery.initial import start
from inheritune.surgery.proof import load_saved
from inheritune.tokens import Prepared, open_prepared
from inheritune.training import Trainer
from inheritune.validation import measure_all

Record = dict[str, Any]

KEPT = 15
SEQUENCE_LENGTH, BATCH_SEQUENCES, MICRO_BATCH = 256, 8, 4
BATCH_TOKENS = SEQUENCE_LENGTH * BATCH_SEQUENCES
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SPEEDS = ("plain", "distilled")
PHASES = ("reference", "screening", "rates", "main", "distilled")
WORDS = {
    "first": "first:15",
    "last": "last:15",
    "every-other": "every:2",
    "first-14-last-1": "first:14+last:1",
    "first-12-last-3": "first:12+last:3",
    "first-8-last-7": "first:8+last:7",
    "influence": "influence:15",
    "angular": "angular:15",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training."""

    name: str
    word: str | None
    """Layers of the reference that it starts from; None: random init."""
    tokens: int
    rate: float = 1e-3
    seed: int = 0
    distilled: bool = False
    validations: int = 2
    """How often it is measured while it trains, the end included, the start not."""


def arms_of(phase: str, records: Path) -> list[Arm]:
    """The trainings of a phase, by what the phases before it found."""
    words: dict[str, str | None] = {**WORDS, "random": None}
    if phase == "screening":
        return [Arm(f"screening-{name}", word, 250_000) for name, word in words.items()]
    compared = ("first", best_cut(records), "random")
    if phase == "rates":
        return [Arm(f"rates-{name}-{rate:g}", words[name], 131_072, rate, 1) for name in compared for rate in RATES]
    rates = {name: best_rate(name, records) for name in compared}
    if phase == "main":
        return [
            Arm(f"main-{name}-seed-{seed}", words[name], 800_000, rates[name], seed, validations=8)
            for seed in range(3)
            for name in compared
        ]
    best = compared[1]
    # Cores are shared with others, and an arm may meet a slow hour: speeds are those of two short arms in a row.
    short = [Arm(f"speed-{name}", words[best], 81_920, rates[best], 0, name == "distilled") for name in SPEEDS]
    seconds = [step_seconds(records / f"{one.name}.json") for one in short]
    if seconds[0] is None or seconds[1] is None:
        return short
    tokens = round(800_000 * seconds[0] / seconds[1])  # as many as take the time that the plain training takes
    return [*short, Arm(f"distilled-{best}", words[best], tokens, rates[best], 0, distilled=True, validations=8)]


def step_seconds(path: Path) -> float | None:
    """The median of a recorded arm's steps; None where it is not recorded yet."""
    record = read_json(path)
    return record["step_seconds"] if record is not None else None


def development_loss(path: Path) -> float:
    """What a recorded arm ended with on the development set."""
    record = read_json(path)
    if record is None:
        raise SystemExit(f"{path}: not there yet; run the phases in order")
    return float(record["trained"]["development"]["loss"])


def best_cut(records: Path) -> str:
    """The inheriting arm of the screening that is best on the development set, the poster's own apart."""
    others = [name for name in WORDS if name != "first"]
    return min(others, key=lambda name: development_loss(records / f"screening-{name}.json"))


def best_rate(name: str, records: Path) -> float:
    """The learning rate with which an arm is best on the development set."""
    return min(RATES, key=lambda rate: development_loss(records / f"rates-{name}-{rate:g}.json"))


def layers_of(word: str, reference: Reference, prepared: Prepared, records: Path) -> tuple[int, ...]:
    """The indices that a word means; what is measured is measured once, on the training set."""
    indices = surgery.parse_layers(word, reference.layers)
    if indices is not None:
        return indices
    path = records / f"choice-{word.replace(':', '-')}.json"
    if not path.exists():
        record = choice_record(
            reference,
            prepared.set("train"),
            word,
            sequence_length=1024,
            batch_sequences=2,
            compute="auto",
            device=torch.device("cpu"),
        )
        write_json(path, record)
    return tuple(read_json(path)["layers"])


def losses(model: Any, prepared: Prepared) -> Record:
    """A model's sums by document on every set."""
    found = measure_all(model, prepared, SEQUENCE_LENGTH, MICRO_BATCH, compute_dtype("auto", torch.device("cpu")))
    return {name: one.record() | {"loss": round(one.loss, 6)} for name, one in found.items()}


def train(arm: Arm, reference: Reference, prepared: Prepared, work: Path, records: Path, console: Console) -> Record:
    """Train an arm, from its last checkpoint if there is one, and measure it before and after."""
    indices = layers_of(arm.word or WORDS["first"], reference, prepared, records)
    begun = work / "starts" / "-".join(map(str, indices))
    if not begun.exists():
        begun.parent.mkdir(parents=True, exist_ok=True)
        surgery.inherit(reference, indices, begun, report=console.line)
    model = load_saved(begun, reference) if arm.word else start(begun, reference, frozenset(), arm.seed)[0]
    model.float()
    directory = work / arm.name
    directory.mkdir(exist_ok=True)
    steps = -(-arm.tokens // BATCH_TOKENS)
    trainer = Trainer(
        model=model,
        prepared=prepared,
        config=TrainConfig(
            batch_sequences=BATCH_SEQUENCES,
            micro_batch_sequences=MICRO_BATCH,
            learning_rate=arm.rate,
            warmup_steps=20,
            max_steps=steps,
            validate_every_steps=-(-steps // arm.validations),
            checkpoint_every_steps=20,
            keep_checkpoints=1,
            seed=arm.seed,
            compile="always",
            objective=ObjectiveConfig(DistillConfig() if arm.distilled else None),
        ),
        directory=directory,
        sequence_length=SEQUENCE_LENGTH,
        passes=1,
        report=console.line,
        progress=lambda progress: console.progress(progress, 0),
        teacher=references.load(reference) if arm.distilled else None,
    )
    trained = trainer.run()
    uncompile_blocks(model)
    lines = read_jsonl(directory / "metrics.jsonl")
    curve = [one for one in lines if one.get("kind") == "validation"]
    steps_taken = [one for one in lines if one.get("kind") == "step"]
    return {
        **dataclasses.asdict(arm),
        "layers": list(indices) if arm.word else None,
        "parameters": parameters(model),
        "steps": trained.steps,
        "tokens": trained.tokens,
        "flops": trained.flops,
        "seconds": round(trained.seconds, 1),
        "step_seconds": statistics.median(BATCH_TOKENS / one["tokens_per_second"] for one in steps_taken),
        "compute_dtype": trained.compute_dtype,
        "trained": losses(model, prepared),
        "curve": [{"step": one["step"], "losses": one["losses"]} for one in curve],
    }


def main() -> None:
    """Run what is left of a phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("reference")
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records")
    asked = parser.parse_args()
    asked.records.mkdir(parents=True, exist_ok=True)
    asked.work.mkdir(parents=True, exist_ok=True)
    reference, prepared, console = references.find(asked.reference), open_prepared(asked.shards), Console()
    described = environment.describe()
    keys = ("processor", "threads", "inheritune", "torch", "transformers", "commit")
    hardware = {key: described[key] for key in keys}
    if asked.phase == "reference":
        record = {"fingerprint": reference.fingerprint, "shards": prepared.manifest["fingerprint"]}
        record["losses"] = losses(references.load(reference).float(), prepared)
        write_json(asked.records / "reference.json", record)
        return
    for arm in arms_of(asked.phase, asked.records):
        path = asked.records / f"{arm.name}.json"
        directory = asked.work / arm.name
        directory.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(directory))
            except Refused:
                continue  # another process is at it
            if path.exists():
                continue
            began = time.monotonic()
            record = train(arm, reference, prepared, asked.work, asked.records, console)
            write_json(path, record | hardware | {"wall_seconds": round(time.monotonic() - began, 1)})
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
            console.line(f"{arm.name}: {record['trained']['held-out']['loss']:.3f}")


if __name__ == "__main__":
    main()
