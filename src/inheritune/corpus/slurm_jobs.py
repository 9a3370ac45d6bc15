"""A step's portions as one job array of a Slurm cluster, submitted by datatrove's executor."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor

from inheritune.config import SlurmConfig
from inheritune.corpus.cluster import Portion
from inheritune.errors import Failed
from inheritune.run_directory import read_json, write_json

_WATCH_SECONDS = 0.2
_UNREACHABLE_SECONDS = 600
_CANCEL_SECONDS = 15


class _SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    def launch_merge_stats(self) -> None:
        """No further job: nobody reads the statistics, and after a failure it would wait in the queue for ever."""


class SlurmJobs:
    """One job array, an element a portion."""

    def __init__(self, directory: Path, workers: int, settings: SlurmConfig) -> None:
        self._directory = directory / "slurm"
        self._workers = workers
        self._settings = settings
        self._id: str | None = None
        self._submitting = threading.Lock()
        self._unreachable_since: float | None = None

    def start(self, portion: Portion) -> None:
        """Submit the array; that of an earlier run which was cut off is cancelled.

        Raises:
            Failed: sbatch did not take it.
        """
        self._directory.mkdir(exist_ok=True)
        earlier = read_json(self._directory / "job.json")
        if earlier is not None:
            _slurm("scancel", earlier["id"])
        executor = _SlurmExecutor(
            pipeline=[portion],
            tasks=min(self._workers, len(portion.undone)),
            time=str(self._settings.time_limit_minutes),
            partition=self._settings.partition,
            mem_per_cpu_gb=self._settings.memory_gigabytes,
            job_name="inheritune",
            qos="",
            logging_dir=str(self._directory),
            skip_completed=False,
            with_srun=False,
        )
        with self._submitting:
            try:
                executor.run()
            except subprocess.CalledProcessError as error:
                log = (self._directory.parent / "log.txt").read_text(errors="replace").strip().splitlines()
                said = next((line for line in reversed(log) if line.startswith("sbatch:")), f"code {error.returncode}")
                raise Failed(f"data.slurm: the jobs were not taken ({said}); mend it, then go on") from None
            self._id = executor.job_id
            write_json(self._directory / "job.json", {"id": self._id})

    def state(self) -> str | None:
        """How many elements run and wait, and for what.

        Raises:
            Failed: squeue has not answered for ten minutes.
        """
        asked = _slurm("squeue", "--noheader", "--array", f"--jobs={self._id}", "--format=%T %r")
        if asked.returncode != 0 and "Invalid job id" not in asked.stderr:
            self._unreachable_since = self._unreachable_since or time.monotonic()
            said = (asked.stderr.strip().splitlines() or [f"code {asked.returncode}"])[-1]
            if time.monotonic() - self._unreachable_since > _UNREACHABLE_SECONDS:
                raise Failed(
                    f"squeue: no answer for {_UNREACHABLE_SECONDS // 60} minutes ({said}); start again to go on"
                )
            return f"Slurm job {self._id}: squeue does not answer ({said})"
        self._unreachable_since = None
        elements = Counter(line.strip() for line in asked.stdout.splitlines() if line.strip())
        if asked.returncode != 0 or not elements:
            return None
        words = []
        for element, count in sorted(elements.items()):
            state, _, reason = element.partition(" ")
            words.append(f"{count} {state.lower()}" + (f" ({reason})" if reason not in ("", "None") else ""))
        return f"Slurm job {self._id}: {', '.join(words)}"

    def end(self) -> str:
        """The last line that a job's log calls an error, if there is one."""
        last = ""
        for log in sorted((self._directory / "slurm_logs").glob(f"{self._id}_*.out")):
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()]
            if errors:
                return f"{log} says: {errors[-1].strip()}"
            last = f"{log} says: {lines[-1].strip()}" if lines else last
        unknown = "left no log: it was cancelled before it began, or its nodes do not share this file system"
        return last or f"Slurm job {self._id} {unknown}"

    def stop(self) -> None:
        """Cancel the array, and give its jobs time to end, since what they write in may be removed next."""
        with self._submitting:
            if self._id is None:
                return
            _slurm("scancel", self._id)
            until = time.monotonic() + _CANCEL_SECONDS
            while time.monotonic() < until and self.state() is not None:
                time.sleep(_WATCH_SECONDS)

    def finish(self) -> None:
        """Nothing is left to cancel."""
        (self._directory / "job.json").unlink()


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
