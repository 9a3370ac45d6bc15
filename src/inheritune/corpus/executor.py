"""The main module of the process that runs one step on datatrove's local executor: `python -m inheritune.corpus.executor JOB`."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import InherituneError, Refused
from inheritune.run_directory import write_json


def main() -> None:
    """Run one job, given as JSON on the command line, on datatrove's executor."""
    job = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from datatrove.executor.local import LocalPipelineExecutor

    step = {"Scan": Scan, "Tokenise": Tokenise}[job["step"]](**job["arguments"])
    executor = LocalPipelineExecutor(
        pipeline=[step],
        tasks=job["tasks"],
        workers=job["workers"],
        logging_dir=job["directory"],
        start_method="forkserver",
    )
    try:
        executor.run()
    except InherituneError as error:
        record = {"refused": isinstance(error, Refused), "message": str(error)}
        write_json(Path(job["directory"]) / "error.json", record)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input; when it dies, however it dies, there is nothing left to work for."""
    while os.read(
        0, 1
    ):  # not sys.stdin: a fork would copy its lock in the held state, and the copy would wait for ever
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
