"""The pass that layers are chosen by, and the scan of every prefix, on a real reference; beside another program.

    python benchmarks/layer_choice.py REFERENCE SHARDS [--tokens 4096] [--sequence_length 1024] [--keep 15 20] [--peer]

SHARDS are what `inheritune prepare` wrote. Reported: processor seconds, so that other work on the same cores is left
out, and the highest memory so far, of the pass without a head, of the scan with an eighth of the positions scored, and
of the scan of all of them; then what `influence:N` and `angular:N` choose. With `--peer` the same tokens go through
short-transformers (1.0.0; `pip install --no-deps short-transformers seaborn`), in float32 on both sides, one sequence
at a time: the largest difference of a distance, the stretch that its table says, the one that its own function takes
(which reads the row of one block more), and the closest stretch at the sequences' last tokens, as Gromov et al. 2024
measure.
"""

from __future__ import annotations

import argparse
import importlib
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inheritune import reference as references
from inheritune.layerwise import Turning, choose, first_batches, measure_turning, scan_prefixes, scan_record
from inheritune.pipeline.layer_choice import loaded
from inheritune.tokens import open_prepared


def timed(what: str, call: Callable[[], Any]) -> Any:
    """What a call gives; its processor seconds and the highest memory so far are printed."""
    began = time.process_time()
    value = call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.process_time() - began:.1f} s, peak {peak:.2f} GiB", flush=True)
    return value


def closest(distances: Any, count: int) -> str:
    """The stretch to drop to keep `count` blocks, with its distance."""
    dropped = len(distances) - 1 - count
    first = min(range(count, -1, -1), key=lambda start: distances[start, start + dropped])
    return f"{first} to {first + dropped - 1} ({distances[first, first + dropped]:.4f})"


def beside_peer(model: Any, ids: torch.Tensor, ours: Turning, keep: list[int]) -> None:
    """The same tokens through short-transformers."""
    package, dist, utils = (importlib.import_module(f"short_transformers{name}") for name in ("", ".dist", ".utils"))
    last: list[float] = []

    def distance(given: torch.Tensor, gave: torch.Tensor) -> float:
        ends = [state.reshape(-1, state.shape[-1])[-1].double() for state in (given, gave)]
        last.append(float(torch.nn.functional.cosine_similarity(ends[0], ends[1], dim=0).clamp(-1, 1).acos()) / math.pi)
        return float(dist.angular_distance_all_tokens(given, gave))

    watched = package.ShortTransformer.from_model(model, distance=distance)

    def run() -> None:
        with torch.inference_mode():
            for sequence in ids:
                watched(sequence[None], use_cache=False)

    timed("short-transformers", run)
    table, blocks = watched.memory.result, len(ours.influence)
    differences = [np.abs(np.array(row) - table[k, : len(row)]).max() for k, row in enumerate(ours.stretches())]
    print(f"largest difference of a distance: {max(differences):.1e}")
    at_last = np.zeros((blocks + 1, blocks + 1))
    pairs = [(before, after) for after in range(1, blocks + 1) for before in range(after)]
    for (before, after), value in zip(pairs, np.array(last).reshape(len(ids), -1).mean(0), strict=True):
        at_last[before, after] = value
    for count in keep:
        dropped = blocks - count
        theirs, own = int(np.argmin(table[dropped - 1, : count + 1])), int(utils.get_best_pruning_start(table, dropped))
        print(
            f"keep {count}: drops {closest(ours.distances, count)}; its table {theirs} to {theirs + dropped - 1}, its "
            f"function from {own} on; last tokens {closest(at_last, count)}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sequence_length", type=int, default=1024)
    parser.add_argument("--keep", type=int, nargs="+", default=[15])
    parser.add_argument("--peer", action="store_true")
    given = parser.parse_args()
    prepared = open_prepared(given.shards)
    model, dtype = loaded(references.find(given.reference), "float32" if given.peer else "auto", torch.device("cpu"))
    length, tokens = given.sequence_length, prepared.set("train")
    batches = list(
        first_batches(tokens, sequence_length=length, batch_sequences=1 if given.peer else 4, most_tokens=given.tokens)
    )
    turning = timed(f"without a head, {given.tokens:,} tokens", lambda: measure_turning(model, batches, dtype=dtype))
    for count in given.keep:
        print(f"influence:{count} keeps {choose(turning, 'influence', count)}")
        print(f"angular:{count} drops {closest(turning.distances, count)}")
    if given.peer:
        beside_peer(model, torch.from_numpy(np.concatenate(batches)), turning, given.keep)
        return
    held_out = prepared.set(prepared.main_set)
    for positions in (held_out.tokens // 8, held_out.tokens):

        def scan(positions: int = positions) -> Any:
            settings: Any = {"sequence_length": length, "context_token": prepared.context_token, "batch_sequences": 4}
            return scan_prefixes(model, held_out, dtype=dtype, positions=positions, **settings)

        found = timed(f"scan of {held_out.tokens:,} tokens, {positions:,} scored", scan)
        rows = scan_record(found, set_name="", parameters=[0] * len(turning.influence), vocabulary=2)["prefixes"]
        losses = [(row["layers"], row["loss"], row["standard_error"] or math.nan) for row in rows]
        print(", ".join(f"{layers}: {loss:.2f} ± {error:.2f}" for layers, loss, error in losses), flush=True)


if __name__ == "__main__":
    main()
