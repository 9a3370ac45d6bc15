"""The main module of the process that runs a step on datatrove's executor: `-m inheritune.corpus.executor JOB`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, InherituneError, Refused
from inheritune.run_directory import write_json

_WATCH_SECONDS = 0.5


def main() -> None:
    """Run one job, given as JSON on the command line."""
    job = json.loads(sys.argv[1])
    directory = Path(job["directory"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_with_killed_worker, args=(directory,), daemon=True).start()
    from datatrove.executor.local import LocalPipelineExecutor

    executor = LocalPipelineExecutor(
        pipeline=[{"Scan": Scan, "Tokenise": Tokenise}[job["step"]](**job["arguments"])],
        tasks=job["tasks"],
        workers=job["workers"],
        logging_dir=job["directory"],
        start_method="forkserver",
    )
    try:
        executor.run()
    except InherituneError as error:
        _end(directory, error)
    except OSError as error:
        _end(directory, Failed(f"{error.filename or directory}: {error.strerror}; mend it, then start again to go on"))


def _end(directory: Path, error: InherituneError) -> NoReturn:
    """Tell the parent why, and end at once, workers and all."""
    write_json(directory / "error.json", {"refused": isinstance(error, Refused), "message": str(error)})
    os._exit(error.exit_code)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: when that closes, however it died, nobody waits for this."""
    # Not through sys.stdin: a fork would copy its lock while it is held, and the copy would wait for ever.
    while os.read(0, 1):
        pass
    os._exit(1)


def _end_with_killed_worker(directory: Path) -> None:
    """A pool waits for ever for the task of a worker that was killed (out of memory, say)."""
    import multiprocess  # type: ignore[import-untyped]

    workers = set()
    while True:
        workers.update(multiprocess.active_children())
        for worker in workers:
            if worker.exitcode is not None and worker.exitcode < 0:
                reason = f"a worker was killed by signal {-worker.exitcode} (9: out of memory, most likely)"
                _end(directory, Failed(f"{directory}: {reason}; lower data.workers and start again to go on"))
        time.sleep(_WATCH_SECONDS)


if __name__ == "__main__":
    main()
