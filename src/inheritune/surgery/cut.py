"""The cut: from a reference and layer indices to a target whose every tensor is accounted for."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from inheritune.errors import Failed, Refused
from inheritune.reference import LINEAGE_KEY, Reference, block_list, fresh, load
from inheritune.surgery.bits import parameters, same_bits, sha256, ties

Record = dict[str, Any]
Indices = tuple[int, ...]


@dataclass(frozen=True)
class TensorRecord:
    """Where one tensor of the target comes from."""

    name: str
    status: Literal["inherited", "tied", "fresh"]
    source: str | None
    """Inherited: the reference's tensor; tied: the target's tensor that it is the same as; fresh: None."""
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    """Of its bytes, row by row."""


@dataclass(frozen=True)
class Account:
    """Every tensor of a target, by the names that its state dict has."""

    indices: Indices
    """Which of the reference's blocks became the target's, in order."""
    reference_layers: int
    tensors: tuple[TensorRecord, ...]
    parameters_before: int
    """The reference's, a tied one once."""
    parameters_after: int
    """The target's, a tied one once."""

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors have each status."""
        counted = Counter(tensor.status for tensor in self.tensors)
        return {"inherited": counted["inherited"], "tied": counted["tied"], "fresh": counted["fresh"]}

    def record(self) -> Record:
        """As JSON."""
        return {
            "reference_layers": self.reference_layers,
            "layers_kept": list(self.indices),
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "counts": self.counts,
            "tensors": [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors],
        }


def parse_layers(layers: int | str, total: int) -> Indices:
    """The user's word for which layers to keep, as indices.

    Args:
        layers: how many of the first layers, such as 13 or "13", or "half" (of `total`, rounded down).
        total: layers of the reference.

    Raises:
        Refused: not such a word, or out of range.
    """
    word = str(layers).strip()
    number = int(word) if re.fullmatch("[0-9]{1,6}", word) else 0
    count = total // 2 if word == "half" else number
    if not 1 <= count <= total:
        half = f", or half ({total // 2})" if total > 1 else ""
        allowed = f"give a number from 1 to {total}{half}"
        raise Refused(f"layers: {word!r} is not possible, the reference has {total} layers; {allowed}")
    return tuple(range(count))


def spelled(indices: Indices) -> str:
    """Layer indices in words: 0 to 3, or 0, 2, 5."""
    if len(indices) > 1 and indices == tuple(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]} to {indices[-1]}"
    return ", ".join(map(str, indices))


def cut_config(config: PretrainedConfig, indices: Indices) -> PretrainedConfig:
    """A copy of a config with these layers: their number, and every list that has an entry a layer.

    Args:
        config: the reference's; left as it is.
        indices: the layers to keep.
    """
    cut = copy.deepcopy(config)
    if hasattr(cut, LINEAGE_KEY):
        delattr(cut, LINEAGE_KEY)  # the reference's own lineage is not the target's
    text = cut.get_text_config()
    total = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == total and _may_be_per_layer(name):
            setattr(text, name, type(value)(value[index] for index in indices))
    text.num_hidden_layers = len(indices)
    return cut


def inherit(
    source: PreTrainedModel | Reference, indices: Indices, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, Account]:
    """Make a target of a reference's layers, with its embeddings, final norm and head.

    Args:
        source: the reference, loaded or to be loaded here; it is not changed and shares no memory with the target.
        indices: the blocks to keep, in the target's order.
        dtype: of the target's floating-point tensors; None: each as in the reference.

    Returns:
        The target in eval mode on the reference's device, and the account of its tensors.

    Raises:
        Failed: the target has a tensor that the reference lacks or has in another shape, or the reverse; or one is tied
            in one of them alone.
    """
    model = load(source) if isinstance(source, Reference) else source
    target = _unfilled(model, indices)
    places = _places(model, target, indices)
    tied = ties(target)
    theirs, theirs_tied = model.state_dict(), ties(model, set(places.values()))
    if {places[name]: places[first] for name, first in tied.items()} != theirs_tied:
        raise Failed(
            f"{type(model).__name__}: tied in the target: {tied or 'none'}; in the reference: {theirs_tied or 'none'}"
        )
    records = []
    for name, tensor in target.state_dict(keep_vars=True).items():  # the parameters themselves, to be filled
        value = theirs[places[name]].detach()
        value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        if name not in tied:
            tensor.data = value.clone()
        if not same_bits(tensor, value):
            raise Failed(f"{name}: differs from the reference's {places[name]} after the cut")
        records.append(_tensor_record(name, places[name], tied.get(name), tensor))
    _copy_derived(model, target, indices)
    target.config.dtype = target.dtype
    if isinstance(source, Reference):
        setattr(target.config, LINEAGE_KEY, lineage_for_config(lineage(source, indices)))
    account = Account(indices, len(block_list(model)[1]), tuple(records), parameters(model), parameters(target))
    return target.eval(), account


def lineage(reference: Reference, indices: Indices) -> Record:
    """Where a target comes from: its reference, the layers kept, and the reference's own lineage, oldest first."""
    before = getattr(reference.config, LINEAGE_KEY, None)
    chain: list[Record] = []
    if isinstance(before, dict):
        chain = [*before.get("chain", []), {key: value for key, value in before.items() if key != "chain"}]
    return {
        "reference": reference.source,
        "revision": reference.revision,
        "fingerprint": reference.fingerprint,
        "layers_kept": list(indices),
        "reference_layers": reference.layers,
        "chain": chain,
        "license": reference.license,
    }


def lineage_for_config(lineage: Record) -> Record:
    """Of a lineage, what a config holds: without the recipe and the licence, which the model card holds."""
    return {key: value for key, value in lineage.items() if key not in ("recipe", "license")}


def random_like(target: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The control: a model of the target's architecture and dtype, from random init."""
    return fresh(cut_config(target.config, tuple(range(len(block_list(target)[1])))), seed)


def _unfilled(model: PreTrainedModel, indices: Indices) -> PreTrainedModel:
    """A model of the cut config, in the reference's class, tied as the reference is, its tensors not yet filled."""
    config = cut_config(model.config, indices)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        # transformers 5.24 leaves a head untied whose weights differ from the embedding's, although the config says
        # tied; the target, built from the config, would be tied and lose the head.
        config.tie_word_embeddings = False
        config.get_text_config().tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]), no_init_weights():
        target = type(model)(config)
    # transformers 5.24 ties inside init_weights, so a model built without init is not tied.
    target.tie_weights()
    target.generation_config = copy.deepcopy(model.generation_config)
    moved: Any = target
    return moved.to(model.device)  # type: ignore[no-any-return]


def _places(model: PreTrainedModel, target: PreTrainedModel, indices: Indices) -> dict[str, str]:
    """For each tensor of the target the reference's tensor that it is.

    Raises:
        Failed: the reference lacks it or has it in another shape; or has one outside the blocks that the target lacks.
    """
    blocks = f"{block_list(model)[0]}."
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    places = {}
    for name, tensor in target.state_dict().items():
        place = _place(name, blocks, indices)
        if place not in theirs:
            raise Failed(f"{name}: the reference has no {place}, and nothing is made up for it")
        if theirs[place] != tuple(tensor.shape):
            raise Failed(f"{name}: shape {tuple(tensor.shape)}, but the reference's {place} has {theirs[place]}")
        places[name] = place
    lost = [name for name in theirs if not name.startswith(blocks) and name not in places]
    if lost:
        raise Failed(f"{lost[0]}: outside the blocks, yet the target has no place for it ({len(lost)} such tensors)")
    return places


def _place(name: str, blocks: str, indices: Indices) -> str:
    """The reference's name for what the target calls `name`; `blocks` is how the names of the blocks' tensors begin."""
    if not name.startswith(blocks):
        return name
    position, _, rest = name.removeprefix(blocks).partition(".")
    return f"{blocks}{indices[int(position)]}.{rest}"


def _copy_derived(model: PreTrainedModel, target: PreTrainedModel, indices: Indices) -> None:
    """Take over the buffers that are computed from the config and never saved, such as rotary frequencies.

    transformers 5.24 keeps them in float32 whatever the dtype that it loads, but `model.to(bfloat16)` casts them; a
    target with other frequencies than its reference would compute something else.
    """
    blocks = f"{block_list(model)[0]}."
    theirs, saved = dict(model.named_buffers()), target.state_dict().keys()
    for name, buffer in target.named_buffers():
        value = theirs.get(_place(name, blocks, indices))
        if name not in saved and value is not None:
            buffer.data = value.detach().clone()


def _may_be_per_layer(name: str) -> bool:
    """Whether a list with as many entries as layers can have one a layer: class names and token ids have not."""
    return name != "architectures" and not name.endswith(("token_id", "token_ids"))


def _tensor_record(name: str, source: str, tied_to: str | None, tensor: torch.Tensor) -> TensorRecord:
    return TensorRecord(
        name=name,
        status="inherited" if tied_to is None else "tied",
        source=source if tied_to is None else tied_to,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        sha256=sha256(tensor),
    )
