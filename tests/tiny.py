"""Tiny references in directories, for the tests of surgery."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import FAMILIES, VOCABULARY, Family, seeded
from inheritune.errors import InherituneError
from inheritune.reference import Reference, find

TOKENS = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))  # (sequences, tokens)

Change = Callable[[PreTrainedModel], object]


def family(name: str) -> Family:
    """The entry of the matrix with this name."""
    return next(one for one in FAMILIES if one.name == name)


def saved(name: str, directory: Path, change: Change | None = None) -> Reference:
    """A family's model in a directory, found; with something about it changed before it was saved."""
    model = seeded(family(name))
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(directory)
    return find(str(directory))


def one_line(error: pytest.ExceptionInfo[InherituneError]) -> str:
    """What the user reads."""
    text = str(error.value)
    assert "\n" not in text
    return text


def content(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, row by row."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file_sums(directory: Path) -> dict[str, str]:
    """SHA-256 of every tensor of a directory's safetensors files, by name."""
    sums = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                assert name not in sums
                sums[name] = hashlib.sha256(content(file.get_tensor(name))).hexdigest()
    return sums


def loaded(directory: Path) -> PreTrainedModel:
    """A directory as transformers alone loads it, whole.

    Its tensors are moved to alignments of their own: a pass may round in another way on those that they have in files.
    """
    both: Any = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    model, info = both
    assert not any(info.values()), info
    assert isinstance(model, PreTrainedModel)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    model.eval()
    return model


@contextmanager
def watched(blocks: Any, given: list[Any] | None = None) -> Iterator[list[torch.Tensor]]:
    """The hidden state that each block gives; if a list is given, it gets what each is called with. All are copies."""
    outputs: list[torch.Tensor] = []

    def before(_block: nn.Module, arguments: Any, keywords: Any) -> None:
        if given is not None:
            given.append(copy.deepcopy((arguments, keywords)))

    def after(_block: nn.Module, _arguments: Any, output: Any) -> None:
        outputs.append(hidden(output).clone())

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(after).remove)
        yield outputs


def hidden(output: Any) -> torch.Tensor:
    """The hidden state among what a block gives."""
    state = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(state, torch.Tensor)
    return state
