"""Where the time of a training step goes, by kind of work, beside what its matrix products would take at full rate.

    python benchmarks/profile_step.py [--shapes demo gpt2-small] [--dtype bfloat16] [--steps 4] [--out FILE.json]

This project's Trainer on a shape of `benchmarks/train.py`, blocks compiled, on this machine's CPU, under torch's
profiler, which itself costs some per cent. `floor` is the shape's arithmetic at the rate of a large product, measured
just before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from training.running import run_worker
from training.shapes import SHAPES

OPTIMISER = {
    "learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "gradient_clip": 1.0,
}  # fmt: skip
ON_CPU = [name for name, shape in SHAPES.items() if shape.device == "cpu"]


def main() -> None:
    """Profile, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=ON_CPU, default=ON_CPU, metavar="SHAPE", help=", ".join(ON_CPU))
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="may be repeated")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.steps < 1:
        parser.error("--steps: at least 1")
    import torch

    from inheritune.environment import describe
    from inheritune.parallel import compute_dtype

    best = str(compute_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    words = ["FILE.json" if before == "--out" else word for before, word in zip(sys.argv, sys.argv[1:], strict=False)]
    record: dict[str, Any] = {
        "command": " ".join(["python benchmarks/profile_step.py", *words]),
        "environment": describe() | {"command": None},
        "profiles": [],
    }
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        for dtype in given.dtype or [best]:
            for name in given.shapes:
                found = profile(Path(scratch), name, dtype, given.steps)
                record["profiles"].append({"shape": name, "dtype": dtype} | found)
                print(f"{name}, {dtype}: {found.get('failed', 'done')}", file=sys.stderr, flush=True)
                if given.out:
                    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


def profile(scratch: Path, name: str, dtype: str, steps: int) -> dict[str, Any]:
    """Milliseconds a step by kind of work."""
    shape, directory = SHAPES[name], scratch / f"{name}-{dtype}"
    directory.mkdir()
    job = OPTIMISER | {
        "config": shape.config, "sequence_length": shape.sequence_length, "device": "cpu",
        "batch_sequences": shape.batch_sequences, "micro_batch_sequences": shape.micro_batch_sequences,
        "dtype": dtype, "steps": steps, "settings": {"profile": True},
        "directory": str(directory), "model": str(directory / "model"), "data": str(directory / "data"),
        "stream": str(directory / "data" / "train" / "00000.ds"), "order": str(directory / "order.npy"),
    }  # fmt: skip
    made = run_worker(sys.executable, "inputs.py", job, scratch, None)
    rate = run_worker(sys.executable, "matmul.py", {"dtype": dtype, "device": "cpu"}, scratch, None)
    found = run_worker(sys.executable, "ours.py", job, scratch, None)
    for one in (made, rate, found):
        if "failed" in one:
            return one
    flops = made["flops_per_token"] * shape.batch_sequences * shape.sequence_length
    return {
        "milliseconds": found["profile"],
        "gflop": flops / 1e9,
        "gflops_per_second": rate["flops_per_second"] / 1e9,
        "floor_milliseconds": 1e3 * flops / rate["flops_per_second"],
    }


def table(record: dict[str, Any]) -> str:
    """Kinds of work by shape, as Markdown."""
    done = [one for one in record["profiles"] if "failed" not in one]
    kinds = sorted({kind for one in done for kind in one["milliseconds"]}, key=lambda kind: -share(done, kind))
    lines = ["| ms a step (share) | " + " | ".join(f"{one['shape']}, {one['dtype']}" for one in done) + " |"]
    lines.append("|---" * (len(done) + 1) + "|")
    for kind in kinds:
        cells = []
        for one in done:
            value, whole = one["milliseconds"].get(kind, 0.0), sum(one["milliseconds"].values())
            cells.append(f"{value:.0f} ({value / whole:.0%})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines.append("| together | " + " | ".join(f"{sum(one['milliseconds'].values()):.0f}" for one in done) + " |")
    floors = [f"{one['floor_milliseconds']:.0f}, at {one['gflops_per_second']:,.0f} GFLOP/s" for one in done]
    lines.append("| floor: the arithmetic at a large product's rate | " + " | ".join(floors) + " |")
    return "\n".join(lines)


def share(done: list[dict[str, Any]], kind: str) -> float:
    """A kind's share of the time, averaged over the shapes."""
    return sum(one["milliseconds"].get(kind, 0.0) / sum(one["milliseconds"].values()) for one in done) / len(done)


if __name__ == "__main__":
    main()
