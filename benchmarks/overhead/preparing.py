"""`prepare` against the bare tokenizer, and its time and memory by the number of documents."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from overhead import text
from overhead.figure import Figure, exponent, line_fit

TOKENIZER = Path(text.__file__).parents[2] / "src" / "inheritune" / "packaged" / "demo"

BARE = """
import json, sys, time
from pathlib import Path
from tokenizers import Tokenizer
texts = [json.loads(line)["text"] for line in Path(sys.argv[1]).open(encoding="utf-8")]
tokenizer = Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json")
encode = getattr(tokenizer, sys.argv[3])
started = time.perf_counter()
tokens = 0
for first in range(0, len(texts), 1000):
    tokens += sum(map(len, encode(texts[first : first + 1000], add_special_tokens=False)))
print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens, "documents": len(texts)}))
"""

OURS = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
from inheritune.config import DataConfig, SourceConfig
from inheritune.corpus import prepare, tokenizer_fingerprint
tokenizer_fingerprint(sys.argv[2])  # transformers is imported, and its tokenizer loaded for the first time
started = time.perf_counter()
manifest = prepare(DataConfig(sources=[SourceConfig(path=sys.argv[1])]), sys.argv[2], Path(sys.argv[3]))
print(json.dumps({
    "seconds": time.perf_counter() - started, "importing_seconds": started - began,
    "tokens": sum(entry["tokens"] for entry in manifest["sets"].values()),
}))
"""


def speed(scratch: Path, books: Path | None, *, quick: bool) -> list[Figure]:
    """Seconds of the bare tokenizer by those of `prepare`, in turns."""
    path = scratch / "speed.jsonl"
    count = text.write(path, 24 if quick else 48, 3000, books)
    rounds = 3 if quick else 5
    runs: dict[str, list[dict[str, Any]]] = {"encode_batch": [], "encode_batch_fast": [], "prepare": []}
    for turn in range(rounds):
        for name in sorted(runs, reverse=bool(turn % 2)):
            if name == "prepare":
                runs[name].append(prepared(path, scratch / "speed-out"))
            else:
                runs[name].append(run(BARE, path, TOKENIZER, name))
    figures = []
    for name in ("encode_batch", "encode_batch_fast"):
        ratios = [bare["seconds"] / ours["seconds"] for bare, ours in zip(runs[name], runs["prepare"], strict=True)]
        raw = {"ratios": ratios, "documents": count, "bytes": path.stat().st_size, "runs": runs}
        figures.append(
            Figure(f"prepare's speed in {name}'s", statistics.median(ratios), "", 0.9, at_least=True, raw=raw)
        )
    importing = statistics.median(run["importing_seconds"] for run in runs["prepare"])
    return [*figures, Figure("prepare, imports and first load of the tokenizer", importing, "s")]


def growth(scratch: Path, books: Path | None, *, quick: bool) -> list[Figure]:
    """Exponent of the time in documents, fixed cost apart, and growth of the peak memory."""
    rows = []
    smallest = 6.0 if quick else 24.0
    for megabytes in (0.1, smallest, 2 * smallest, 4 * smallest):
        path = scratch / f"growth-{megabytes:g}.jsonl"
        count = text.write(path, megabytes, 1000, books)
        made = [prepared(path, scratch / "growth-out") for _ in range(1 if quick else 3)]
        rows.append({"documents": count, "bytes": path.stat().st_size, "runs": made})
    fixed, *grown = rows
    times = [statistics.median(run["seconds"] for run in row["runs"]) for row in rows]
    memory = [statistics.median(run["peak_bytes"] for run in row["runs"]) for row in grown]
    sizes = [float(row["documents"]) for row in grown]
    power = exponent(sizes, [seconds - times[0] for seconds in times[1:]])
    raw = {"fixed_seconds": times[0], "fixed_documents": fixed["documents"], "rows": rows}
    return [
        Figure("prepare, exponent of time in documents", power, "", 1.1, raw=raw),
        Figure("prepare, peak memory of four times the corpus", memory[-1] / memory[0], "times", 1.1,
               raw={"peak_bytes": memory, "bytes_a_document": line_fit(sizes, memory)[1]}),
    ]  # fmt: skip


def prepared(path: Path, out: Path) -> dict[str, Any]:
    """Prepare a corpus in a new process and remove what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    record = run(OURS, path, TOKENIZER, out)
    shutil.rmtree(out)
    return record


def run(program: str, *arguments: object) -> dict[str, Any]:
    """What a program prints as JSON, the seconds of its process, the peak of its and its children's own memory."""
    words = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], sum(map(anonymous_bytes, family(process.pid))))
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    out, error = process.communicate()
    watching.join()
    if process.returncode:
        raise SystemExit(error)
    record: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return {**record, "process_seconds": time.perf_counter() - started, "peak_bytes": peak[0]}


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in family(int(child)))]


def anonymous_bytes(pid: int) -> int:
    """A process's memory that is no file's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
