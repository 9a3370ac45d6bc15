"""A reference that runs although it may not fit into memory: each block is there only while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.reference.finding import Reference
from inheritune.reference.internals import Naming, align, fill, hollow, tie
from inheritune.reference.structure import block_list
from inheritune.reference.weights import StoredTensor, WeightReader, one_line


@contextlib.contextmanager
def streamed(reference: Reference) -> Iterator[PreTrainedModel]:
    """The reference as a model that reads each block from the files when it is called, and lets the one before go.

    What lies outside the blocks (embeddings, final norm, head) is filled at once. The tensors are those that
    `from_pretrained` loads, by the same conversions.

    Args:
        reference: its blocks must not share weights.

    Raises:
        Failed: a tensor of the files has another shape than the config says.
    """
    model = hollow(reference.config, reference.torch_dtype, trust_remote_code=reference.trust_remote_code)
    naming, (prefix, blocks) = Naming(model), block_list(model)
    outer: list[StoredTensor] = []
    by_block: dict[int, list[StoredTensor]] = {index: [] for index in range(len(blocks))}
    held: set[str] = set()
    for stored in reference.stored.values():
        places = naming.places(stored.name)
        held.update(places)
        for place in places[:1]:
            inside = place.startswith(f"{prefix}.")
            group = by_block[int(place.removeprefix(f"{prefix}.").partition(".")[0])] if inside else outer
            group.append(stored)
    reader = WeightReader()

    def read(stored: list[StoredTensor]) -> None:
        try:
            fill(model, {one.name: reader.read(one) for one in stored}, reference.torch_dtype)
        except (ValueError, RuntimeError) as error:
            raise Failed(f"{reference.source}: its weights do not fit its config: {one_line(error)}") from error

    read(outer)
    tie(model, naming.held.keys() - held)
    align(model)
    present: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []

    def let_go() -> None:
        for module, parameters, buffers in present:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        present.clear()

    def bring(index: int, block: nn.Module) -> None:
        let_go()
        present.extend((module, dict(module._parameters), dict(module._buffers)) for module in block.modules())
        read(by_block[index])
        align(block)

    def hook(index: int) -> Any:
        return lambda block, _arguments: bring(index, block)

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(hook(index)).remove)
        stack.callback(let_go)
        yield model
