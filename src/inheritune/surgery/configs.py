"""A config for the layers kept: every value that has to do with layers is cut or renumbered, and checked by building.

A config says in many ways which of its layers is of which kind: a list with an entry a layer (`layer_types`,
`no_rope_layers`), a list of indices (`mlp_only_layers`), a number of layers at the beginning or the end
(`first_k_dense_replace`, `max_window_layers`, `num_kv_shared_layers`), a period (`decoder_sparse_step`), a run-length
pattern (GPT-Neo's `attention_types`). No table of families could keep up with them. So values are read by their form,
and the reading is checked: the target is built without memory, and each of its blocks must be of the same kind as the
block it comes from: the same modules, shapes and settings, its own index apart. If they differ, other readings are
tried; if none fits, the cut is refused.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import LINEAGE_KEY, LOADING_ERRORS, Reference, block_list, one_line, weightless
from inheritune.surgery.layers import Indices

_ABOUT_LAYERS = re.compile("layer|block|_idx|_ids$|dense|period|interval|step|offset|pattern|every|freq|window|shared")
_FROM_THE_END = re.compile("shared|last")
_OF_AN_INDEX = re.compile("idx|index|layer|block|number")
_BEYOND = re.compile("nextn|mtp")
"""Layers that predict further tokens stand beside the decoder's: their number has nothing to do with a cut."""
_SHARES = re.compile("kv_shared|shared_kv|share_kv|kv_sharing_reuse")
_Kind = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]
"""Of a block: for each of its modules the class, the plain settings, and the tensors' shapes."""


def cut_config(config: PretrainedConfig, indices: Indices) -> PretrainedConfig:
    """A copy of a config with these layers, every value read in the first way that its form suggests; not checked.

    Args:
        config: the reference's; left as it is.
        indices: the layers to keep, in the target's order.
    """
    return _with(config, indices, {name: values[0] for name, values in _readings(config, indices).items()})


def fitting_config(reference: Reference, indices: Indices) -> tuple[PretrainedConfig, PreTrainedModel]:
    """A config with these layers, each of the same kind as the reference's, and a model of it on the meta device.

    Args:
        reference: whose layers are kept.
        indices: those layers, in the target's order.

    Raises:
        Refused: a kept block needs one that is cut; or no config of this family can say what the kept blocks are.
    """
    config, original = reference.config, kinds(reference.skeleton)
    _check_sources(original, indices)
    readings = _readings(config, indices)
    first = {name: values[0] for name, values in readings.items()}
    complaint = ""
    for changes in _variations(readings):
        try:
            cut = _with(config, indices, {**first, **changes})
            model = weightless(cut, trust_remote_code=reference.trust_remote_code)
            found = _difference(original, kinds(model), indices)
        except (Refused, StopIteration, *LOADING_ERRORS) as error:  # Zamba 2's config looks its blocks up by next()
            found = one_line(error)
        if found is None:
            return cut, model
        complaint = complaint or found
    raise Refused(
        f"layers: a {config.model_type} config cannot describe layers {', '.join(map(str, indices))}: {complaint}; "
        "choose others, such as the first ones"
    )


def kinds(model: PreTrainedModel) -> list[_Kind]:
    """What each block of a model is: its modules' classes, settings and shapes."""
    return [
        {
            path: (
                f"{type(module).__module__}.{type(module).__qualname__}",
                {name: value for name, value in vars(module).items() if not name.startswith("_") and _plain(value)},
                {
                    name: (tuple(tensor.shape), tensor.dtype)
                    for name, tensor in (*module._parameters.items(), *module._buffers.items())
                    if tensor is not None
                },
            )
            for path, module in block.named_modules()
        }
        for block in block_list(model)[1]
    ]


def forms(model: PreTrainedModel) -> list[str]:
    """What each block of a model is, as text: two are of the same kind where it is the same.

    Its own index, and lists with an entry a layer, are left out; of a share, such as a dropout's, only whether it is
    nothing is told.
    """
    found = kinds(model)
    return [repr(_by_form(kind, len(found))) for kind in found]


def _by_form(kind: _Kind, total: int) -> list[Any]:
    """What a block is, without what differs between any two."""
    return [
        (path, name, sorted(shapes.items()), sorted(_formal(settings, total).items()))
        for path, (name, settings, shapes) in sorted(kind.items())
    ]


def _formal(settings: dict[str, Any], total: int) -> dict[str, Any]:
    """A module's settings without its index and lists with an entry a layer; a share is whether there is any."""
    return {
        name: bool(value) if isinstance(value, float) else value
        for name, value in settings.items()
        if not _is_index(name, value) and not (isinstance(value, list | tuple) and len(value) == total)
    }


def _with(config: PretrainedConfig, indices: Indices, values: dict[str, Any]) -> PretrainedConfig:
    """A copy of a config with so many layers and these values, as it will be when it is read back from its file."""
    cut = copy.deepcopy(config)
    if hasattr(cut, LINEAGE_KEY):
        delattr(cut, LINEAGE_KEY)  # the reference's own lineage is not the target's
    text = cut.get_text_config()
    for name, value in values.items():
        setattr(text, name, value)
    total = text.num_hidden_layers
    text.num_hidden_layers = len(indices)
    return type(cut).from_dict(_by_layer_renumbered(cut.to_diff_dict(), indices, total))


def _by_layer_renumbered(values: dict[str, Any], indices: Indices, total: int) -> dict[str, Any]:
    """Renumber what is kept by layers' indices, at any depth: transformers' configs of unlike layers are written so."""
    if values and _layers_of(values, total) is not None:
        return _renumbered(values, indices)
    return {
        name: _by_layer_renumbered(value, indices, total)
        if isinstance(value, dict) and name not in (LINEAGE_KEY, "id2label")
        else value
        for name, value in values.items()
    }


def _readings(config: PretrainedConfig, indices: Indices) -> dict[str, list[Any]]:
    """For each value of a config that may have to do with layers: what it may become, the likeliest first."""
    text = config.get_text_config()
    total = text.num_hidden_layers
    counts = {"num_hidden_layers", text.attribute_map.get("num_hidden_layers")}
    found = {}
    for name, value in vars(text).items():
        if name.startswith("_") or name in counts or name in ("architectures", LINEAGE_KEY):
            continue
        if _BEYOND.search(name):
            continue
        readings: list[Any] = []
        if isinstance(value, list | tuple) and not name.endswith(("token_id", "token_ids")):
            readings = [type(value)(reading) for reading in _list_readings(name, list(value), indices, total)]
        elif isinstance(value, str) and len(value) == total and "pattern" in name:
            readings = ["".join(value[index] for index in indices)]
        elif isinstance(value, int) and not isinstance(value, bool) and _ABOUT_LAYERS.search(name):
            readings = _number_readings(name, value, indices, total)
        if readings:
            found[name] = [*readings, *([value] if value not in readings else [])]
    return found


def _list_readings(name: str, value: list[Any], indices: Indices, total: int) -> Iterator[list[Any]]:
    """A list has an entry a layer, or holds layers' indices, or run lengths."""
    runs = _expanded(value)
    if runs is not None and len(runs) == total:
        yield [[[runs[index]], 1] for index in indices]
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    ascending = whole and all(0 <= entry < total for entry in value) and value == sorted(set(value))
    held = [position for position, index in enumerate(indices) if index in value] if ascending else []
    if len(value) == total:
        if ascending and len(value) > 2:
            yield held  # every index: a list with an entry a layer would hold 0 and 1, or names
        yield [value[index] for index in indices]
    if ascending and value and _ABOUT_LAYERS.search(name):
        yield held


def _layers_of(value: dict[Any, Any], total: int) -> list[int] | None:
    """A dictionary's keys as layers' indices, if they are such."""
    keys = [int(key) for key in value if re.fullmatch("[0-9]+", str(key))]
    return keys if len(keys) == len(value) and max(keys) < total else None


def _renumbered(value: dict[Any, Any], indices: Indices) -> dict[Any, Any]:
    """A dictionary by layers' indices, for the layers kept."""
    kind = type(next(iter(value)))
    return {kind(position): value[kind(index)] for position, index in enumerate(indices) if kind(index) in value}


def _expanded(value: list[Any]) -> list[Any] | None:
    """A run-length pattern such as [[["global", "local"], 12]], written out; None if it is none."""
    expanded: list[Any] = []
    for entry in value:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) and type(entry[1]) is int):
            return None
        expanded += entry[0] * entry[1]
    return expanded or None


def _number_readings(name: str, value: int, indices: Indices, total: int) -> list[int]:
    """A number is a count of layers from the beginning or the end; or something else, then it stays or is searched."""
    if not 0 <= value <= total:
        return []
    below = sum(index < value for index in indices)
    above = sum(index >= total - value for index in indices)
    likely = [above, below] if _FROM_THE_END.search(name) else [below, value]
    periodic = re.search("period|interval|step|offset|every|freq|pattern", name)
    first = [value, *likely] if periodic or not re.search("layer|dense", name) else likely
    return list(dict.fromkeys([*first, *range(len(indices) + 2)]))


def _variations(readings: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """No change to the first readings; then one other reading, then two at once."""
    yield {}
    others = [(name, value) for name, values in readings.items() for value in values[1:]]
    for name, value in others:
        yield {name: value}
    pairs = itertools.combinations(others, 2)
    for (name, value), (other, second) in itertools.islice(pairs, 2000):
        if name != other:
            yield {name: value, other: second}


def _check_sources(reference: list[_Kind], indices: Indices) -> None:
    """Refuse a block that takes keys and values from a block that is cut.

    A family whose later blocks share them (Gemma 3n and 4) says of each module whether it does; they come from the last
    block before that computes its own and is of the same type.
    """
    for index in indices:
        for path, (_, settings, _) in reference[index].items():
            if not any(_SHARES.search(name) and value is True for name, value in settings.items()):
                continue
            source = next(
                (before for before in range(index - 1, -1, -1) if _gives(reference[before], path, settings)), None
            )
            if source is not None and source not in indices:
                raise Refused(
                    f"layers: block {index} uses the keys and values that block {source} computes, and {source} is "
                    "cut; keep both, or neither"
                )


def _gives(block: _Kind, path: str, user: dict[str, Any]) -> bool:
    """Whether a block computes what another, of the same type, uses."""
    settings = block[path][1] if path in block else {}
    own = not any(_SHARES.search(name) and value is True for name, value in settings.items())
    return own and all(settings.get(name) == user.get(name) for name in ("layer_type", "attention_type", "is_sliding"))


def _difference(reference: list[_Kind], target: list[_Kind], indices: Indices) -> str | None:
    """The first thing in which a target's block is not of its source's kind; None if all are."""
    if len(target) != len(indices):
        return f"it has {len(target)} blocks"
    for position, index in enumerate(indices):
        theirs, ours = reference[index], target[position]
        if theirs.keys() != ours.keys():
            odd = min(theirs.keys() ^ ours.keys())
            return f"block {index} {'has' if odd in theirs else 'has no'} {odd}, block {position} of the target differs"
        for path, (kind, settings, shapes) in theirs.items():
            other_kind, other_settings, other_shapes = ours[path]
            where = f"{path} of block {index}" if path else f"block {index}"
            if kind != other_kind:
                return f"{where} is a {kind.rpartition('.')[2]}, the target's a {other_kind.rpartition('.')[2]}"
            if shapes != other_shapes:
                return f"{where} has tensors {shapes}, the target's {other_shapes}"
            for name in sorted(settings.keys() | other_settings.keys()):
                one, two = settings.get(name), other_settings.get(name)
                # whether a block stores what later ones use makes no difference to what it computes
                same = one == two or name.startswith("store_")
                if not same and not _same_index(name, one, two, index, position, indices):
                    return f"{name} of {where} is {one!r}, the target's {two!r}"
    return None


def _same_index(name: str, one: Any, two: Any, index: int, position: int, indices: Indices) -> bool:
    """Whether two settings differ only as the index of a block does: its own, or that of one it takes from."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(two) == len(indices) <= len(one):
        # a list with an entry a layer
        return max(indices) < len(one) and bool(list(two) == [one[kept] for kept in indices])
    if not (_is_index(name, one) and _is_index(name, two)):
        return False
    return bool((one == index and two == position) or (0 <= two < len(indices) and indices[two] == one))


def _is_index(name: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _OF_AN_INDEX.search(name) is not None


def _plain(value: Any) -> bool:
    """Settings that can be compared: numbers, words, dtypes, and short sequences of them."""
    if isinstance(value, tuple | list):
        return len(value) <= 64 and all(_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)
