"""Energy by the hardware's own counters, and the power to estimate it by where there is none. No torch.

Of a GPU the counter is NVML's, in millijoules since the driver was loaded (nvmlDeviceGetTotalEnergyConsumption, Volta
and later); it needs the package `nvidia-ml-py` (the extra `energy`). Of processors it is RAPL's, as Linux shows it
under /sys/class/powercap (kernel documentation, "Power Capping Framework"): microjoules of each package with all that
runs on it, and of its memory where that is counted; most systems let root alone read it. NVML counts the board, RAPL
the package: neither knows of fans, disks, power supplies.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.devices import CPU, named

NVML, RAPL = "nvml", "rapl"
POWERCAP = Path("/sys/class/powercap")
_EVERY_SECONDS = 20.0
"""RAPL's counters hold 65 kJ at least on most processors: at 1 kW they begin anew after a minute."""
_NAMES = (
    (r"RTX A6000", "a6000"),
    (r"A100-SXM4-80GB", "a100"),
    (r"H100 80GB HBM3", "h100"),
    (r"H200", "h200"),
    (r"(GeForce )?RTX 4090", "rtx4090"),
)
"""What drivers call the GPUs of `devices`, without the maker's name; other boards of a kind have other limits."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy."""

    key: str
    """What it counts: where several processes read the same counter, it is to count once."""
    source: str
    """`nvml` or `rapl`."""
    joules: Callable[[], float | None]
    """Since some moment; None where it cannot be read."""
    wraps_at: float | None = None
    """Joules at which it begins anew; None: it does not."""


def counters(gpu: str | None, *, powercap: Path = POWERCAP, nvml: str = "pynvml") -> list[Counter]:
    """The counters of what a process computes on; none where they cannot be read.

    Args:
        gpu: the GPU's UUID; None for a process that computes on the machine's processors.
        powercap: where Linux shows RAPL's counters.
        nvml: the module of `nvidia-ml-py`.
    """
    found = _of_processors(powercap) if gpu is None else _of_gpu(gpu, nvml)
    return found if all(counter.joules() is not None for counter in found) else []


def _of_gpu(uuid: str, module: str) -> list[Counter]:
    """A GPU's counter. A slice of one (MIG) has none of its own."""
    try:
        nvml: Any = importlib.import_module(module)
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return []

    def joules() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except nvml.NVMLError:
            return None

    return [Counter(uuid, NVML, joules)]


def _of_processors(powercap: Path) -> list[Counter]:
    """The packages' counters and their memory's: cores are part of a package, and `psys` holds packages."""
    places = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    names = [(place, (_text(place / "name") or "").strip()) for place in places]
    if not any(name.startswith("package-") for _, name in names):
        return []  # memory alone would pass for all of it
    return [_domain(place) for place, name in names if re.fullmatch(r"package-\d+(-die-\d+)?|dram", name)]


def _domain(place: Path) -> Counter:
    most = _number(place / "max_energy_range_uj")
    return Counter(
        f"{socket.gethostname()}/{place.name}",
        RAPL,
        lambda: None if (value := _number(place / "energy_uj")) is None else value / 1e6,
        None if most is None else most / 1e6,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


class Meter:
    """The energy of some counters since the meter was made; read often enough that none begins anew unseen.

    Args:
        of: the counters; with none it measures nothing.
        every_seconds: how often those that begin anew are read, by a thread.
    """

    def __init__(self, of: Sequence[Counter], *, every_seconds: float = _EVERY_SECONDS) -> None:
        self._counters = of
        self._last = {counter.key: counter.joules() for counter in of}
        self._joules = dict.fromkeys(self._last, 0.0)
        self._lost = not of or None in self._last.values()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if any(counter.wraps_at is not None for counter in of):
            threading.Thread(target=self._watch, args=(every_seconds,), name="energy", daemon=True).start()

    @property
    def sources(self) -> tuple[str, ...]:
        """`nvml`, `rapl`."""
        return tuple(dict.fromkeys(counter.source for counter in self._counters))

    def read(self) -> dict[str, float] | None:
        """Joules by the counter's key; None where there is no counter, or one failed meanwhile."""
        with self._lock:
            for counter in () if self._lost else self._counters:
                self._add(counter)
            return None if self._lost else dict(self._joules)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def _add(self, counter: Counter) -> None:
        """Add what a counter went on by; one that went back without a known range was set back by somebody."""
        now, before = counter.joules(), self._last[counter.key]
        if now is None or before is None or (now < before and counter.wraps_at is None):
            self._lost = True
            return
        self._joules[counter.key] += now - before + (counter.wraps_at or 0.0) * (now < before)
        self._last[counter.key] = now

    def _watch(self, every_seconds: float) -> None:
        while not self._ended.wait(every_seconds):
            self.read()


def together(readings: Iterable[dict[str, float] | None]) -> float:
    """Joules of several processes: of a counter that more than one of them read, the largest reading alone."""
    largest: dict[str, float] = {}
    for reading in readings:
        for key, joules in (reading or {}).items():
            largest[key] = max(joules, largest.get(key, 0.0))
    return sum(largest.values())


def rated_power(gpu: str | None, threads: int) -> tuple[float, str] | None:
    """The power to estimate a process's energy by, and where it comes from.

    Args:
        gpu: its GPU as the driver calls it; None for a process that computes on processors.
        threads: of a process that computes on processors.

    Returns:
        Watts: the board's limit, or as many cores' share of a processor's; None of a GPU without a figure.
    """
    if gpu is None:
        # `devices` speaks of all cores that this process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        device = named(CPU, "float32", cpu_memory_bytes=0)
        return None if device.watts is None else (device.watts / cores * threads, "power of cores, stated")
    name = next((ours for theirs, ours in _NAMES if re.fullmatch(theirs, gpu.removeprefix("NVIDIA "))), None)
    if name is None:
        return None
    device = named(name, "bfloat16", cpu_memory_bytes=0)
    return None if device.watts is None else (device.watts, device.source)
