"""What `inheritune plan` predicts of four shapes, against trainings of them: seconds a step, and memory.

    python benchmarks/plan.py [--steps 20] [--turns 3] [--shapes NAME ...] [--out results/plan_2.json]

In turns, each in a process of its own: a plan with `--device measured`, which times a few steps, and then the training
that it is about, by `training.Trainer` on a prepared directory, for more steps. Memory is predicted from the config
alone and compared with what torch's allocator gave out at most; beside it stands what the process grew by, which holds
what libraries take for themselves, and freed memory that is kept. A prediction that is off by more than 15% in the
median of the turns is a miss, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import allocator_peak

WITHIN = 0.15
WARM_STEPS = 2
SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "config": {
            "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        "batch_sequences": 16, "micro_batch_sequences": 16, "sequence_length": 256,
    },
    "growth_demo": {
        "config": {
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        "batch_sequences": 16, "micro_batch_sequences": 16, "sequence_length": 256,
    },
    "llama-30m": {
        "config": {
            "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192, "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        "batch_sequences": 8, "micro_batch_sequences": 4, "sequence_length": 512,
    },
    "smollm2": {
        "config": {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 15,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        "batch_sequences": 8, "micro_batch_sequences": 4, "sequence_length": 256, "compile": "always",
    },
}  # fmt: skip
Record = dict[str, Any]


def main() -> None:
    """Predict and measure in turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of each training, beside two to warm up")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps < 1 or given.turns < 1:
        parser.error("--steps and --turns: at least 1")
    if given.out and not given.out.parent.is_dir():
        parser.error(f"--out: no directory {given.out.parent}")
    if given.part:
        part, name, steps = json.loads(given.part)
        print(json.dumps(PARTS[part](SHAPES[name], steps)))
        return
    found = {name: [turn(name, given.steps, number) for number in range(given.turns)] for name in given.shapes}
    summary = {name: summarised(turns) for name, turns in found.items()}
    print(table(summary))
    if given.out:
        from inheritune.environment import describe

        command = f"python benchmarks/plan.py --steps {given.steps} --turns {given.turns} --out {given.out}"
        record = {"command": command, "environment": describe() | {"command": None}, "within": WITHIN,
                  "shapes": {name: SHAPES[name] for name in found}, "turns": found, "summary": summary}  # fmt: skip
        given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(abs(one[kind]["ratio"] - 1) > WITHIN for one in summary.values() for kind in ("seconds", "bytes")))


def turn(name: str, steps: int, number: int) -> Record:
    """A shape's prediction, then its measurement."""
    print(f"turn {number + 1}, {name}", file=sys.stderr)
    return {part: in_a_process(part, name, steps) for part in PARTS}


def in_a_process(part: str, name: str, steps: int) -> Record:
    """What one part found, in a new interpreter."""
    words = [sys.executable, __file__, "--part", json.dumps([part, name, steps])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def predict(shape: Record, _steps: int) -> Record:
    """What a plan says of a recipe of this shape."""
    from inheritune.config import ArchitectureConfig, DataConfig, Recipe, SourceConfig, TokenCount
    from inheritune.pipeline import Circumstances, make_plan

    keys = {key: value for key, value in shape["config"].items() if key != "vocab_size"}
    recipe = Recipe(
        architecture=ArchitectureConfig(config=keys, vocabulary=shape["config"]["vocab_size"]),
        data=DataConfig(
            sources=[SourceConfig(path="python-source")],
            tokens=TokenCount("100M"),
            sequence_length=shape["sequence_length"],
        ),
        train=train_config(shape, max_steps=None),
    )
    plan = make_plan(recipe, Circumstances("measured"))
    return {
        "step_seconds": plan["step_seconds"]["median"],
        "timed": plan["step_seconds"]["seconds"],
        "bytes": plan["memory"]["total_bytes"],
        "parts_bytes": plan["memory"]["parts_bytes"],
        "parameters": plan["models"][0]["parameters"],
        "peak_flops": plan["device"]["peak_flops"],
        "dtype": plan["device"]["dtype"],
        "utilisation": plan["device"]["utilisation"]["likely"],
    }


def measure(shape: Record, steps: int) -> Record:
    """The median of a training's seconds a step, from the end of one to that of the next; what the process grew by."""
    import torch

    before = resident("VmRSS:")
    ends: list[float] = []
    train(shape, steps + WARM_STEPS, lambda: ends.append(time.perf_counter()))
    grown = resident("VmHWM:") - before
    seconds = [after - earlier for earlier, after in itertools.pairwise(ends[WARM_STEPS - 1 :])]
    return {
        "step_seconds": statistics.median(seconds),
        "seconds": seconds,
        "resident_growth": grown,
        "threads": torch.get_num_threads(),
    }


def allocate(shape: Record, _steps: int) -> Record:
    """What torch's allocator gave out at most over the first steps of a training; watching it makes them slow."""
    return {"bytes": allocator_peak(lambda: train(shape, 3, lambda: None))}


class _Enough(BaseException):
    """Ends a training after the last step that is of interest, before anything is saved; no trainer catches it."""


def train(shape: Record, steps: int, ended: Callable[[], None]) -> None:
    """Train by the package's own trainer, on random tokens; `ended` is called at every step's end."""
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import AutoConfig

    from inheritune.reference import fresh
    from inheritune.tokens import open_prepared
    from inheritune.training import Trainer

    sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))
    from inputs import write_tokens  # it finds its own neighbours there

    keys, length, counter = dict(shape["config"]), shape["sequence_length"], itertools.count(1)

    def note(*_: Any) -> None:
        ended()
        if next(counter) == steps:
            raise _Enough

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "out").mkdir()
        write_tokens(folder / "data", keys["vocab_size"], length, (steps + 2) * shape["batch_sequences"])
        trainer = Trainer(
            model=fresh(AutoConfig.for_model(keys.pop("model_type"), **keys), 0),
            prepared=open_prepared(folder / "data"),
            config=train_config(shape, max_steps=None),
            directory=folder / "out",
            sequence_length=length,
            passes=1,
            report=lambda _: None,
            progress=lambda _: None,
        )
        hook = register_optimizer_step_post_hook(note)
        with contextlib.suppress(_Enough):
            trainer.run()
        hook.remove()


def train_config(shape: Record, *, max_steps: int | None) -> Any:
    """The recipe's section."""
    from inheritune.config import TrainConfig

    return TrainConfig(
        batch_sequences=shape["batch_sequences"],
        micro_batch_sequences=shape["micro_batch_sequences"],
        warmup_steps=1,
        max_steps=max_steps,
        validate_every_steps=10**9,
        checkpoint_every_steps=10**9,
        compile=shape.get("compile", "never"),
    )


def resident(field: str) -> int:
    """This process's resident memory by a field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def summarised(turns: list[Record]) -> Record:
    """Predicted against measured, the median of the turns."""
    found: Record = {"parameters": turns[0]["predict"]["parameters"], "dtype": turns[0]["predict"]["dtype"]}
    for kind, key, part in (("seconds", "step_seconds", "measure"), ("bytes", "bytes", "allocate")):
        ratios = [one["predict"][key] / one[part][key] for one in turns]
        found[kind] = {
            "predicted": statistics.median(one["predict"][key] for one in turns),
            "measured": statistics.median(one[part][key] for one in turns),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    found["process_bytes"] = statistics.median(one["measure"]["resident_growth"] for one in turns)
    return found


def table(summary: Record) -> str:
    """The medians as Markdown."""
    heads = ["shape", "parameters", "s a step: predicted", "measured", "ratio (range)", "MiB: predicted", "allocator",
             "ratio (range)", "process"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, one in summary.items():
        seconds, size = one["seconds"], one["bytes"]
        cells = [f"{name}, {one['dtype']}", f"{one['parameters'] / 1e6:.1f}M"]
        cells += [f"{seconds['predicted']:.3f}", f"{seconds['measured']:.3f}", ratio(seconds)]
        cells += [f"{size['predicted'] / 2**20:.0f}", f"{size['measured'] / 2**20:.0f}", ratio(size)]
        cells += [f"{one['process_bytes'] / 2**20:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(found: Record) -> str:
    """A median with its range."""
    return f"{found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})"


PARTS: dict[str, Callable[[Record, int], Record]] = {"predict": predict, "measure": measure, "allocate": allocate}
"""What is done of a turn, each in a process of its own."""

if __name__ == "__main__":
    main()
