"""Energy by counters: a fake tree of RAPL's, a fake NVML; wrap-around, failure, and power where there is none."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inheritune import devices, energy
from inheritune.energy import Counter, Meter, counters, rated_power, together

UUID = "GPU-1"


def domain(powercap: Path, place: str, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    folder = powercap / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages, cores of one, memory of one, the whole platform, and the same package by another interface."""
    domain(tmp_path, "intel-rapl:0", "package-0", 100_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 50_000)
    domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    domain(tmp_path, "intel-rapl:1", "package-1", 900_000)
    domain(tmp_path, "intel-rapl:2", "psys", 0)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    return tmp_path


def set_to(powercap: Path, **microjoules: int) -> None:
    places = {
        "package0": "intel-rapl:0",
        "dram": "intel-rapl:0:1",
        "package1": "intel-rapl:1",
        "core": "intel-rapl:0:0",
    }
    for name, value in microjoules.items():
        (powercap / places[name] / "energy_uj").write_text(f"{value}\n")


def test_packages_and_memory_count_and_what_is_part_of_them_does_not(powercap: Path) -> None:
    meter = Meter(counters(None, powercap=powercap))
    assert together([meter.read()]) == 0
    set_to(powercap, package0=300_000, dram=50_000, package1=950_000, core=999_999)
    assert together([meter.read()]) == pytest.approx(0.2 + 0.05 + 0.05)
    assert meter.sources == ("rapl",)
    meter.close()


def test_a_package_of_several_dies_counts_and_memory_alone_does_not(tmp_path: Path) -> None:
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    assert counters(None, powercap=tmp_path) == []
    package = domain(tmp_path, "intel-rapl:0", "package-0-die-0", 0)
    meter = Meter(counters(None, powercap=tmp_path))
    meter.read()
    for counter in (memory, package):
        counter.write_text("500000\n")
    assert together([meter.read()]) == pytest.approx(1.0)
    meter.close()


def test_a_counter_that_begins_anew_goes_on(powercap: Path) -> None:
    meter = Meter(counters(None, powercap=powercap))
    set_to(powercap, package1=100_000)  # from 0.9 J over 1.0 to 0.1
    assert together([meter.read()]) == pytest.approx(0.2)
    set_to(powercap, package1=50_000)
    assert together([meter.read()]) == pytest.approx(1.15)
    meter.close()


def test_a_thread_sees_what_begins_anew_between_readings() -> None:
    """Each reading stands at 0.6 J more than the one before, modulo 1: read only at the ends most would be lost."""
    read, enough = [0.0], threading.Event()

    def joules() -> float:
        read.append((read[-1] + 0.6) % 1.0)
        if len(read) > 12:
            enough.set()
        return read[-1]

    meter = Meter([Counter("a", "rapl", joules, wraps_at=1.0)], every_seconds=0.001)
    assert enough.wait(60)
    meter.close()
    # the first reading is where it begins
    assert together([meter.read()]) == pytest.approx(0.6 * (len(read) - 2))
    assert len(read) > 12


@pytest.mark.parametrize("spoil", ["missing", "a word"])
def test_what_cannot_be_read_is_not_counted_at_all(powercap: Path, spoil: str) -> None:
    file = powercap / "intel-rapl:1" / "energy_uj"
    file.unlink()
    if spoil == "a word":
        file.write_text("Permission denied")
    assert counters(None, powercap=powercap) == []
    assert Meter([]).read() is None


def test_no_powercap(tmp_path: Path) -> None:
    assert counters(None, powercap=tmp_path / "none") == []


def test_a_counter_that_fails_later_ends_the_measurement(powercap: Path) -> None:
    meter = Meter(counters(None, powercap=powercap))
    set_to(powercap, package0=200_000)
    assert meter.read() is not None
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.read() is None
    set_to(powercap, package0=300_000)
    assert meter.read() is None, "what was not read meanwhile is not known"
    meter.close()


class FakeNvml(SimpleNamespace):
    """`pynvml` with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: list[int | None], *, starts: bool = True) -> None:
        super().__init__(millijoules=millijoules, starts=starts)

    def nvmlInit(self) -> None:  # noqa: N802  (theirs)
        if not self.starts:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise self.NVMLError
        return f"handle of {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == f"handle of {UUID}"
        value: int | None = self.millijoules.pop(0) if len(self.millijoules) > 1 else self.millijoules[0]
        if value is None:
            raise self.NVMLError
        return value


def fake(monkeypatch: pytest.MonkeyPatch, *millijoules: int | None, **settings: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(list(millijoules), **settings))


def test_a_gpu_counts_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, 5_000, 5_000, 8_500, 9_000)
    meter = Meter(counters(UUID))
    assert meter.read() == {UUID: 3.5}
    assert meter.read() == {UUID: 4.0}
    assert meter.sources == ("nvml",)


@pytest.mark.parametrize(
    ("uuid", "settings", "millijoules"),
    [("GPU-2", {}, 1), (UUID, {"starts": False}, 1), (UUID, {}, None)],
    ids=["another GPU", "no driver", "a slice without a counter"],
)
def test_no_counter_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, uuid: str, settings: dict[str, Any], millijoules: int | None
) -> None:
    fake(monkeypatch, millijoules, **settings)
    assert counters(uuid) == []


def test_without_the_package() -> None:
    assert counters(UUID, nvml="no_such_module_of_nvidias") == []


@pytest.mark.parametrize("later", [None, 4_000])
def test_a_gpu_whose_counter_fails_or_is_set_back(monkeypatch: pytest.MonkeyPatch, later: int | None) -> None:
    fake(monkeypatch, 5_000, 5_000, later, 9_000)
    meter = Meter(counters(UUID))
    assert meter.read() is None
    assert meter.read() is None


def test_a_counter_that_several_processes_read_counts_once() -> None:
    assert together([{"host/0": 3.0, "GPU-1": 5.0}, {"host/0": 4.0, "GPU-2": 7.0}, None]) == 4.0 + 5.0 + 7.0


@pytest.mark.parametrize(
    ("gpu", "watts"),
    [
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA RTX A6000", 300),
        ("NVIDIA GeForce RTX 4090", 450),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_rated_power_is_of_that_very_board(gpu: str, watts: float | None) -> None:
    found = rated_power(gpu, threads=8)
    assert (found and found[0]) == watts
    assert found is None or "data sheet" in found[1] or "white paper" in found[1]


def test_every_board_with_figures_has_a_name() -> None:
    assert {ours for _, ours in energy._NAMES} == set(devices.SHEETS)


def test_power_of_a_cpu_goes_by_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    one, four = rated_power(None, threads=1), rated_power(None, threads=4)
    assert one is not None
    assert four is not None
    assert four[0] == pytest.approx(4 * one[0])
    assert one[0] == pytest.approx(350 / 56)
