"""Several processes as the ranks of one run, over gloo: what torchrun does, without starting Python anew.

A server process imports the libraries once and is forked for each rank, so that ranks begin within a second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_PRELOADED = ["pytest", "transformers.models.llama.modeling_llama", "inheritune.cli", "inheritune.pipeline"]


@dataclass(frozen=True)
class Outcome:
    """How a rank ended."""

    value: Any = None
    """What its function gave."""
    error: str | None = None
    """The name of the exception that it raised instead."""
    text: str = ""
    """The exception's."""
    exit_code: int | None = None
    """The exception's, where it is one of ours."""
    said: bool = False
    """Whether the exception is marked as said by another rank."""
    trace: str = ""
    """The exception's traceback."""
    killed: bool = False
    """Whether the rank ended without a word."""
    output: str = ""
    """What it wrote to standard output and standard error."""


def start(count: int, work: Callable[..., Any], *arguments: Any, seconds: float = 60, **variables: str | None) -> Any:
    """Call a function of a module in `count` processes, each with a launcher's environment; returns their outcomes.

    Args:
        count: how many ranks.
        work: called with `arguments`; it joins the group by itself.
        arguments: what can be pickled.
        seconds: ranks that are still at work then are killed, and the test fails with what they were doing.
        variables: further environment variables; None takes one away.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with TemporaryDirectory(prefix="ranks-") as folder, contextlib.ExitStack() as stack:
        processes, pipes = [], []
        port = _free_port()
        for rank in range(count):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            ours, theirs = context.Pipe(duplex=False)
            stack.callback(ours.close)
            given = (theirs, _output(folder, rank), environment | variables, seconds, work, arguments)
            process = context.Process(target=_rank, args=given, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        try:
            ends = _collected(pipes, seconds)
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
        outputs = [_output(folder, rank).read_text(errors="replace") for rank in range(count)]
    late = [rank for rank in range(count) if rank not in ends]
    if late:
        raise TimeoutError(f"ranks {late} were still at work after {seconds} s\n" + outputs[late[0]])
    return [Outcome(**ends[rank], output=outputs[rank]) for rank in range(count)]


def values(count: int, work: Callable[..., Any], *arguments: Any, seconds: float = 60) -> list[Any]:
    """As `start`, where every rank is to end well; returns what the functions gave, by rank."""
    outcomes = start(count, work, *arguments, seconds=seconds)
    for rank, outcome in enumerate(outcomes):
        assert outcome.trace == "", f"rank {rank}: {outcome.trace}\n{outcome.output}"
        assert not outcome.killed, f"rank {rank} was killed\n{outcome.output}"
    return [outcome.value for outcome in outcomes]


def _collected(pipes: list[Connection], seconds: float) -> dict[int, dict[str, Any]]:
    """What each rank sent, by rank; a rank that is at work after so many seconds is missing."""
    ends: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + seconds
    while len(ends) < len(pipes) and time.monotonic() < until:
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in ends]
        for ready in wait(open_pipes, until - time.monotonic()):
            rank = next(rank for rank, pipe in enumerate(pipes) if pipe is ready)
            try:
                ends[rank] = pipes[rank].recv()
            except EOFError:
                ends[rank] = {"killed": True}
    return ends


def _output(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank-{rank}.txt"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _rank(
    pipe: Connection,
    output: Path,
    environment: dict[str, str | None],
    seconds: float,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A rank's process."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(max(1.0, seconds - 2), exit=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for name, content in environment.items():
        if content is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = content
    import torch

    torch.set_num_threads(1)
    try:
        end: dict[str, Any] = {"value": work(*arguments)}
    except BaseException as error:
        end = {
            "error": type(error).__name__,
            "text": str(error),
            "exit_code": getattr(error, "exit_code", None),
            "said": getattr(error, "said", False),
            "trace": traceback.format_exc(),
        }
    sys.stdout.flush()
    sys.stderr.flush()
    faulthandler.cancel_dump_traceback_later()
    pipe.send(end)
