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
    temporary = directory / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_unique_tensors(model), temporary / "model.safetensors")
        save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", state | {"step": step})
        for name in ("model.safetensors", "optimizer.safetensors"):
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, RuntimeError) as error:
        # safetensors turns the operating system's refusal into an error of its own, a subclass of Exception alone
        raise _cannot_save(final, temporary, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise _cannot_save(final, temporary, error) from error
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def _cannot_save(final: Path, temporary: Path, error: Exception) -> Failed:
    shutil.rmtree(temporary, ignore_errors=True)
    reason = " ".join(str(error).split())
    return Failed(
        f"{final}: the checkpoint could not be written ({reason}); make room and start the same command again"
    )


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimiser, in place; returns its `state.json`."""
    tensors = load_file(path / "model.safetensors")
    with torch.no_grad():
        for name, tensor in _unique_tensors(model).items():
            tensor.copy_(tensors[name])
    moments = load_file(path / "optimizer.safetensors")
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            prefix = f"{group_index}.{index}."
            found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            # The step counter lives on the CPU unless the optimiser is capturable; the moments live with their
            # parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
    state = read_json(path / "state.json")
    assert isinstance(state, dict)
    return state


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


def save_weights(directory: Path, model: torch.nn.Module) -> None:
    """Write the weights alone, atomically: the best so far, for `export: best`."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_unique_tensors(model), temporary / "model.safetensors")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def load_weights(directory: Path, model: torch.nn.Module) -> None:
    """Load what `save_weights` wrote, in place."""
    tensors = load_file(directory / "model.safetensors")
    with torch.no_grad():
        for name, tensor in _unique_tensors(model).items():
            tensor.copy_(tensors[name])
