"""What all workers share: the job, the rows of tokens, and the clock, a hook behind every optimiser's step.

Runs in the peers' environments too, so it needs torch and numpy alone. The same hook times everybody: a step lasts from
the end of one optimiser step to the end of the next, whatever its trainer does in between.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

WARM_STEPS = 2
"""Steps before the timed ones: the first compiles."""


class Job(dict[str, Any]):
    """What the launcher asks of a worker: a JSON object, its keys as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    @property
    def all_steps(self) -> int:
        """More steps than are timed, so that no trainer comes to its own end."""
        return int(self.steps) + WARM_STEPS + 1

    @property
    def accumulation(self) -> int:
        """Micro-batches a step."""
        return int(self.batch_sequences) // int(self.micro_batch_sequences)


def read_job() -> Job:
    """The job whose file is this worker's argument."""
    return Job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """The sequences in the order in which they are trained on, (T + 1,) int64 each: inputs and the label behind."""

    def __init__(self, job: Job) -> None:
        self._stream = np.memmap(job.stream, dtype="<u2", mode="r")
        self._order = np.load(job.order)
        self._length = int(job.sequence_length)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> torch.Tensor:
        start = int(self._order[index]) * self._length
        return torch.from_numpy(self._stream[start : start + self._length + 1].astype(np.int64))


class _Finished(BaseException):
    """Ends a trainer after the last timed step; no trainer catches it."""


class Clock:
    """Times steps and memory; collects losses.

    Args:
        job: how many steps to time, and where.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._cuda = job.device == "cuda"
        self._marks: list[Any] = []
        self._losses: list[list[torch.Tensor]] = [[]]
        self._begun = self._first = 0.0
        self._set_up_memory = 0
        self._profiler: Any = None

    def note(self, loss: torch.Tensor) -> None:
        """Keep a micro-batch's loss; a step's is the sum over its micro-batches. Nothing waits for the device."""
        self._losses[-1].append(loss.detach())

    def run(self, train: Callable[[], Any], profiler: Any = None) -> None:
        """Train, until the last timed step is done; a profiler is told when the timed steps begin and end.

        Raises:
            RuntimeError: it ended before.
        """
        self._profiler = profiler
        hook = register_optimizer_step_post_hook(self._mark)
        self._begun = time.time()
        with contextlib.suppress(_Finished):
            train()
            raise RuntimeError(f"training ended after {len(self._marks)} steps, before the last that is timed")
        hook.remove()

    def _mark(self, *_: Any) -> None:
        """Note the end of a step."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())
        self._losses.append([])
        if len(self._marks) == 1:
            if self._cuda:
                torch.cuda.synchronize()
            self._first = time.time()
        if len(self._marks) == WARM_STEPS:
            self._set_up_memory = self._peak()
            self._reset_peak()
            if self._profiler is not None:
                self._profiler.start()
        if len(self._marks) == WARM_STEPS + self._job.steps:
            if self._profiler is not None:
                self._profiler.stop()
            raise _Finished

    def _peak(self) -> int:
        """The most memory since the last reset, in bytes: allocated on a GPU, resident otherwise."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated())
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def _reset_peak(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # some containers forbid it: the peak is then that of the whole process
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def finish(self, *, losses: list[float] | None = None, **facts: Any) -> None:
        """Write the result where the job says.

        Args:
            losses: each step's, where the trainer records them itself.
            facts: what else is worth keeping.
        """
        if self._cuda:
            torch.cuda.synchronize()
        pairs = zip(self._marks[WARM_STEPS - 1 :], self._marks[WARM_STEPS:], strict=False)
        seconds = [a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in pairs]
        steady = self._peak()
        found = [float(torch.stack(step).sum()) for step in self._losses if step]
        result = {
            "step_seconds": seconds,
            "set_up_seconds": self._begun - self._job.started,
            "first_step_seconds": self._first - self._begun,
            "losses": losses if losses is not None else found,
            "memory_bytes": max(self._set_up_memory, steady),
            "steady_memory_bytes": steady,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **facts,
        }
        Path(self._job.result).write_text(json.dumps(result), encoding="utf-8")
