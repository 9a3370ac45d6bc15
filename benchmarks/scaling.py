"""How a training step's time grows: with layers, width, sequence length and ranks, beside what arithmetic says.

    python benchmarks/scaling.py [--quick] [--only SWEEP ...] [--turns 3] [--steps 6] [--out results/scaling.json]

A small LLaMA is trained by this project's Trainer, blocks compiled, in a process of its own for every point; all points
are measured in turns, and medians are fitted. An exponent is the slope of log time over log size: between the largest
two sizes, where what does not grow weighs least, and over all. Beside it stands the exponent of the arithmetic (FLOPs a
step, attention included), and the rate at which each point computes, in a large matrix product's of the same turn.
Ranks share this machine: a rank has one thread, and so has the single rank that they are compared with; every point of
that sweep trains on the same sequences a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overhead.figure import exponent
from training.running import run_worker

OPTIMISER = {
    "learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "gradient_clip": 1.0,
}  # fmt: skip
STEP_TOKENS = 4096


@dataclass(frozen=True)
class Point:
    """One size of a sweep."""

    size: int
    layers: int = 4
    width: int = 256
    length: int = 256
    ranks: int = 1
    threads: int | None = None
    """None: as many as torch takes."""
    settings: dict[str, str] = field(default_factory=dict)

    def job(self) -> dict[str, Any]:
        """What the worker is told of the shape."""
        config = {
            "model_type": "llama", "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 4096,
            "num_hidden_layers": self.layers, "hidden_size": self.width, "intermediate_size": 11 * self.width // 4,
            "num_attention_heads": self.width // 64, "num_key_value_heads": self.width // 64,
            "max_position_embeddings": self.length, "tie_word_embeddings": True,
        }  # fmt: skip
        sequences = STEP_TOKENS // self.length
        return {
            "config": config, "sequence_length": self.length, "device": "cpu", "batch_sequences": sequences,
            "micro_batch_sequences": sequences // self.ranks, "settings": self.settings,
        }  # fmt: skip


SWEEPS: dict[str, list[Point]] = {
    "layers": [Point(n, layers=n) for n in (2, 4, 8, 16)],
    "width": [Point(n, width=n) for n in (128, 256, 512, 1024)],
    "sequence": [Point(n, length=n) for n in (128, 256, 512, 1024, 2048)],
    "ranks, ddp": [Point(n, width=512, ranks=n, threads=1, settings={"parallel": "ddp"}) for n in (1, 2)],
    "ranks, fsdp": [Point(n, width=512, ranks=n, threads=1, settings={"parallel": "fsdp"}) for n in (1, 2)],
}


def main() -> None:
    """Measure, print a table a sweep, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn, and of each sweep its three smallest sizes")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="SWEEP")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: what this machine computes fastest in"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.turns < 1 or given.steps < 1:
        parser.error("--turns and --steps: at least 1")
    sweeps = {name: SWEEPS[name][:3] if given.quick else SWEEPS[name] for name in given.only}
    record = start_record(given)
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        for turn in range(1 if given.quick else given.turns):
            for name, points in sweeps.items():
                for point in points:
                    found = measure(Path(scratch), name, point, record["dtype"], given.steps)
                    record["measurements"].append({"sweep": name, "size": point.size, "turn": turn} | found)
                    print(f"turn {turn + 1}, {name} {point.size}: {describe(found)}", file=sys.stderr, flush=True)
                record["fits"] = [fit(record, sweep) for sweep in sweeps]
                if given.out:
                    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for one in record["fits"]:
        print(table(one))


def start_record(given: argparse.Namespace) -> dict[str, Any]:
    """What was run, where."""
    import torch

    from inheritune.environment import describe
    from inheritune.parallel import compute_dtype

    dtype = given.dtype or str(compute_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    words = ["FILE.json" if before == "--out" else word for before, word in zip(sys.argv, sys.argv[1:], strict=False)]
    return {
        "command": " ".join(["python benchmarks/scaling.py", *words]),
        "environment": describe() | {"command": None},
        "dtype": dtype,
        "steps": given.steps,
        "measurements": [],
    }


def describe(found: dict[str, Any]) -> str:
    """A measurement in a few words."""
    return found.get("failed") or f"{1e3 * found['seconds']:.0f} ms a step"


def measure(scratch: Path, sweep: str, point: Point, dtype: str, steps: int) -> dict[str, Any]:
    """A point's median step time; its model and data are written the first time."""
    directory = scratch / f"{sweep}-{point.size}".replace(", ", "-")
    job = point.job() | OPTIMISER | {"dtype": dtype, "steps": steps}
    job |= {"directory": str(directory), "model": str(directory / "model"), "data": str(directory / "data")}
    job |= {"stream": str(directory / "data" / "train" / "00000.ds"), "order": str(directory / "order.npy")}
    facts = directory / "facts.json"
    if not directory.exists():
        directory.mkdir()
        made = run_worker(sys.executable, "inputs.py", job, scratch, None)
        if "failed" in made:
            return made
        facts.write_text(json.dumps(made), encoding="utf-8")
    threads = {"OMP_NUM_THREADS": str(point.threads)} if point.threads else {}
    rate = run_worker(sys.executable, "matmul.py", {"dtype": dtype, "device": "cpu"}, scratch, None, variables=threads)
    started = time.monotonic()
    found = run_worker(sys.executable, "ours.py", job, scratch, None, variables=threads, ranks=point.ranks)
    if "failed" in found or "failed" in rate:
        return {"failed": found.get("failed") or rate["failed"]}
    made = json.loads(facts.read_text(encoding="utf-8"))
    return {
        "seconds": statistics.median(found["step_seconds"]),
        "step_seconds": found["step_seconds"],
        "flops": made["flops_per_token"] * STEP_TOKENS,
        "parameters": made["parameters"],
        "matmul_flops_per_second": rate["flops_per_second"] * point.ranks,
        "memory_bytes": found["memory_bytes"],
        "process_seconds": time.monotonic() - started,
    }


def fit(record: dict[str, Any], sweep: str) -> dict[str, Any]:
    """Medians over the turns, and exponents of time and of arithmetic."""
    by_size: dict[int, list[dict[str, Any]]] = {}
    for one in record["measurements"]:
        if one["sweep"] == sweep and "failed" not in one:
            by_size.setdefault(one["size"], []).append(one)
    rows = []
    for size, found in sorted(by_size.items()):
        seconds = statistics.median(one["seconds"] for one in found)
        rows.append(
            {
                "size": size,
                "turns": len(found),
                "seconds": seconds,
                "range": [min(one["seconds"] for one in found), max(one["seconds"] for one in found)],
                "flops": found[0]["flops"],
                "utilisation": statistics.median(
                    one["flops"] / one["seconds"] / one["matmul_flops_per_second"] for one in found
                ),
            }
        )
    fitted: dict[str, Any] = {"sweep": sweep, "rows": rows}
    if len(rows) > 1:
        sizes = [float(row["size"]) for row in rows]
        for name in ("seconds", "flops"):
            values = [float(row[name]) for row in rows]
            fitted[f"{name}_exponent"] = exponent(sizes, values)
            fitted[f"{name}_last_exponent"] = exponent(sizes[-2:], values[-2:])
    return fitted


def table(fitted: dict[str, Any]) -> str:
    """A sweep as Markdown."""
    lines = [
        f"\n**{fitted['sweep']}**\n",
        "| | ms a step (range) | GFLOP a step | of a matrix product's rate |",
        "|---" * 4 + "|",
    ]
    for row in fitted["rows"]:
        low, high = (1e3 * bound for bound in row["range"])
        lines.append(
            f"| {row['size']:,} | {1e3 * row['seconds']:.0f} ({low:.0f} to {high:.0f}) | {row['flops'] / 1e9:.0f} "
            f"| {row['utilisation']:.0%} |"
        )
    if "seconds_exponent" in fitted:
        lines.append(
            f"\nExponent of time {fitted['seconds_exponent']:.2f} (last two sizes "
            f"{fitted['seconds_last_exponent']:.2f}), of arithmetic {fitted['flops_exponent']:.2f} "
            f"({fitted['flops_last_exponent']:.2f})."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
