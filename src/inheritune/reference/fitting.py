"""Fitting: whether weight files hold what a model is made of: every tensor, in its shape, not quantised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from transformers import PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference.internals import Naming
from inheritune.reference.weights import StoredTensor

_MISFIT, _MEND = "its weights do not fit its config", "give a complete model"


def check_fit(source: str, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse weight files that transformers could only complete with random values, or would have to dequantise.

    What is never read has to be there, too: the blocks that are cut run before those that are kept, and memory that
    nothing filled gives numbers like any other.

    Args:
        source: what errors call the reference.
        model: of its config, on the meta device.
        stored: the tensors of its weight files, by name.

    Raises:
        Refused: a tensor is missing, has another shape, or is quantised.
    """
    naming = Naming(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled: set[str] = set()
    converted: Counter[tuple[str, ...]] = Counter()
    for one in stored.values():
        places = naming.places(one.name)
        whole = one.dtype.is_floating_point and one.dtype.itemsize > 1
        if not whole and any(place in parameters for place in places):
            word = str(one.dtype).removeprefix("torch.")
            raise Refused(
                f"{source}: its weights are quantised ({one.name} is {word}); give the model in bfloat16, float16 or "
                "float32"
            )
        if naming.converted(one.name):
            converted[places] += math.prod(one.shape)
        elif places and one.shape != naming.held[places[0]].shape:
            expected = tuple(naming.held[places[0]].shape)
            raise Refused(f"{source}: {_MISFIT}: {one.name} has shape {one.shape}, not {expected}; {_MEND}")
        filled.update(places)
    tensors = model.state_dict(keep_vars=True)
    same = {id(tensors[name]) for name in filled}  # a tied one may be held under any of its names
    missing = [name for name, tensor in tensors.items() if id(tensor) not in same]
    if missing:
        raise Refused(f"{source}: {_MISFIT}: {missing[0]} is missing ({len(missing)} such tensors); {_MEND}")
    for places, count in converted.items():  # experts, say, which are one tensor in the module
        expected_count = sum(naming.held[place].numel() for place in places)
        if places and count != expected_count:
            what = f"{places[0]} is made of {count:,} values, not {expected_count:,}"
            raise Refused(f"{source}: {_MISFIT}: {what}; {_MEND}")
