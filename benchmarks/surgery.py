"""Surgery against mergekit's passthrough on the same slice: seconds and peak memory, in turns, each in its own process.

    python benchmarks/surgery.py [--mergekit PYTHON] [--gigabytes 2.4] [--rounds 5] [--out results/surgery.json]

A LLaMA-style reference with random bfloat16 weights is written on the spot, in shards; the first half of its layers is
kept. mergekit's pins clash with this project's, so it has an environment of its own, whose interpreter is named by
`--mergekit`; without it only ours is measured. Reported for each: seconds of cut and write (after imports), of all that
makes the directory, of the whole process, and the peak of anonymous memory above what the imports took (sampled every
5 ms). All that makes the directory is, with ours, also a SHA-256 of every tensor and fsync, which mergekit does not do.
The proof is shown apart: its seconds and memory are in none of the others but the whole process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

SAMPLER = """
import threading, time
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
class Sampler:
    def __enter__(self):
        self.base = self.peak = anonymous()
        self.on = True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while self.on:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.005)
    def __exit__(self, *_):
        self.on = False
        self.thread.join()
        self.bytes = self.peak - self.base
"""

OURS = """
import json, sys, time
from pathlib import Path
from inheritune import reference as references, surgery
from inheritune.surgery.directory import proof_tokens
from inheritune.surgery.saving import save_cut
from transformers.models.llama import modeling_llama  # transformers imports it when it is first asked for
source, out, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
proof = {}
with Sampler() as cutting:
    started = time.perf_counter()
    written = []
    def watch(done, total):
        if not written and 2 * done >= total:
            written.append(time.perf_counter() - started)
    found = references.find(source)
    cut = surgery.plan_cut(found, tuple(range(count)))
    planned = time.perf_counter() - started
    save_cut(cut, found, out, surgery.lineage(found, cut.indices), lambda directory: {}, progress=watch)
    total_seconds = time.perf_counter() - started
with Sampler() as proving:
    started = time.perf_counter()
    surgery.prove(found, out, cut.indices, proof_tokens(found)[0])
    proof_seconds = time.perf_counter() - started
print(json.dumps({
    "seconds": written[0], "planning_seconds": planned, "total_seconds": total_seconds,
    "anonymous_bytes": cutting.bytes, "proof_seconds": proof_seconds, "proof_anonymous_bytes": proving.bytes,
}))
"""

THEIRS = """
import json, sys, time
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
source, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = MergeConfiguration.model_validate({
    "merge_method": "passthrough", "dtype": "bfloat16",
    "slices": [{"sources": [{"model": source, "layer_range": [0, count]}]}],
})
options = MergeOptions(lazy_unpickle=True, copy_tokenizer=False, write_model_card=False, quiet=True)
with Sampler() as merging:
    started = time.perf_counter()
    run_merge(config, out, options)
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "total_seconds": seconds, "anonymous_bytes": merging.bytes}))
"""


def main() -> None:
    """Make the reference, run both in turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="interpreter of an environment with mergekit")
    parser.add_argument("--gigabytes", type=float, default=2.4, help="size of the reference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="surgery-benchmark-") as scratch:
        reference = Path(scratch) / "reference"
        layers = make_reference(reference, given.gigabytes)
        rivals = {"inheritune": (sys.executable, OURS)}
        if given.mergekit:
            rivals["mergekit"] = (given.mergekit, THEIRS)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in rivals}
        for turn in range(given.rounds + 1):  # the first turn warms the page cache and is not counted
            for name, (python, program) in sorted(rivals.items(), reverse=bool(turn % 2)):
                record = measure(python, program, reference, Path(scratch) / "target", layers // 2)
                print(f"turn {turn} {name}: {record}", file=sys.stderr, flush=True)
                if turn:
                    runs[name].append(record)
        result = summary(runs, reference)
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def make_reference(directory: Path, gigabytes: float) -> int:
    """Write a LLaMA of width 2,048 with random bfloat16 weights, in shards; how many layers it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    a_layer = (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048) * 2 / 1e9  # in GB
    layers = max(2, round((gigabytes - 2 * 32000 * 2048 * 2 / 1e9) / a_layer))
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.save_pretrained(directory, max_shard_size="500MB")
    return layers


def measure(python: str, program: str, reference: Path, out: Path, layers: int) -> dict[str, Any]:
    """Run a program in its own process; what it printed, the process's seconds, and what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what the one before left to be written would slow this one down
    started = time.perf_counter()
    done = subprocess.run(
        [python, "-c", SAMPLER + program, str(reference), str(out), str(layers)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    record: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {**record, "process_seconds": seconds, "written_bytes": written}


def summary(runs: dict[str, list[dict[str, Any]]], reference: Path) -> dict[str, Any]:
    """Medians of each, and the ratios of mergekit to ours turn by turn."""
    medians = {
        name: {key: statistics.median(run[key] for run in made) for key in made[0]} for name, made in runs.items()
    }
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "safetensors")},
        "processor": processor(),
        "reference_bytes": sum(file.stat().st_size for file in reference.glob("*.safetensors")),
        "shards": len(list(reference.glob("*.safetensors"))),
        "medians": medians,
        "runs": runs,
    }
    if "mergekit" in runs:
        for key in ("seconds", "total_seconds"):
            ratios = [
                theirs[key] / ours[key] for ours, theirs in zip(runs["inheritune"], runs["mergekit"], strict=True)
            ]
            result[f"ratio_{key}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return result


def processor() -> str:
    """Its name, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| | cut and write, s | with checksums, fsync, s | process, s | peak anonymous memory, GB | proof, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["medians"].items():
        proof = f"{row['proof_seconds']:.1f}" if "proof_seconds" in row else "none"
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['total_seconds']:.2f} | {row['process_seconds']:.1f} "
            f"| {row['anonymous_bytes'] / 1e9:.2f} | {proof} |"
        )
    target = result["medians"]["inheritune"]["written_bytes"]
    lines += [
        "",
        f"Reference {result['reference_bytes'] / 1e9:.2f} GB in {result['shards']} shards, "
        f"target {target / 1e9:.2f} GB.",
    ]
    for key in ("seconds", "total_seconds"):
        ratio = result.get(f"ratio_{key}")
        if ratio:
            lines.append(
                f"mergekit / inheritune, {key}: {ratio['median']:.1f} (from {ratio['low']:.1f} to {ratio['high']:.1f})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
