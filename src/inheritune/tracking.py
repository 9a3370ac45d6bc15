"""Trackers: a training's numbers in TensorBoard, Weights & Biases or Trackio, each through its own library.

A tracker shows what `metrics.jsonl` holds anyway, so once a training is under way it may fail without taking the
training with it. A resumed training goes on in the tracker's same run. No library is imported before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json, write_json

_PROJECT = "inheritune"
_FINISH_SECONDS = 300
"""How long W&B may upload at the end; what is left then stays in its directory, for `wandb sync`."""


class Tracker(Protocol):
    """Where a training's numbers go beside `metrics.jsonl`."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log values, by name, of a step; several calls of one step add up."""

    def close(self) -> None:
        """Flush and close."""


class _Opened(NamedTuple):
    """A tracker's run, as its library does it."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def check_tracker(name: str) -> None:
    """Whether a tracker can be opened here, as far as that can be told beforehand.

    Args:
        name: `train.tracker`.

    Raises:
        Refused: its package is not installed, or W&B would send to its server and has no key.
    """
    if name == "none":
        return
    spec = importlib.util.find_spec(name)
    # A folder of that name in the current directory (W&B's own is called `wandb`) is found, too, but has no origin.
    if spec is None or spec.origin is None:
        raise Refused(f"train.tracker: {name} is not installed; pip install 'inheritune[{name}]'")
    if name == "wandb":
        _check_wandb_key()


def open_tracker(
    name: str, directory: Path, run: str, config: dict[str, Any], step: int, *, report: Callable[[str], None]
) -> Tracker | None:
    """Open a tracker's run, or go on with the one that was opened for this directory.

    Steps that a killed run logged after its checkpoint are logged again. TensorBoard drops the old ones; W&B keeps
    them, so they are not sent again; offline W&B and Trackio show both, which are equal.

    Args:
        name: `none`, `tensorboard`, `wandb` or `trackio`.
        directory: the training's own; TensorBoard and W&B write into a folder of it, Trackio into its own home.
        run: the run's name, such as `half/target`; what stands before the last slash groups runs.
        config: the recipe.
        step: the last step that the training keeps, 0 if it is new.
        report: gets a line if logging fails; the training goes on without the tracker.

    Returns:
        None for `none`.

    Raises:
        Failed: the library cannot start.
    """
    if name == "none":
        return None
    try:
        if name == "tensorboard":
            opened = _tensorboard(directory, config, step)
        else:
            opened = {"wandb": _wandb, "trackio": _trackio}[name](directory, run, config)
    except (Refused, Failed) as error:
        raise Failed(str(error)) from error
    except Exception as error:
        mend = "set WANDB_MODE=offline, or " if name == "wandb" else ""
        raise Failed(
            f"train.tracker: {name} cannot start ({_line(error)}); {mend}go on with --train.tracker none"
        ) from error
    return _Guarded(name, opened, report)


class _Guarded:
    """A tracker whose errors are told once and end it, not the training."""

    def __init__(self, name: str, opened: _Opened, report: Callable[[str], None]) -> None:
        self._name, self._opened, self._report = name, opened, report
        self._failed = False

    def log(self, values: dict[str, float], step: int) -> None:
        if not self._failed:
            self._guard(lambda: self._opened.log(values, step))

    def close(self) -> None:
        self._guard(self._opened.close)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if not self._failed:
                self._report(f"Tracker {self._name} failed ({_line(error)}); metrics.jsonl goes on without it.")
            self._failed = True


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _tensorboard(directory: Path, config: dict[str, Any], step: int) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter

    # What is purged is this step and all later ones, and a new training logs step 0.
    board = SummaryWriter(directory / "tensorboard", purge_step=step + 1 if step else 0)
    if step == 0:
        text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        board.add_text("recipe", "\n".join(f"    {line}" for line in text.split("\n")), 0)

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    return _Opened(log, board.close)


def _wandb(directory: Path, run: str, config: dict[str, Any]) -> _Opened:
    import wandb

    _check_wandb_key()
    # `create_new`: a run that the calling program has open is none of ours.
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=_identity(directory),
        resume="allow",
        reinit="create_new",
        name=run,
        group=_group(run),
        config=config,
        dir=str(directory),
        settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS),
    )
    first = opened.starting_step

    def log(values: dict[str, float], step: int) -> None:
        # W&B would drop earlier steps itself, with a warning for each.
        if step >= first:
            opened.log(values, step=step)

    return _Opened(log, opened.finish)


def _check_wandb_key() -> None:
    """Have W&B log in by its key, since `wandb.init` would ask for one on a terminal.

    Raises:
        Refused: it is to send to its server and has no key, or one that cannot be.
    """
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled"):
        return
    try:
        known, what = wandb.login(prompt=False), "has no API key here"
    except Exception as error:
        known, what = False, f"cannot log in ({_line(error)})"
    if not known:
        raise Refused(f"train.tracker: wandb {what}; run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")


def _trackio(directory: Path, run: str, config: dict[str, Any]) -> _Opened:
    import trackio

    # Trackio finds the run to resume by its name alone, in a store that all run directories share.
    name = f"{run}-{_identity(directory)}"
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        opened = trackio.init(
            project=_PROJECT, name=name, group=_group(run), config=config, resume="allow", embed=False
        )

    def close() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # the run's own `finish` would be called, and print, again at exit

    return _Opened(lambda values, step: opened.log(values, step=step), close)


def _identity(directory: Path) -> str:
    """What this directory's run is called in the tracker, now and when it is resumed."""
    path = directory / "tracker.json"
    held = read_json(path)
    if isinstance(held, dict) and isinstance(held.get("id"), str):
        return str(held["id"])
    made = uuid.uuid4().hex[:12]
    write_json(path, {"id": made})
    return made


def _group(run: str) -> str:
    return run.rpartition("/")[0] or run
