"""The same training on one, two and four ranks: losses step by step, side by side.

    python benchmarks/ranks.py [--steps 20] [--out results/ranks.json]

Trains the demo's target in float32 on one rank, on one with another micro-batch, on two with DDP and with FSDP, and on
four with hybrid sharding, each by `inheritune train demo` (under torchrun where there are several), from the same
shards. It shows losses, not speed: ranks share this machine's cores. Two trainings that differ by more than rounding
would refute that ranks change nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

SETTINGS: dict[str, tuple[int, list[str]]] = {
    "1 rank": (1, []),
    "1 rank, micro-batch 3": (1, ["--train.micro_batch_sequences", "3"]),
    "2 ranks, DDP": (2, ["--train.parallel", "ddp"]),
    "2 ranks, FSDP": (2, ["--train.parallel", "fsdp"]),
    "4 ranks, 2 copies": (4, ["--train.parallel", "fsdp", "--train.fsdp_ranks", "2"]),
}


def main() -> None:
    """Train in every setting, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    records: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="ranks-benchmark-") as scratch:
        shards: list[str] = []
        for number, (name, (ranks, flags)) in enumerate(SETTINGS.items()):
            out = Path(scratch) / str(number)
            train(out, ranks, given.steps, [*flags, *shards])
            if not shards:
                shards = ["--data.prepared", str(out / "data")]
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            records[name] = [json.loads(line) for line in lines]
    losses = {name: [r["loss"] for r in made if r["kind"] == "step"] for name, made in records.items()}
    held_out = {name: made[-1]["losses"]["held-out"] for name, made in records.items()}
    first = losses["1 rank"]
    shown = sorted({0, 1, given.steps // 2, given.steps - 1})
    print(
        "| | "
        + " | ".join(f"step {step + 1}" for step in shown)
        + " | held-out at the end | largest difference of a step |"
    )
    print("|---" * (len(shown) + 3) + "|")
    for name, values in losses.items():
        difference = max(abs(a - b) for a, b in zip(values, first, strict=True))
        row = " | ".join(f"{values[step]:.6f}" for step in shown)
        print(f"| {name} | {row} | {held_out[name]:.6f} | {difference:.1e} |")
    if given.out:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
            "losses": losses,
            "held_out": held_out,
        }
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def train(out: Path, ranks: int, steps: int, flags: list[str]) -> None:
    """Train the demo's target for some steps on so many ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    settings = {
        "max_steps": steps, "warmup_steps": 5, "compile": "never", "compute_dtype": "float32",
        "validate_every_steps": steps, "checkpoint_every_steps": steps,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--train.{key}", str(value))]
    if "--data.prepared" not in flags:
        words += ["--data.validation_tokens", "10K", "--data.development_tokens", "5K"]
    command = [*(launcher if ranks > 1 else [sys.executable]), "-m", "inheritune", "train", "demo", "--out", str(out)]
    done = subprocess.run(
        [*command, *words, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
