"""Runs workers: one process each, the result or why there is none; and what an environment holds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""What `inheritune.hardware.keep_freed_memory` sets, as glibc reads it from a process's environment."""


def run_worker(
    python: str,
    script: str,
    job: dict[str, Any],
    scratch: Path,
    timeout: float | None,
    *,
    variables: dict[str, str] | None = None,
    ranks: int = 1,
) -> dict[str, Any]:
    """Run a worker in a process of its own.

    Args:
        python: its interpreter.
        script: its file, in this directory.
        job: what it is to do; `started` and `result` are added.
        scratch: for the job's file, the result and compile caches.
        timeout: seconds after which it is killed; None for never.
        variables: further ones of its environment.
        ranks: processes that it is, started by torchrun where there are several.

    Returns:
        What it measured; or `failed`, the last lines of what it said.
    """
    job_file, result = scratch / "job.json", scratch / "result.json"
    result.unlink(missing_ok=True)
    job_file.write_text(json.dumps(job | {"started": time.time(), "result": str(result)}), encoding="utf-8")
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "caches" / script.removesuffix(".py")),
        "TRITON_CACHE_DIR": str(scratch / "caches" / "triton"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(variables or {}),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    said = scratch / "output.txt"
    with said.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [python, *launcher, str(HERE / script), str(job_file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
            start_new_session=True,  # with what it starts (loaders, compilers) it can be ended as one group
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {timeout:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code or not result.exists():
        lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return {"failed": f"exit {code}: " + " / ".join(line.strip()[:300] for line in lines[-3:])}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def missing_modules(python: str, modules: tuple[str, ...]) -> list[str]:
    """Which modules an interpreter does not find; nothing is imported."""
    program = f"import importlib.util as u; print([m for m in {modules!r} if u.find_spec(m) is None])"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return list(json.loads(done.stdout.replace("'", '"'))) if done.returncode == 0 else list(modules)
