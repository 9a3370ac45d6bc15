"""A step's portions as actors on Ray, run by datatrove's executor."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from datatrove.executor.ray import RayPipelineExecutor

from inheritune.corpus.cluster import PROGRESS, Portion
from inheritune.errors import Failed
from inheritune.run_directory import write_atomic

_INHERITED = ("PYTHONPATH", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")


class RayJobs:
    """A Ray actor a portion, of one core."""

    def __init__(self, directory: Path, workers: int) -> None:
        self._directory = directory / "ray"
        self._workers = workers
        self._thread: threading.Thread | None = None
        self._reason = ""

    def start(self, portion: Portion) -> None:
        """Connect to Ray, or start it here; run the portions, as many at a time as there are cores.

        Raises:
            Failed: Ray cannot be reached or started.
        """
        import ray

        temporary = self._directory / "temporary"  # datatrove logs to one directory for all users and runs of a node
        temporary.mkdir(parents=True, exist_ok=True)
        variables = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"TMPDIR": str(temporary)}
        where = f"at {os.environ['RAY_ADDRESS']}" if "RAY_ADDRESS" in os.environ else "on this machine"
        write_atomic(self._directory.parent / PROGRESS, f"connecting to Ray {where}")  # may take it minutes
        # Ray reports its use to its makers unless told otherwise.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
        except Exception as error:
            said = " ".join(str(error).split())
            raise Failed(
                f"data.executor: Ray {where} cannot be reached or started ({said}); mend it, then go on"
            ) from None
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < 1:
            raise Failed("data.executor: the Ray cluster has no cores; add a node, then start again to go on")
        executor = RayPipelineExecutor(
            pipeline=[portion],
            tasks=min(self._workers or cores, len(portion.undone)),
            mem_per_cpu_gb=0,  # reserved memory that no node has would be waited for forever
            logging_dir=str(self._directory),
            skip_completed=False,
        )
        self._thread = threading.Thread(target=self._run, args=(executor,), daemon=True)
        self._thread.start()

    def _run(self, executor: Any) -> None:
        try:
            executor.run()
        except Exception as error:
            self._reason = f"Ray says: {' '.join(str(error).split())}"

    def state(self) -> str | None:
        """How many of the cluster's cores are free."""
        import ray

        if self._thread is None or not self._thread.is_alive():
            return None
        free, cores = (int(found.get("CPU", 0)) for found in (ray.available_resources(), ray.cluster_resources()))
        return f"Ray: {free} of {cores} cores free"

    def end(self) -> str:
        """Where Ray's logs are."""
        return self._reason or f"the logs in {self._directory / 'logs'} or Ray's own say why"

    def stop(self) -> None:
        """Leave Ray, which ends the actors and what was started for the occasion."""
        import ray

        ray.shutdown()

    def finish(self) -> None:
        """Leave Ray once its executor has returned."""
        if self._thread is not None:
            self._thread.join()
        self.stop()
