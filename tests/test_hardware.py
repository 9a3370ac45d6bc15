"""Peaks by device name, memory by made-up files of the system."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inheritune import hardware
from inheritune.hardware import (
    available_memory_bytes,
    give_back_freed_memory,
    keep_freed_memory,
    memory_used_bytes,
    peak_flops,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A GPU of a given name; what would be measured on it is 1 FLOP/s."""
    monkeypatch.setattr(hardware, "_measured", lambda *_: 1.0)
    return lambda name: monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("A100-SXM-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA A40", 149.7),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_a_known_gpu_has_its_data_sheet_figure(name: str, teraflops: float, named: Callable[[str], None]) -> None:
    named(name)
    flops, source = peak_flops(GPU, torch.bfloat16)
    assert flops == pytest.approx(teraflops * 1e12)
    assert source.startswith("NVIDIA ")
    assert peak_flops(GPU, torch.float16)[0] == flops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40",
        "NVIDIA GB200",
        "AMD Instinct MI300X",
    ],
)
def test_another_gpu_is_measured(name: str, named: Callable[[str], None]) -> None:
    named(name)
    assert peak_flops(GPU, torch.bfloat16) == (1.0, "measured")


def test_a_dtype_without_a_figure_is_measured(named: Callable[[str], None]) -> None:
    named("NVIDIA H100 PCIe")
    assert peak_flops(GPU, torch.float64) == (1.0, "measured")


def test_float32_is_what_torch_computes_it_as(named: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    named("NVIDIA A100-SXM4-80GB")
    for precision, teraflops in (("highest", 19.5), ("high", 156)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        assert peak_flops(GPU, torch.float32)[0] == pytest.approx(teraflops * 1e12)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_MEASURE_SECONDS", 0.01)
    hardware._measured.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_is_measured_once_and_nobodys_random_numbers_change(dtype: torch.dtype, quick: None) -> None:
    before = torch.get_rng_state()
    flops, source = peak_flops(CPU, dtype)
    assert source == "measured"
    assert flops > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert peak_flops(CPU, dtype)[0] == flops


def test_the_best_of_growing_products_counts(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {128: 5e-4, 256: 5e-4, 512: 5e-4, 1024: 1e-6, 2048: 1e-5}
    sizes = []

    def seconds(matrix: torch.Tensor, product: torch.Tensor) -> float:
        sizes.append(len(matrix))
        return times[len(matrix)]

    monkeypatch.setattr(hardware, "_seconds", seconds)
    assert peak_flops(CPU, torch.float32)[0] == pytest.approx(2 * 1024**3 / 1e-6)
    assert sizes[:5] == [128, 256, 512, 1024, 2048]
    assert set(sizes[5:]) <= {2048}


def test_a_slow_machine_gets_no_larger_product(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seconds(matrix: torch.Tensor, product: torch.Tensor) -> float:
        sizes.append(len(matrix))
        return 0.005

    monkeypatch.setattr(hardware, "_seconds", seconds)
    assert peak_flops(CPU, torch.float32)[0] == pytest.approx(2 * 128**3 / 0.005)
    assert set(sizes) == {128}


class System:
    """Made-up files of a system with 16 GiB available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("meminfo", f"MemTotal: 99 kB\nMemFree: 5 kB\nMemAvailable:   {16 * GIB // 1024} kB\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, limit: int | str, used: int, cache: int) -> None:
        """A control group of version 2."""
        self.write(f"cgroups/{path}/memory.max", f"{limit}\n")
        self.write(f"cgroups/{path}/memory.current", f"{used}\n")
        self.write(f"cgroups/{path}/memory.stat", f"anon 1\nfile 2\ninactive_file {cache}\nactive_file 3\n")

    def first_group(self, path: str, limit: int, used: int, cache: int) -> None:
        """A control group of version 1."""
        self.write(f"cgroups/memory/{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"cgroups/memory/{path}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"cgroups/memory/{path}/memory.stat", f"inactive_file 1\ntotal_inactive_file {cache}\n")

    @property
    def available(self) -> int:
        root = self.root
        return available_memory_bytes(
            CPU, meminfo=root / "meminfo", membership=root / "membership", cgroups=root / "cgroups"
        )


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_without_groups_the_system_counts(system: System) -> None:
    assert system.available == 16 * GIB


@pytest.mark.parametrize("path", ["jobs/one", ""])
def test_a_group_allows_less(system: System, path: str) -> None:
    system.write("membership", f"0::/{path}\n")
    system.group(path, limit=8 * GIB, used=5 * GIB, cache=1 * GIB)
    assert system.available == 4 * GIB


def test_a_group_without_a_limit_allows_all(system: System) -> None:
    system.write("membership", "0::/job\n")
    system.group("job", limit="max", used=5 * GIB, cache=0)
    system.write("memory.max", "1\n")  # outside of the mount
    system.write("memory.current", "1\n")
    assert system.available == 16 * GIB


def test_the_group_above_may_allow_less(system: System) -> None:
    system.write("membership", "0::/jobs/one\n")
    system.group("jobs/one", limit=8 * GIB, used=0, cache=0)
    system.group("jobs", limit=9 * GIB, used=7 * GIB, cache=0)
    assert system.available == 2 * GIB


def test_in_a_container_the_mount_is_the_group(system: System) -> None:
    system.write("membership", "0::/docker/0123abcd\n")
    system.group("", limit=3 * GIB, used=GIB, cache=0)
    assert system.available == 2 * GIB


def test_groups_of_version_1(system: System) -> None:
    system.write("membership", "9:name=systemd:/\n4:memory,other:/job\n3:cpuset:/else\n0::/\n")
    system.first_group("job", limit=8 * GIB, used=6 * GIB, cache=GIB)
    system.first_group("", limit=2**63 - 4096, used=7 * GIB, cache=0)
    assert system.available == 3 * GIB


def test_no_memory_is_never_less_than_none(system: System) -> None:
    system.write("membership", "0::/job\n")
    system.group("job", limit=GIB, used=2 * GIB, cache=0)
    assert system.available == 0


@pytest.mark.parametrize("known", ["SC_AVPHYS_PAGES", "SC_PHYS_PAGES"])
def test_outside_linux_the_system_is_asked(known: str, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    (system.root / "meminfo").unlink()
    values = {known: 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf_names", dict.fromkeys(values, 0))
    monkeypatch.setattr(os, "sysconf", values.__getitem__)
    assert system.available == 4_096_000


def test_this_machine_has_memory() -> None:
    assert available_memory_bytes(CPU) > 0


def test_a_gpu_has_what_is_free_and_what_the_allocator_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 2 * GIB)
    assert available_memory_bytes(GPU) == 13 * GIB


def test_memory_used_is_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert memory_used_bytes(CPU, status=status) == 2 * 2**20
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 7)
    assert memory_used_bytes(GPU) == 7


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_used_where_there_is_no_status(
    platform: str, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    used = memory_used_bytes(CPU, status=tmp_path / "absent")
    assert least <= used < 1.5 * least


@pytest.mark.gpu
def test_a_gpu_for_real() -> None:
    flops, source = peak_flops(GPU, torch.bfloat16)
    assert flops > 0
    assert source
    assert 0 < available_memory_bytes(GPU) <= torch.cuda.get_device_properties(GPU).total_memory


class Library:
    """A C library that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def mallopt(self, name: int, value: int) -> int:
        self.asked.append((name, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.asked.append((pad,))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    return library


def test_freed_memory_is_kept_and_given_back(library: Library) -> None:
    assert keep_freed_memory()
    give_back_freed_memory()
    # malloc.h: M_MMAP_MAX -4, M_TRIM_THRESHOLD -1; mallopt(3): -1 disables trimming
    assert library.asked == [(-4, 0), (-1, -1), (0,)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("MALLOC_TOP_PAD_", "0")],
)
def test_an_allocator_that_is_tuned_by_hand_is_left_alone(
    name: str, value: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
    assert library.asked == []


@pytest.mark.parametrize("name", ["", "musl"])
def test_another_c_library_is_not_asked(name: str, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: (name, ""))
    assert not keep_freed_memory()
    give_back_freed_memory()
    assert library.asked == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_clears_no_pages_again() -> None:
    """In a process of its own, whose allocator is then set for good."""
    program = """
import resource, sys, torch
from inheritune import hardware
if sys.argv[1] == "kept":
    assert hardware.keep_freed_memory()
def touch():
    for _ in range(20):
        torch.ones(2**23)  # 32 MiB each
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
hardware.give_back_freed_memory()
pages = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")]
print(pages[0])
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    faults = {}
    for how in ("kept", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, check=True, env=environment
        )
        faults[how] = int(done.stdout.split()[0])
    assert faults["plain"] > 5 * (faults["kept"] + 50)  # 8,192 pages of 4 KiB a tensor; 16 of 2 MiB
