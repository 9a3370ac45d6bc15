"""What a run spends beside training: data, checkpoints, validation, start-up, preparation; each beside its target.

    python benchmarks/overheads.py [--quick] [--only PART ...] [--books DIRECTORY] [--out results/overheads.json]

`loading`: the data's share of a step: the demo's target, trained here, and rows out of large sparse corpora, beside a
GPU's step that is reckoned. `checkpoints`: what `Checkpointer.save` blocks for at several sizes, its writer simulated,
and the line through them at 1e9 parameters. `validation`: by recipe, from the tokens it measures and what one costs.
`starting`: whole processes. `speed`: `prepare` against the tokenizer alone, given the same documents in memory by the
thousand, in turns, each in a process of its own; imports apart. `growth`: its time and peak memory by documents.
Every part runs on all cores of this machine, so it should be doing nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from overhead import checkpoints, loading, preparing, starting
from overhead.figure import Figure, shown

from inheritune.environment import describe

Part = Callable[[Path, argparse.Namespace], list[Figure]]
PARTS: dict[str, Part] = {
    "starting": lambda *_: starting.measure(),
    "checkpoints": lambda scratch, given: checkpoints.measure(scratch, quick=given.quick),
    "loading": lambda scratch, given: loading.measure(scratch, quick=given.quick),
    "validation": lambda scratch, _: loading.validation(scratch),
    "speed": lambda scratch, given: preparing.speed(scratch, given.books, quick=given.quick),
    "growth": lambda scratch, given: preparing.growth(scratch, given.books, quick=given.quick),
}


def main() -> None:
    """Measure the parts that are asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer turns: under five minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--books", type=Path, help="a directory of text to prepare instead of Python source")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures: list[Figure] = []
    print("| figure | measured | target | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="overheads-") as scratch:
        for name in given.only:
            for figure in PARTS[name](Path(scratch), given):
                print(shown(figure.record()), flush=True)
                figures.append(figure)
    missed = [figure.name for figure in figures if figure.met is False]
    print(f"missed: {', '.join(missed) or 'none'}")
    if given.out:
        machine = describe()
        result = {
            "command": " ".join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "datatrove")},
            "processor": f"{machine['processor']}, {machine['cores']} cores",
            "memory_gib": machine["memory_gib"],
            "figures": [figure.record() for figure in figures],
        }
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
