"""What a user waits for before anything happens: `--help`, `import inheritune`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from overhead.figure import Figure

PROCESSES = 10


def measure() -> list[Figure]:
    """Median seconds of whole processes."""
    python = sys.executable
    script = Path(python).with_name("inheritune")
    helping = seconds([str(script), "--help"])
    importing = seconds([python, "-c", "import inheritune"])
    program = "import sys, inheritune; print('torch' in sys.modules)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return [
        Figure("inheritune --help", statistics.median(helping), "s", 0.5, raw={"seconds": helping}),
        Figure("import inheritune", statistics.median(importing), "s", 0.2, raw={"seconds": importing}),
        Figure("torch imported by it", float(done.stdout.strip() == "True"), "times", 0.0),
    ]


def seconds(command: list[str]) -> list[float]:
    """Wall time of a command, each time in a new process; the first, which fills the page cache, is not counted."""
    taken = []
    for _ in range(PROCESSES + 1):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        taken.append(time.perf_counter() - started)
    return taken[1:]
