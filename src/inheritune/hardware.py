"""What the device can do and hold: its peak in matrix products, the memory that is free, the memory that was used."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

_MEASURE_SECONDS = 0.2
_LARGEST = {"cpu": 2048, "cuda": 4096}
"""Rows and columns of the largest matrices timed; two of them, in float32, take 34 MB on a CPU and 134 MB on a GPU."""


class _Peak(NamedTuple):
    """A GPU's dense peaks, in teraFLOP/s; where a data sheet gives those with sparsity alone, half of them."""

    name: str
    """Matches the device's whole name without its maker's: a slice of a GPU (MIG) or a laptop's has other figures."""
    half: float
    """bfloat16 and float16 with float32 accumulation."""
    tf32: float
    float32: float
    source: str


_PEAKS = (
    _Peak(r"B200", 2250, 1125, 75, "NVIDIA HGX B200 data sheet, an eighth"),
    _Peak(r"H200", 989.5, 494.5, 67, "NVIDIA H200 data sheet, SXM"),
    _Peak(r"H200 NVL", 835.5, 417.5, 60, "NVIDIA H200 data sheet, NVL"),
    _Peak(r"H100 80GB HBM3", 989.5, 494.5, 67, "NVIDIA H100 data sheet, SXM"),
    _Peak(r"H100 NVL", 835.5, 417.5, 60, "NVIDIA H100 data sheet, NVL"),
    _Peak(r"H100 PCIe", 756.5, 378, 51, "NVIDIA H100 data sheet, PCIe"),
    _Peak(r"A100-(SXM4?|PCIE)-[48]0GB|A100 80GB PCIe", 312, 156, 19.5, "NVIDIA A100 data sheet"),
    _Peak(r"A40", 149.7, 74.8, 37.4, "NVIDIA A40 data sheet"),
    _Peak(r"RTX A6000", 154.8, 77.4, 38.7, "NVIDIA RTX A6000 data sheet"),
    _Peak(r"L40S", 362.05, 183, 91.6, "NVIDIA L40S data sheet"),
    _Peak(r"L4", 121, 60, 30.3, "NVIDIA L4 data sheet"),
    _Peak(r"(GeForce )?RTX 4090", 165.2, 82.6, 82.6, "NVIDIA Ada white paper, table of the RTX 4090"),
    _Peak(r"(GeForce )?RTX 3090", 71, 35.6, 35.6, "NVIDIA GA102 white paper, table of the RTX 3090"),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The most that matrix products of a dtype reach on a device, dense, and where the figure comes from.

    float32 on a GPU counts as TF32 where torch is set to compute it so (`torch.set_float32_matmul_precision`).

    Returns:
        FLOP/s, and the data sheet; or `measured`, for the best of several large products timed here (once a process),
        by which a utilisation may exceed 1 by what timing varies.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
        for peak in _PEAKS:
            if re.fullmatch(peak.name, name):
                tf32 = torch.get_float32_matmul_precision() != "highest"
                figures = {
                    torch.bfloat16: peak.half,
                    torch.float16: peak.half,
                    torch.float32: peak.tf32 if tf32 else peak.float32,
                }
                if dtype in figures:
                    return figures[dtype] * 1e12, peak.source
    return _measured(device, dtype), "measured"


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of square products, in FLOP/s, of sizes that grow until one takes long enough to be timed."""
    largest = _LARGEST.get(device.type, _LARGEST["cpu"])
    best, size, ends = 0.0, 128, time.perf_counter() + _MEASURE_SECONDS
    while True:
        # Values of a generator of its own, so that nobody's random numbers change; zeros would be unduly fast on a GPU.
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(size, size, generator=generator).to(device, dtype)
        product = torch.empty_like(matrix)
        torch.mm(matrix, matrix, out=product)
        while True:
            seconds = _seconds(matrix, product)
            best = max(best, 2 * size**3 / seconds)
            grows = size < largest and seconds < _MEASURE_SECONDS / 16
            if grows or time.perf_counter() > ends:
                break
        if not grows:
            return best
        size *= 2


def _seconds(matrix: torch.Tensor, product: torch.Tensor) -> float:
    """How long one product takes."""
    _finish(matrix.device)
    started = time.perf_counter()
    torch.mm(matrix, matrix, out=product)
    _finish(matrix.device)
    return max(time.perf_counter() - started, 1e-9)


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def available_memory_bytes(
    device: torch.device,
    *,
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """The bytes that new allocations may take.

    On a GPU what the device has free and what torch's allocator holds without using it. On a CPU the least of what
    the system has and what each control group above this process still allows, its file cache being free to go.

    Args:
        device: of the allocation.
        meminfo: the system's memory, as Linux tells it.
        membership: this process's control groups, of version 1 or 2.
        cgroups: where these are mounted.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    system = _field(meminfo, "MemAvailable:")
    limits = [_system_bytes() if system is None else system * 1024, *_left_in_groups(membership, cgroups)]
    return max(0, min(limits))


def _system_bytes() -> int:
    """Free memory where there is no meminfo; all of it where even that is not told (macOS)."""
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _left_in_groups(membership: Path, cgroups: Path) -> Iterator[int]:
    """What every control group above this process allows still, in bytes; nothing for those without a limit."""
    for line in (_text(membership) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, limit, usage, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        # Within a container the path may be the host's, which is not there; the mount's root is then the group.
        group = root / path.strip("/")
        for place in (group, *group.parents):
            allowed, used = _text(place / limit), _text(place / usage)
            if allowed is not None and used is not None and allowed.strip() != "max":
                yield int(allowed) - int(used) + (_field(place / "memory.stat", cache) or 0)
            if place == root:
                break


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's names of what `mallopt` sets (malloc.h)."""


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors free, for the next ones, instead of handing it back to the system.

    glibc gives a large block pages of its own and returns them with the block, so that every step of a training on a
    CPU has the system clear the same pages again: a fifth to a third of its time (benchmarks/LOG.md). Afterwards the
    process keeps its peak; `give_back_freed_memory` ends that. Whoever tunes the allocator himself, by glibc's
    environment variables, is left alone; other C libraries and allocators do not know the call.

    Returns:
        Whether it is so now.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(name, value) == 1 for name, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)))


def give_back_freed_memory() -> None:
    """Hand back to the system what the C library keeps of freed memory, once; where it is not glibc, nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def restart_peak_memory(device: torch.device, *, clear: Path = Path("/proc/self/clear_refs")) -> bool:
    """Let `memory_used_bytes` begin anew, so that a training's peak is not that of one before it in the process.

    Args:
        device: of the training.
        clear: Linux's way to it for a process (proc(5), clear_refs: 5 sets VmHWM to the present).

    Returns:
        Whether it could be done; else the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        clear.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def gpu_uuid(device: torch.device) -> str:
    """A GPU's name in the world, as NVML takes it: numbers change with CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def memory_used_bytes(device: torch.device, *, status: Path = Path("/proc/self/status")) -> int:
    """The most memory in use since `restart_peak_memory`, in bytes: torch's on a GPU, the process's resident on a CPU.

    Args:
        device: of the training.
        status: this process, as Linux tells it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _field(status, "VmHWM:")
    if peak is not None:
        return peak * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _field(path: Path, name: str) -> int | None:
    """The number behind a name in a file of lines `NAME NUMBER ...`; None where file or name is absent."""
    for line in (_text(path) or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return int(words[1])
    return None
