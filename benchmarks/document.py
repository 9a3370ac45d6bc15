"""Fills in the tables of docs/performance.md from the records in results/.

    python benchmarks/document.py [--check]

The text of that page is written by hand and holds no measured figure; what stands between `<!-- NAME -->` and
`<!-- end -->` is made here, from the record that `SECTIONS` names. With `--check` nothing is written, and the exit code
says whether the page is what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_floor
import loss
import memory
import plan
import profile_step
import scaling
from overhead.figure import shown
from training.summary import overall, summarise, table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
Record = dict[str, Any]


def speed(record: Record) -> str:
    """Training speed: everybody's, by shape, and the ratio."""
    summary = summarise(record)
    ratio = overall(summary)
    assert ratio is not None
    worst = min(summary, key=lambda one: one["ratio_to_best_peer"]["median"])
    named = f"{worst['shape']}, {worst['dtype']}, beside {worst['best_peer']}"
    return f"{place(record)}\n\n{table(record, summary)}\n\nThe smallest ratio to the best peer: {ratio:.2f} ({named})."


def where(record: Record) -> str:
    """Where a step's time goes."""
    return f"{place(record)}\n\n{profile_step.table(record)}"


def predicted(record: Record) -> str:
    """Memory of the large shape."""
    return memory.predicted_table(record["predicted"])


def measured(record: Record) -> str:
    """Memory of the scaled shapes."""
    parts = [f"`{record['command']}`, {record['device']}, torch {record['versions']['torch']}."]
    for title, found in record["measured"].items():
        parts += [f"**{title}**", memory.measured_table(found)]
    return "\n\n".join(parts)


def overheads(*records: Record) -> str:
    """Figures beside their targets, of several records."""
    lines = ["| figure | measured | target | met |", "|---|---|---|---|"]
    lines += [shown(figure) for record in records for figure in record["figures"]]
    machines = sorted({f"{record['processor']}, torch {record['versions']['torch']}" for record in records})
    commands = "; ".join(f"`{record['command'].split(' --out')[0]}`" for record in records)
    return f"{commands}. {'; '.join(machines)}.\n\n" + "\n".join(lines)


def growth(record: Record) -> str:
    """Sweeps and exponents."""
    return f"{place(record)}\n\n" + "\n".join(scaling.table(fitted) for fitted in record["fits"]).strip()


def losses(record: Record) -> str:
    """The chunked loss beside the plain one."""
    return f"{place(record)}\n\n{loss.table(record)}"


def planned(record: Record) -> str:
    """What a plan predicts, and what came."""
    return f"{place(record)}\n\n{plan.table(record['summary'])}"


def paper(*_: Record) -> str:
    """The floor of a GPU's step, reckoned now."""
    return gpu_floor.table("H200", 64, 8)


def place(record: Record) -> str:
    """What was run, where."""
    there = record["environment"]
    hardware = ", ".join(there["gpus"]) or f"{there['processor']}, {there['cores']} cores, {there['memory_gib']} GiB"
    versions = f"torch {there['torch']}, transformers {there['transformers']}"
    return f"`{record['command']}`; {hardware}; {versions}; commit {there['commit']}."


SECTIONS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "speed": (speed, ("train_2.json",)),
    "speed, everybody keeping freed memory": (speed, ("train_3.json",)),
    "speed in float32": (speed, ("train_4.json",)),
    "speed of half of SmolLM2": (speed, ("train_5.json",)),
    "loss": (losses, ("loss_1.json",)),
    "where the time goes": (where, ("profile_1.json",)),
    "memory predicted": (predicted, ("memory_2.json",)),
    "memory measured": (measured, ("memory_2.json",)),
    "memory of half of SmolLM2": (measured, ("memory_3.json",)),
    "plan": (planned, ("plan_2.json",)),
    "overheads": (
        overheads,
        ("overheads_2_loading_validation.json", "overheads_1_starting_checkpoints.json", "overheads_1_speed.json",
         "overheads_1_growth.json"),
    ),
    "growth": (growth, ("scaling_1.json",)),
    "paper": (paper, ()),
}  # fmt: skip


def filled(page: str, results: Path = HERE / "results") -> str:
    """The page with every section made anew.

    Raises:
        ValueError: a section is missing from the page, or one there has no record.
    """
    named = re.findall(r"<!-- (?!end)([^>]*?) -->", page)
    if sorted(named) != sorted(SECTIONS):
        raise ValueError(f"sections {sorted(set(named) ^ set(SECTIONS))} are on one side only")

    def make(found: re.Match[str]) -> str:
        render, files = SECTIONS[found[1]]
        records = [json.loads((results / file).read_text(encoding="utf-8")) for file in files]
        return f"<!-- {found[1]} -->\n\n{render(*records)}\n\n<!-- end -->"

    return re.sub(r"<!-- (?!end)([^>]*?) -->.*?<!-- end -->", make, page, flags=re.DOTALL)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = filled(page)
    if not given.check:
        PAGE.write_text(made, encoding="utf-8")
    elif made != page:
        sys.exit(f"{PAGE.name} is not what the records say: run benchmarks/document.py")


if __name__ == "__main__":
    main()
