"""Our scores beside those of the harness's own command, on the files that `--write_tasks` writes, digit by digit.

    python studies/evaluation/side_by_side.py MODEL --datasets DIR --suite quick,mmlu:5 --work DIR [--out record.json]

Evaluates MODEL by `inheritune evaluate`, writes the same tasks as files, and gives each to `lm_eval` by itself (several
at once would share batches and round otherwise), with the batch size that ours took. Prints a table, writes the record.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def limit(words: argparse.Namespace) -> list[str]:
    """The flag for the first rows alone, which both commands have."""
    return [] if words.limit is None else ["--limit", str(words.limit)]


def ours(words: argparse.Namespace) -> list[dict[str, Any]]:
    """Every task's scores as `inheritune evaluate` keeps them."""
    command = [sys.executable, "-m", "inheritune", "evaluate", words.model, "--suite", words.suite]
    command += ["--datasets", words.datasets, "--out", str(words.work), "--device", "cpu", *limit(words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((words.work / "evaluation").glob("*.json"))]


def written(words: argparse.Namespace) -> list[str]:
    """The harness's command for the same tasks, as `--write_tasks` says it."""
    command = [sys.executable, "-m", "inheritune", "evaluate", "--suite", words.suite, "--datasets", words.datasets]
    said = subprocess.run(
        [*command, "--write_tasks", str(words.work / "tasks")], check=True, capture_output=True, text=True
    )
    return shlex.split(said.stdout)


def theirs(command: list[str], task: dict[str, Any], words: argparse.Namespace) -> tuple[dict[str, float] | None, str]:
    """What the harness's command gives for one task; None and its last line where it fails."""
    command = list(command)
    command[command.index("--tasks") + 1] = task["task"]
    if "--samples" in command:
        at = command.index("--samples")
        chosen = json.loads(Path(command[at + 1]).read_text(encoding="utf-8"))
        own = {name: rows for name, rows in chosen.items() if name == task["task"]}
        command[at : at + 2] = ["--samples", json.dumps(own)] if own else []
    out = words.work / "theirs" / task["task"]
    command += ["--model", "hf", "--model_args", f"pretrained={words.model}", "--device", "cpu"]
    command += ["--batch_size", str(task["settings"]["batch_size"]), "--output_path", str(out)]
    command += [] if "--samples" in command else limit(words)
    ended = subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True, text=True)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if "Error" in line]
        return None, lines[-1].strip() if lines else f"exit code {ended.returncode}"
    results = json.loads(max(out.rglob("results*.json")).read_text(encoding="utf-8"))["results"][task["task"]]
    return {metric: results[f"{metric},none"] for metric in task["metrics"]}, ""


def main() -> None:
    """Print the table; write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--datasets", required=True)
    parser.add_argument("--suite", default="quick,mmlu:5")
    parser.add_argument("--limit", type=int, help="the first rows alone")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what both write")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    started = time.monotonic()
    tasks = ours(words)
    seconds, command, record = time.monotonic() - started, written(words), []
    print("| task | rows | batch | metric | ours | lm_eval | same |\n|---|---|---|---|---|---|---|")
    for task in tasks:
        found, why = theirs(command, task, words)
        for metric, value in task["metrics"].items():
            other = found[metric] if found is not None else None
            same = "yes" if other == value else "no" if found is not None else why or "failed"
            row = {"task": task["task"], "shots": task["shots"], "rows": len(task["rows"]), "metric": metric}
            record.append(row | {"ours": value, "lm_eval": other, "same": other == value, "why": why})
            cells = (task["task"], len(task["rows"]), task["settings"]["batch_size"], metric, value, other, same)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    same = sum(row["same"] for row in record)
    print(f"\n{same} of {len(record)} the same to the last digit; ours took {seconds:.0f} s with start-up.")
    if words.out is not None:
        text = {"suite": words.suite, "settings": tasks[0]["settings"], "seconds": round(seconds, 1), "rows": record}
        words.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
