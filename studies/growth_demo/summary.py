"""The growth demo's runs side by side, by seed, from their records.

    python studies/growth_demo/summary.py [DIRECTORY ...]      by default the records kept here

A directory holds growth.jsonl, result.json and ledger.json, as a run's does. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from inheritune.growth import layers_in_words

HERE = Path(__file__).parent


def read(directory: Path) -> dict[str, Any]:
    """What is told of a run: losses in nats a token, the decision, minutes of the machine."""
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    rounds = [json.loads(line) for line in (directory / "growth.jsonl").read_text(encoding="utf-8").splitlines()]
    ledger = json.loads((directory / "ledger.json").read_text(encoding="utf-8"))
    found = {"reference": result["benchmark"]}
    for one in rounds:
        if one["seed"] == 0:
            found[f"{layers_in_words(one['layers'])}, inherited"] = one.get("validation_loss")
    for name, model in result["controls"].items():
        found[f"{name}, {layers_in_words(model['layers'])}"] = model["validation_loss"]
    return {
        "losses": found,
        "matched": result["target"]["layers"] if result["matched"] else None,
        "verdict": next(one["verdict"] for one in rounds if one["layers"] == result["target"]["layers"]),
        "minutes": sum(entry["seconds"] for name, entry in ledger.items() if name != "total") / 60,
    }


def losses_row(values: list[float | None]) -> str:
    """A model's losses, their mean and their standard deviation over the runs that have one."""
    known = [value for value in values if value is not None]
    spread = f"{statistics.stdev(known):.3f}" if len(known) > 1 else "–"
    cells = ["–" if value is None else f"{value:.3f}" for value in values]
    return " | ".join([*cells, f"{statistics.fmean(known):.3f}", spread])


def main() -> None:
    """Print the table."""
    directories = [Path(word) for word in sys.argv[1:]] or sorted(HERE.glob("seed-*"))
    runs = {directory.name: read(directory) for directory in directories}
    names = list(dict.fromkeys(name for run in runs.values() for name in run["losses"]))
    print(f"| validation loss, nats a token | {' | '.join(runs)} | mean | sd |")
    print(f"|---|{'---|' * (len(runs) + 2)}")
    for name in names:
        print(f"| {name} | {losses_row([run['losses'].get(name) for run in runs.values()])} |")
    rows = {
        "layers that matched": [str(run["matched"] or "none") for run in runs.values()],
        "target − reference": [f"{run['verdict']['difference']:.3f}" for run in runs.values()],
        "its upper bound": [f"{run['verdict']['upper']:.3f}" for run in runs.values()],
        "minutes, all stages": [f"{run['minutes']:.0f}" for run in runs.values()],
    }
    for name, words in rows.items():
        print(f"| {name} | {' | '.join(words)} | | |")


if __name__ == "__main__":
    main()
