"""The memory that checkpoints are copied to: kept from save to save, and never the training's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inheritune.checkpoint import Checkpointer, Tensors
from inheritune.distributed import World


def tensors() -> Tensors:
    return {"model.a": torch.full((3, 2), 1.0), "optimizer.b": torch.zeros(()), "model.c": torch.ones(4).bfloat16()}


@pytest.mark.parametrize("reserved", [False, True])
def test_each_checkpoint_holds_what_was_there_when_it_was_saved(reserved: bool, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, World(0, 1, torch.device("cpu")), 3, print)
    training = tensors()
    if reserved:
        checkpointer.reserve(training)
    for step in (1, 2, 3):
        for tensor in training.values():
            tensor.fill_(step)
        checkpointer.save(step, training, {})
        for tensor in training.values():
            tensor.fill_(-1)  # the next step, while the thread writes
    assert checkpointer.finish()
    for step in (1, 2, 3):
        read = tensors()
        checkpointer.load(tmp_path / f"step_{step:08d}", read)
        assert all(bool((tensor == step).all()) for tensor in read.values())


def test_the_room_is_kept(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, World(0, 1, torch.device("cpu")), 3, print)
    training = tensors()
    checkpointer.reserve(training)
    assert checkpointer.finish()
    room = {name: tensor.data_ptr() for name, tensor in checkpointer._room.items()}
    for step in (1, 2):
        checkpointer.save(step, training, {})
        assert checkpointer.finish()
        assert {name: tensor.data_ptr() for name, tensor in checkpointer._room.items()} == room
    training["model.a"] = torch.ones(5)
    checkpointer.save(3, training, {})  # of another shape: made anew
    assert checkpointer.finish()
    assert checkpointer._room["model.a"].shape == (5,)
