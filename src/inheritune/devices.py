"""What devices can do by their makers' data sheets, so that costs can be reckoned before there is one. No torch.

Peaks are dense: a data sheet's larger figure, with sparsity, is twice that, and no training reaches it, since gradients
and weights are not sparse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from inheritune.errors import Refused, nearest

_USABLE_SHARE, _LIBRARIES_BYTES = 0.95, 644_245_094
"""Of a device's memory 5% go to an allocator's rounding and fragments, and 0.6 GiB to CUDA's or torch's own."""


@dataclass(frozen=True)
class Utilisation:
    """MFU: what share of a device's peak a training's own arithmetic reaches (Chowdhery et al. 2022, appendix B)."""

    low: float
    likely: float
    high: float
    source: str


@dataclass(frozen=True)
class Device:
    """One device, in the dtype that a training multiplies matrices in."""

    name: str
    """As `--device` takes it."""
    title: str
    dtype: str
    """Of matrix products: bfloat16 or float32."""
    peak_flops: float
    """A second, dense."""
    memory_bytes: int
    watts: float | None
    """Of the whole board at its limit; None where no data sheet says it."""
    source: str
    """Where peak, memory and power come from."""
    utilisation: Utilisation
    is_gpu: bool = True
    bounds: bool = True
    """Whether no program multiplies faster: true of a data sheet's peak, not of a rate that was stated or measured."""

    @property
    def usable_bytes(self) -> int:
        """What a training may take of its memory."""
        return max(0, int(_USABLE_SHARE * self.memory_bytes) - _LIBRARIES_BYTES)


ON_GPUS = Utilisation(
    0.25,
    0.40,
    0.55,
    "published trainings on GPUs and TPUs: GPT-3 0.21, PaLM 0.46 (Chowdhery et al. 2022, table 3), Llama 3 0.38 to "
    "0.43 (arXiv 2407.21783, table 4), Megatron-LM up to 0.56 (arXiv 2205.05198)",
)
ON_CPUS = {
    "float32": Utilisation(0.50, 0.60, 0.72, "54% to 70% of a large product's rate: docs/performance.md, float32"),
    "bfloat16": Utilisation(
        0.15,
        0.35,
        0.75,
        "of a large product's rate 19% to 27% with AMX, whose rate is far higher (docs/performance.md, bfloat16), 55% "
        "to 67% without (docs/records/smollm2)",
    ),
}


@dataclass(frozen=True)
class _Sheet:
    """A GPU's data sheet."""

    title: str
    bfloat16: float
    """teraFLOP/s, with float32 accumulation."""
    float32: float
    """teraFLOP/s, without tensor cores."""
    gibibytes: int
    """What sheets call GB."""
    watts: int
    source: str


_SHEETS = {
    "a6000": _Sheet("NVIDIA RTX A6000", 154.8, 38.7, 48, 300, "NVIDIA RTX A6000 data sheet"),
    "a100": _Sheet("NVIDIA A100 80GB SXM", 312, 19.5, 80, 400, "NVIDIA A100 data sheet, SXM"),
    "h100": _Sheet("NVIDIA H100 80GB SXM", 989.5, 67, 80, 700, "NVIDIA H100 data sheet, SXM"),
    "h200": _Sheet("NVIDIA H200 141GB SXM", 989.5, 67, 141, 700, "NVIDIA H200 data sheet, SXM"),
    "rtx4090": _Sheet("NVIDIA GeForce RTX 4090", 165.2, 82.6, 24, 450, "NVIDIA Ada white paper, table of the RTX 4090"),
}
SHEETS = tuple(_SHEETS)
"""GPUs that there are figures of, as `--device` takes them."""
CPU, MEASURED = "cpu", "measured"
NAMES = (*SHEETS, CPU, MEASURED)

_CORE_FLOPS = {"float32": 100e9, "bfloat16": 200e9}
"""A second and core: an AMD EPYC with AVX512-BF16 (benchmarks/LOG.md, machine A). With AMX (B): 195e9 and 1300e9."""
_CORE_WATTS = 6.25
"""Intel Xeon Platinum 8480+: 350 W for 56 cores."""


def named(name: str, dtype: str, *, cpu_memory_bytes: int) -> Device:
    """A device by its name in `NAMES`, other than `measured`.

    Args:
        name: of the device.
        dtype: of matrix products, bfloat16 or float32.
        cpu_memory_bytes: what `cpu` has: no sheet knows this machine.

    Raises:
        Refused: no such device.
    """
    name = name.lower()
    if name == CPU:
        return _cpu(dtype, cpu_memory_bytes)
    if name not in _SHEETS:
        raise Refused(f"--device {name!r}: no such device{nearest(name, NAMES)}; known: {', '.join(NAMES)}")
    sheet = _SHEETS[name]
    return Device(
        name=name,
        title=sheet.title,
        dtype=dtype,
        peak_flops=1e12 * (sheet.bfloat16 if dtype == "bfloat16" else sheet.float32),
        memory_bytes=sheet.gibibytes * 2**30,
        watts=float(sheet.watts),
        source=sheet.source,
        utilisation=ON_GPUS,
    )


def _cpu(dtype: str, memory_bytes: int) -> Device:
    """A CPU with as many cores as this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device(
        name=CPU,
        title=f"CPU, {cores} core{'s' if cores > 1 else ''}",
        dtype=dtype,
        peak_flops=cores * _CORE_FLOPS[dtype],
        memory_bytes=memory_bytes,
        watts=cores * _CORE_WATTS,
        source=f"stated, not measured: {_CORE_FLOPS[dtype] / 1e9:.0f} GFLOP/s and {_CORE_WATTS} W a core "
        f"(--device {MEASURED} is better)",
        utilisation=ON_CPUS[dtype],
        is_gpu=False,
        bounds=False,
    )
