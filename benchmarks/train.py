"""Training speed: ours against transformers' Trainer, litgpt, nanoGPT and a bare compiled loop, on the same work.

    python benchmarks/train.py [--quick] [--transformers PYTHON] [--litgpt PYTHON] [--nanogpt DIRECTORY] [--out FILE]

Every trainer gets the same weights, tokens in the same order, batch, dtype and AdamW (clipping at 1, no dropout,
constant learning rate), in turns A B C A B C, each in a process of its own and, where pins clash, in an environment of
its own. No model makes a key-value cache while it trains. Before the first turn each peer's settings are tried and the
fastest are kept; `--quick` and `--no-tuning` take those that were fastest before. What is timed is whole steps, from
the end of one optimiser step to the end of the next; set-up and compilation stand apart. On a CPU ours has glibc keep
freed memory and nobody else does; by `--keep-freed-memory` all do. Utilisation is by large matrix products, measured in
the same turn. The JSON holds every figure and is written after every process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from training.peers import OURS, PEERS, Settings
from training.running import KEEP_FREED, missing_modules, run_worker
from training.shapes import SHAPES, Shape
from training.summary import overall, summarise, table, tokens_per_second

OPTIMISER = {
    "learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "gradient_clip": 1.0,
}  # fmt: skip
DTYPES = ("float32", "bfloat16")
QUICK_MINUTES = 9.3
TUNING_STEPS = 4


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def options(words: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"few steps, nothing new after {QUICK_MINUTES} minutes")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--peers", nargs="+", metavar="PEER", help=", ".join(name for name in PEERS if name != OURS))
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated; a full run takes both")
    parser.add_argument("--turns", type=int, help="default 5, with --quick 3")
    parser.add_argument("--steps", type=int, help="timed steps a process; default 10, with --quick 4")
    parser.add_argument("--batch", type=int, help="sequences a step, instead of the shape's")
    parser.add_argument("--micro-batch", type=int, help="sequences a forward pass, instead of the shape's")
    parser.add_argument("--keep-freed-memory", action="store_true", help="everybody's allocator as ours sets its own")
    parser.add_argument("--no-tuning", action="store_true", help="take each peer's first settings")
    parser.add_argument("--transformers", metavar="PYTHON", default=sys.executable, help="with accelerate")
    parser.add_argument("--litgpt", metavar="PYTHON", default=sys.executable, help="of an environment with litgpt")
    parser.add_argument("--nanogpt", metavar="DIRECTORY", type=Path, help="nanoGPT's source")
    parser.add_argument("--out", metavar="FILE.json", type=Path)
    given = parser.parse_args(words)
    for option, names, known in (("--shapes", given.shapes, SHAPES), ("--peers", given.peers, PEERS)):
        for name in names or []:
            if name not in known:
                parser.error(f"{option}: {name!r} is none of {', '.join(known)}")
    for option in ("turns", "steps", "batch", "micro_batch"):
        value = getattr(given, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')}: {value}; at least 1")
    if given.nanogpt and not all((given.nanogpt / name).is_file() for name in ("train.py", "model.py")):
        parser.error(f"--nanogpt: {given.nanogpt} does not hold train.py and model.py")
    for option in ("transformers", "litgpt"):
        if not Path(getattr(given, option)).is_file():
            parser.error(f"--{option}: no interpreter {getattr(given, option)}")
    if given.out and not given.out.parent.is_dir():
        parser.error(f"--out: no directory {given.out.parent}")
    given.turns = given.turns or (3 if given.quick else 5)
    given.steps = given.steps or (4 if given.quick else 10)
    return given


class Benchmark:
    """One run of all turns.

    Args:
        given: the options.
        scratch: for models, data, caches.
    """

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        import torch

        from inheritune.environment import describe
        from inheritune.parallel import compute_dtype

        self.given, self.scratch = given, scratch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        best = str(compute_dtype("auto", torch.device(self.device))).removeprefix("torch.")
        self.dtypes = given.dtype or ([best] if given.quick or best == "float32" else list(DTYPES))
        self.names = given.shapes or [name for name, shape in SHAPES.items() if shape.device == self.device]
        self.shaped = {name: self._shape(name) for name in self.names}
        self.ends = time.monotonic() + 60 * QUICK_MINUTES if given.quick else None
        self.pythons = {"transformers": given.transformers, "litgpt": given.litgpt}
        self.seconds: dict[tuple[str, str], float] = {}
        self.settings: dict[tuple[str, str, str], tuple[str, Settings]] = {}
        self.record: dict[str, Any] = {
            "command": command(sys.argv),
            "environment": describe() | {"command": None},
            "optimiser": OPTIMISER,
            "steps": given.steps,
            "shapes": {},
            "peers": self._peers(),
            "tuning": [],
            "matmul": [],
            "measurements": [],
        }

    def _peers(self) -> dict[str, Any]:
        """Those that can be run here, ours first; a line on each that cannot."""
        found: dict[str, Any] = {}
        for name, peer in PEERS.items():
            if self.given.peers and name not in (OURS, *self.given.peers):
                continue
            missing = missing_modules(self.pythons.get(name, sys.executable), peer.modules)
            if missing or (name == "nanogpt" and self.given.nanogpt is None):
                tell(f"{name} is not measured: {', '.join(missing) or 'its source'} missing; give {peer.how}")
                continue
            found[name] = {}
        return found

    def run(self) -> None:
        """All turns of all shapes; stops early when the time of `--quick` is over."""
        for turn in range(self.given.turns):
            for dtype in self.dtypes:
                for name in self.names:
                    needed = self._needed(name, dtype)
                    if self.ends is not None and time.monotonic() + needed > self.ends:
                        tell(f"turn {turn + 1}, {name}, {dtype}: left out, would take about {needed:.0f} s more")
                        continue
                    started = time.monotonic()
                    self._turn(name, dtype, turn)
                    self.seconds[name, dtype] = time.monotonic() - started

    def _needed(self, name: str, dtype: str) -> float:
        """Seconds that a turn takes: as many as the last, or half a minute a process and its steps at half speed."""
        if (name, dtype) in self.seconds:
            return self.seconds[name, dtype]
        known = [one["flops_per_second"] for one in self.record["matmul"] if "flops_per_second" in one]
        if name not in self.record["shapes"] or not known:
            return 0.0
        facts = self.record["shapes"][name]
        work = facts["flops_per_token"] * facts["batch_sequences"] * facts["sequence_length"]
        runners = len(self._runners(name))
        return float(runners * (30 + (self.given.steps + 2) * work / (0.5 * known[-1])))

    def _runners(self, name: str) -> list[str]:
        """Who can train a shape."""
        return [peer for peer in self.record["peers"] if peer not in self.record["shapes"][name]["left_out"]]

    def _turn(self, name: str, dtype: str, turn: int) -> None:
        """Matrix products, then everybody once."""
        place = {"shape": name, "dtype": dtype, "turn": turn}
        tell(f"turn {turn + 1}, {name}, {dtype}: matrix products")
        self._keep("matmul", place | self._work(sys.executable, "matmul.py", {"dtype": dtype, "device": self.device}))
        for peer in self._runners(name):
            variant, settings = self._best_settings(name, dtype, peer)
            failed = [one for one in self.record["measurements"] if "failed" in one]
            if variant == "" or any(one["peer"] == peer and one["shape"] == name for one in failed):
                continue
            tell(f"turn {turn + 1}, {name}, {dtype}: {peer} ({variant})")
            found = self._train(name, dtype, peer, settings, self.given.steps)
            self._keep("measurements", place | {"peer": peer, "variant": variant} | found)

    def _best_settings(self, name: str, dtype: str, peer: str) -> tuple[str, Settings]:
        """A peer's fastest settings for a shape, tried when first asked for; an empty name if all fail."""
        if (name, dtype, peer) not in self.settings:
            entry = PEERS[peer]
            variants = entry.variants | (entry.cuda_variants if self.device == "cuda" else {})
            best = next(iter(variants))
            if not (self.given.quick or self.given.no_tuning or len(variants) == 1):
                speeds: dict[str, float] = {}
                for variant, settings in variants.items():
                    tell(f"tuning, {name}, {dtype}: {peer} ({variant})")
                    found = self._train(name, dtype, peer, settings, min(TUNING_STEPS, self.given.steps))
                    place = {"shape": name, "dtype": dtype, "peer": peer, "variant": variant}
                    self._keep("tuning", place | found)
                    speeds[variant] = found.get("tokens_per_second", 0.0)
                best = max(speeds, key=lambda variant: speeds[variant])
                best = best if speeds[best] else ""
            self.settings[name, dtype, peer] = (best, variants.get(best, {}))
        return self.settings[name, dtype, peer]

    def _train(self, name: str, dtype: str, peer: str, settings: Settings, steps: int) -> dict[str, Any]:
        """Train a shape by one peer in its own process."""
        job = self._job(name) | OPTIMISER | {"dtype": dtype, "settings": settings, "steps": steps}
        if peer == "nanogpt":
            job["source"] = str(self.given.nanogpt.resolve())
        found = self._work(self.pythons.get(peer, sys.executable), PEERS[peer].script, job)
        if "failed" not in found:
            shape = self.record["shapes"][name]
            found["tokens_per_second"] = tokens_per_second(found, shape["batch_sequences"] * shape["sequence_length"])
            tell(f"    {found['tokens_per_second']:,.0f} tokens/s, first loss {found['losses'][0]:.5f}")
        return found

    def prepare(self) -> None:
        """Write every shape's model and data, once."""
        for name in self.names:
            tell(f"{name}: model and data")
            (self.scratch / name).mkdir()
            found = run_worker(
                sys.executable, "inputs.py", self._job(name) | {"steps": self.given.steps}, self.scratch, None
            )
            if "failed" in found:
                raise SystemExit(f"{name}: {found['failed']}")
            shape = self.shaped[name]
            kind = shape.config["model_type"]
            left_out = {
                peer: PEERS[peer].left_out[kind] for peer in self.record["peers"] if kind in PEERS[peer].left_out
            }
            self.record["shapes"][name] = {
                "config": shape.config,
                "sequence_length": shape.sequence_length,
                "batch_sequences": shape.batch_sequences,
                "micro_batch_sequences": shape.micro_batch_sequences,
                "left_out": left_out,
                **found,
            }

    def _shape(self, name: str) -> Shape:
        """A shape with what the options change of its batch."""
        shape = SHAPES[name]
        batch = self.given.batch or shape.batch_sequences
        micro = min(self.given.micro_batch or shape.micro_batch_sequences, batch)
        if batch % micro:
            tell(f"{name}: {batch} sequences a step are no multiple of {micro} a forward pass")
            raise SystemExit(2)
        return dataclasses.replace(shape, batch_sequences=batch, micro_batch_sequences=micro)

    def _job(self, name: str) -> dict[str, Any]:
        """What every worker of a shape is told."""
        shape, directory = self.shaped[name], self.scratch / name
        return {
            "config": shape.config, "sequence_length": shape.sequence_length, "device": self.device,
            "batch_sequences": shape.batch_sequences, "micro_batch_sequences": shape.micro_batch_sequences,
            "directory": str(directory), "model": str(directory / "model"), "data": str(directory / "data"),
            "stream": str(directory / "data" / "train" / "00000.ds"), "order": str(directory / "order.npy"),
        }  # fmt: skip

    def _work(self, python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
        """Run a worker, no longer than there is time."""
        left = None if self.ends is None else max(1.0, self.ends - time.monotonic())
        variables = KEEP_FREED if self.given.keep_freed_memory else {}
        found = run_worker(python, script, job, self.scratch, left, variables=variables)
        if "failed" in found:
            tell(f"    failed: {found['failed']}")
        return found

    def _keep(self, kind: str, found: dict[str, Any]) -> None:
        """Add to the record and write it, so that a run that is killed leaves what it measured."""
        self.record[kind].append(found)
        self.record["summary"] = summarise(self.record)
        self.record["ratio_to_best_peer"] = overall(self.record["summary"])
        if self.given.out:
            self.given.out.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")


def command(words: list[str]) -> str:
    """The command line as it may be published: environments and sources by what they are, not where."""
    places = {"--transformers": "PYTHON", "--litgpt": "PYTHON", "--nanogpt": "DIRECTORY", "--out": "FILE.json"}
    shown = [places.get(before, word) for before, word in itertools.pairwise(words)]
    return " ".join(["python benchmarks/train.py", *shown])


def tell(line: str) -> None:
    """Say what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, print the table and the ratio."""
    given = options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that workers end, and scratch goes
    with tempfile.TemporaryDirectory(prefix="training-benchmark-") as scratch:
        benchmark = Benchmark(given, Path(scratch))
        benchmark.prepare()
        with contextlib.suppress(KeyboardInterrupt):
            benchmark.run()
    record = benchmark.record
    summary = record.get("summary", [])
    print(table(record, summary))
    ratio = overall(summary)
    print(f"\nratio to the best peer: {ratio:.2f}" if ratio is not None else "\nratio to the best peer: not measured")
    sys.exit(0 if ratio is not None else 1)


if __name__ == "__main__":
    main()
