"""Warm growth: a target keeps what it was trained to, and gets the reference's next layers above."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.reference import block_list


def grow(model: PreTrainedModel, trained: PreTrainedModel) -> None:
    """Give a start the weights of a target that was trained with fewer of its layers; what is above stays as it is.

    Embeddings, final norm and head come from the trained target with its blocks, since they were trained together.

    Args:
        model: the reference cut to its first n layers; changed in place.
        trained: a target of its first m < n layers, trained.

    Raises:
        Failed: `trained` is not such a target.
    """
    prefix, blocks = block_list(model)
    below = len(block_list(trained)[1])
    theirs = trained.state_dict()
    ours = model.state_dict(keep_vars=True)
    new = tuple(f"{prefix}.{index}." for index in range(below, len(blocks)))
    kept = {name: tensor for name, tensor in ours.items() if not name.startswith(new)}
    unlike = {name for name, tensor in kept.items() if name not in theirs or theirs[name].shape != tensor.shape}
    unlike |= theirs.keys() - kept.keys()
    if below >= len(blocks) or unlike:
        what = f"{min(unlike)} does not fit" if unlike else f"it has {below} layers, the start {len(blocks)}"
        raise Failed(f"a trained target can grow only into one of more layers of the same reference: {what}")
    with torch.no_grad():
        for name, tensor in kept.items():
            tensor.copy_(theirs[name])
