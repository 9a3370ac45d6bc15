"""What a training step spends on its data, and a run on validation."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune import training
from inheritune.config import DataConfig, TrainConfig
from inheritune.recipe import load_recipe, packaged_recipes
from inheritune.tokens import TrainingBlocks, pass_order
from overhead import shards
from overhead.figure import Figure

DEMO = Path(training.__file__).parent / "packaged" / "demo"
STEPS = 16
_SKIPPED = 4
"""First steps, which compile or fill caches."""
_GPU_STEP_SECONDS = 2.6
"""131,072 tokens through the 13-layer OpenLLaMA-3B shape at half of an H100's bfloat16 peak: reckoned, not measured."""


@dataclass
class Clock:
    """Seconds within some methods; what is called within another of them counts once."""

    calls: list[float] = field(default_factory=list)
    depth: int = 0
    undo: list[Any] = field(default_factory=list)

    def watch(self, owner: type, name: str) -> None:
        """Time a method from now on."""
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def timed(*arguments: Any, **settings: Any) -> Any:
            self.depth += 1
            started = time.perf_counter()
            try:
                return plain(*arguments, **settings)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.calls.append(time.perf_counter() - started)

        setattr(owner, name, timed)
        self.undo.append(lambda: setattr(owner, name, plain))

    def restore(self) -> None:
        """Put the plain methods back."""
        for back in self.undo:
            back()


@functools.cache
def demo_training(scratch: Path) -> dict[str, Any]:
    """Train the demo's target for some steps on random tokens; seconds of steps, of their data, of validation."""
    recipe = load_recipe("demo")
    sizes = {"train": 200_000, "held-out": int(recipe.data.validation_tokens)}
    prepared = shards.make(scratch / "demo", sizes)
    config = AutoConfig.from_pretrained(DEMO, num_hidden_layers=4, dtype="float32")
    torch.manual_seed(0)
    loading, validation = Clock(), Clock()
    for name in ("indices", "rows", "rows_apart", "micro_batches"):
        loading.watch(TrainingBlocks, name)
    loading.watch(training.Trainer, "_inputs")
    validation.watch(training.Trainer, "_validate")
    marks: list[float] = []
    directory = scratch / "demo-run"
    directory.mkdir()
    trainer = training.Trainer(
        model=AutoModelForCausalLM.from_config(config),
        prepared=prepared,
        config=TrainConfig(
            batch_sequences=16, micro_batch_sequences=16, max_steps=STEPS, validate_every_steps=STEPS,
            checkpoint_every_steps=10 * STEPS, compile="always",
        ),
        directory=directory,
        sequence_length=256,
        passes=3,
        report=lambda _: None,
        progress=lambda _: marks.append(sum(loading.calls)),
    )  # fmt: skip
    try:
        trainer.run()
    finally:
        loading.restore()
        validation.restore()
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    seconds = [16 * 256 / record["tokens_per_second"] for record in steps][_SKIPPED:]
    loads = [after - before for before, after in itertools.pairwise(marks)][_SKIPPED - 1 :]
    return {
        "step_seconds": seconds, "loading_seconds": loads, "step_tokens": 4096,
        "validation_seconds": validation.calls[-1],  # the first one compiles
        "validation_tokens": sizes["held-out"],
        "compiled": trainer._state.compiled,
    }  # fmt: skip


def measure(scratch: Path, *, quick: bool) -> list[Figure]:
    """Data loading's share of a step: the demo's, and out of corpora of 1e6 and 1e7 blocks of 2,048 tokens."""
    demo = demo_training(scratch)
    share = statistics.median(demo["loading_seconds"]) / statistics.median(demo["step_seconds"])
    figures = [Figure("data loading, share of the demo's step", 100 * share, "%", 1.0, raw=demo)]
    for blocks in (10**6,) if quick else (10**6, 10**7):
        record = large(scratch / f"large-{blocks}", blocks)
        for apart in ("rows", "rows_apart"):
            share = record[f"step_{apart}_seconds"] / _GPU_STEP_SECONDS
            name = f"{apart} of 64 x 2,048 tokens, {blocks:.0e} blocks, share of {_GPU_STEP_SECONDS} s"
            figures.append(Figure(name, 100 * share, "%", 1.0, raw=record))
        name = f"stall at the start of a pass over {blocks:.0e} blocks"
        figures.append(Figure(name, record["order_seconds"], "s", raw=record))
    return figures


def large(directory: Path, blocks: int) -> dict[str, Any]:
    """Seconds and memory of the order of a pass, and of a step's rows, out of sparse shards."""
    prepared = shards.make(directory, {"train": blocks * 2048 + 1}, sparse=True)
    started = time.perf_counter()
    training_blocks = TrainingBlocks(prepared.set("train"), 2048, 2, 64, 0)
    record: dict[str, Any] = {"blocks": blocks, "open_seconds": time.perf_counter() - started}
    pass_order.cache_clear()
    started = time.perf_counter()
    order = pass_order(blocks, 0, 0)
    record["order_seconds"] = time.perf_counter() - started
    record["order_bytes"] = order.nbytes
    tracemalloc.start()
    pass_order(blocks, 0, 1)
    record["order_peak_bytes"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for apart in ("rows", "rows_apart"):
        taken = []
        for step in range(5):
            started = time.perf_counter()
            for part in training_blocks.micro_batches(step, 4, 0, 1):
                if apart == "rows":
                    training_blocks.rows(part)
                else:
                    training_blocks.rows_apart(part, 0)
            taken.append(time.perf_counter() - started)
        record[f"step_{apart}_seconds"] = statistics.median(taken)
    pass_order.cache_clear()
    return record


def validation(scratch: Path) -> list[Figure]:
    """Validation's share of the time of a whole training, from a token's cost in either, measured on the demo's."""
    demo = demo_training(scratch)
    step = statistics.median(demo["step_seconds"]) / demo["step_tokens"]
    cost = demo["validation_seconds"] / demo["validation_tokens"] / step
    figures = [Figure("a validation token's cost in a training token's", cost, "", raw={"arithmetic": 1 / 3})]
    defaults = DataConfig(), TrainConfig()
    figures.append(share_figure("defaults, 1e9 tokens", *defaults, 10**9, cost, target=5.0))
    for name in packaged_recipes():
        recipe = load_recipe(name)
        tokens = recipe.data.tokens or 9 * 10**9  # OpenWebText's
        target = None if recipe.name == "demo" else 5.0  # 146 steps, of which the demo shows the curve
        figures.append(share_figure(name, recipe.data, recipe.train, int(tokens), cost, target))
    return figures


def share_figure(
    name: str, data: DataConfig, train: TrainConfig, tokens: int, cost: float, target: float | None
) -> Figure:
    """The share of one recipe's training: every validation, the first and the last too, all sets at their budgets."""
    every: Any = train.validate_every_steps
    step_tokens = train.batch_sequences * data.sequence_length
    steps = -(-tokens * data.passes // step_tokens)
    steps = min(steps, train.max_steps or steps)
    sets = len(data.validation_sets) + (data.validation_share > 0)
    measured = sets * data.validation_tokens + (data.development_share > 0) * data.development_tokens
    if every == "auto":
        from inheritune.schedule import validation_interval

        every = validation_interval(int(measured), step_tokens)
    count = 1 + -(-steps // every)
    spent = count * measured * cost
    raw = {"steps": steps, "every": every, "validations": count, "validation_tokens": int(measured)}
    return Figure(f"validation, {name}", 100 * spent / (spent + steps * step_tokens), "%", target, raw=raw)
