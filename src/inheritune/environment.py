"""What a run ran on: versions, hardware, the project's commit. Reads, never sets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "inheritune",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datatrove",
    "datasets",
    "numpy",
    "pandas",
    "sympy",
    "networkx",
)


def describe() -> dict[str, Any]:
    """The environment as a record."""
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": _commit(),
        "command": command(),
    }
    for name in _PACKAGES:
        try:
            record[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            record[name] = None
    return record


def command() -> str:
    """The command line of this process, so that a shell takes it as it was given."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # no such file outside Linux: the platform module's word is the next best
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _commit() -> str | None:
    """The commit of the project's own checkout, with `+` where it was changed since; None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0] + ("+" if run[1] else "")
