"""Worker: the rate of large matrix products, in FLOP/s, by which utilisations are reckoned; measured, not a sheet's."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from clock import read_job

from inheritune.hardware import peak_flops


def main() -> None:
    """Measure in the job's dtype."""
    job = read_job()
    dtype = getattr(torch, job.dtype)
    if job.device == "cuda":
        torch.set_float32_matmul_precision("high")
    sheet, source = peak_flops(torch.device(job.device), dtype)
    rate = best_on_cuda(dtype) if job.device == "cuda" else sheet
    result = {"flops_per_second": rate, "peak": sheet, "peak_source": source}
    Path(job.result).write_text(json.dumps(result), encoding="utf-8")


def best_on_cuda(dtype: torch.dtype, size: int = 8192, times: int = 30) -> float:
    """The best of several products of two square matrices of random values."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.mm(left, right)
    for event in events[:-1]:
        event.record()
        torch.mm(left, right)
    events[-1].record()
    torch.cuda.synchronize()
    milliseconds = min(a.elapsed_time(b) for a, b in itertools.pairwise(events))
    return 2 * size**3 / (milliseconds / 1e3)


if __name__ == "__main__":
    main()
