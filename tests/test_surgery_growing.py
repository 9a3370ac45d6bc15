"""Warm growth: what comes from the trained target, what from the reference, and what fits neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.reference import block_list
from inheritune.surgery import grow, inherit
from tiny import loaded, saved

NAMES = ["llama", "gpt2", "opt", "gpt_neox", "bloom", "mpt"]


def trained(directory: Path) -> PreTrainedModel:
    """A model as if it had been trained: every parameter is another one."""
    model = loaded(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_put_on_top_of_what_was_trained(name: str, tmp_path: Path) -> None:
    reference = saved(name, tmp_path / "reference")
    inherit(reference, (0, 1), tmp_path / "two")
    inherit(reference, (0, 1, 2), tmp_path / "three")
    below, model = trained(tmp_path / "two"), loaded(tmp_path / "three")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grow(model, below)
    prefix = block_list(model)[0]
    for key, value in model.state_dict().items():
        above = key.startswith(f"{prefix}.2.")
        assert torch.equal(value, before[key] if above else below.state_dict()[key]), key
    assert any(key.startswith(f"{prefix}.2.") for key in before)


def test_only_into_more_layers_of_the_same(tmp_path: Path) -> None:
    reference = saved("llama", tmp_path / "reference")
    inherit(reference, (0, 1), tmp_path / "two")
    two = loaded(tmp_path / "two")
    with pytest.raises(Failed, match="it has 2 layers, the start 2"):
        grow(loaded(tmp_path / "two"), two)
    with pytest.raises(Failed, match="does not fit"):
        grow(loaded(tmp_path / "reference"), loaded(saved("gpt2", tmp_path / "other").path))
