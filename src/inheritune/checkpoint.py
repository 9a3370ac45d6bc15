"""Training state: save, list, load. A checkpoint is a directory that is either whole or absent.

`checkpoints/step_00001000/` holds `model.safetensors` and `optimizer.safetensors` (tensors alone) and `state.json`
(everything else). It is written under a temporary name, flushed, then renamed. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inheritune.errors import Failed
from inheritune.run_directory import read_json, write_json

_PREFIX = "step_"


def checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(
        path for path in directory.iterdir() if path.name.startswith(_PREFIX) and (path / "state.json").exists()
    )


def save(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint after `step` steps and delete all but the last `keep`.

    Raises:
        Failed: the file system refused (disk full, say); older checkpoints are kept.
    """
    final = directory / f"{_PREFIX}{step:08d}"
    files = {"model.safetensors": _unique_tensors(model), "optimizer.safetensors": _optimizer_tensors(optimizer)}
    _write(final, files, state | {"step": step})
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def save_weights(directory: Path, model: torch.nn.Module) -> None:
    """Write the weights alone into `directory`: the best so far, for `export: best`.

    Raises:
        Failed: as for `save`.
    """
    _write(directory, {"model.safetensors": _unique_tensors(model)}, None)


def _write(final: Path, files: dict[str, dict[str, torch.Tensor]], state: dict[str, Any] | None) -> None:
    """Write a directory of tensors under a temporary name, flush it to the disk, rename it."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        if state is not None:
            write_json(temporary / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in an error of its own
        shutil.rmtree(temporary, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise Failed(f"{final}: could not be written ({reason}); make room and start the same command again") from error


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimiser, in place; returns its `state.json`.

    Raises:
        Failed: it is damaged.
    """
    mend = f"delete {path}, and the same command goes on from the checkpoint before"
    tensors, moments = (_read(path / name, mend) for name in ("model.safetensors", "optimizer.safetensors"))
    with torch.no_grad():
        for name, tensor in _unique_tensors(model).items():
            tensor.copy_(tensors[name])
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            prefix = f"{group_index}.{index}."
            found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            # The step counter lives on the CPU unless the optimiser is capturable; the moments live with their
            # parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
    try:
        state = read_json(path / "state.json")
    except Failed:
        state = None
    if not isinstance(state, dict) or "step" not in state:
        raise Failed(f"{path / 'state.json'}: damaged, no training state; {mend}")
    return state


def _read(file: Path, mend: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise Failed(f"{file}: damaged ({' '.join(str(error).split())}); {mend}") from error


def _unique_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, a tied one once: `named_parameters` leaves out what it has named already."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `group.index.key`."""
    return {
        f"{group_index}.{index}.{key}": value.detach().contiguous()
        for group_index, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


def load_weights(directory: Path, model: torch.nn.Module) -> None:
    """Load what `save_weights` wrote, in place.

    Raises:
        Failed: it is damaged.
    """
    mend = "delete it and the checkpoints beside it, and the same command trains again"
    tensors = _read(directory / "model.safetensors", mend)
    with torch.no_grad():
        for name, tensor in _unique_tensors(model).items():
            tensor.copy_(tensors[name])
