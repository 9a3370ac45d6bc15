"""The cut: which tensors of a reference's files become which of the target's, so that every one is accounted for.

It is decided by names and shapes alone; no weight is read. The target's files keep the reference's names, with the
blocks renumbered: whatever loads the reference loads the target in the same way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import LINEAGE_KEY, Naming, Reference, StoredTensor, block_list, parameters
from inheritune.surgery.bits import ties
from inheritune.surgery.configs import fitting_config
from inheritune.surgery.layers import Indices

Record = dict[str, Any]
Names = tuple[str, ...]
Status = Literal["inherited", "tied", "fresh"]


@dataclass(frozen=True)
class Kept:
    """A tensor of the reference's files that becomes one of the target's."""

    name: str
    """In the target's files."""
    source: StoredTensor
    module: Names
    """The target's tensors, by the names of its state dict, that it becomes, wholly or in part."""


@dataclass(frozen=True)
class Cut:
    """A target, decided but not yet written."""

    indices: Indices
    """Which of the reference's blocks become the target's, in order."""
    config: PretrainedConfig
    """The target's, its lineage not yet in it."""
    model: PreTrainedModel
    """The target without values, on the meta device."""
    kept: tuple[Kept, ...]
    tied: dict[str, str]
    """Tensors of the target's module that no file holds, and those that they are the same as."""
    twice: dict[str, str]
    """Tensors of the module that the config calls the same as another, although files hold both."""
    ignored: Names
    """Tensors of the reference's files that its own module has no place for."""

    @property
    def parameters(self) -> int:
        """The target's, a tied one once."""
        return parameters(self.model)


@dataclass(frozen=True)
class TensorRecord:
    """Where one tensor of a target comes from."""

    name: str
    """In the target's files; of a tied one, which no file holds, in the module."""
    status: Status
    source: str | None
    """Inherited: its name in the reference's files; tied: the target's tensor that it is the same as; fresh: None."""
    module: Names
    """The tensors of the target's module that it becomes: several where transformers splits it; where it fuses, several
    tensors of the files name the same one."""
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    """Of its bytes, row by row."""


def account(
    cut_indices: Indices, reference: Reference, tensors: list[TensorRecord], ignored: Names, after: int
) -> Record:
    """Every tensor of a target and what was left out, as `inheritance.json` holds it.

    Args:
        cut_indices: the layers kept.
        reference: what they come from.
        tensors: the target's.
        ignored: what the reference's files hold beyond its module.
        after: the target's parameters, a tied one once.
    """
    counted = Counter(tensor.status for tensor in tensors)
    return {
        **_origin(reference),
        "reference_layers": reference.layers,
        "layers_kept": list(cut_indices),
        "parameters_before": reference.parameters,
        "parameters_after": after,
        "counts": {status: counted[status] for status in ("inherited", "tied", "fresh")},
        "ignored": list(ignored),
        "tensors": [{**vars(tensor), "module": list(tensor.module), "shape": list(tensor.shape)} for tensor in tensors],
    }


def plan_cut(reference: Reference, indices: Indices) -> Cut:
    """Decide on a target: its config, and which tensor of the reference's files becomes which of its own.

    Args:
        reference: what `find` found; its weights are not read.
        indices: the blocks to keep, in the target's order; a block may be kept more than once.

    Raises:
        Refused: a kept block needs one that is cut; the family's config cannot describe the choice; blocks share
            weights; or the files' names do not say which block a tensor belongs to.
    """
    config, target = fitting_config(reference, indices)
    names = _Renaming(reference, reference.skeleton, target, indices)
    kept, ignored, filled = [], [], set()
    for stored in reference.stored.values():
        places = names.reference.places(stored.name)
        if not places:
            ignored.append(stored.name)
            continue
        for name, module in names.targets(stored.name, places):
            names.check_shape(stored, module)
            kept.append(Kept(name, stored, module))
            filled |= set(module)
    tied = _tied(target, filled)
    _check_whole(reference, target, filled | tied.keys())
    twice = {name: first for name, first in ties(target).items() if name in filled and first in filled}
    return Cut(indices, config, target, tuple(kept), tied, twice, tuple(ignored))


class _Renaming:
    """From the names of a reference's file to those of a target's."""

    def __init__(
        self, reference: Reference, reference_model: PreTrainedModel, target: PreTrainedModel, indices: Indices
    ) -> None:
        self.reference = Naming(reference_model)
        self._target = Naming(target)
        self._source = reference.source
        self._blocks = f"{block_list(reference_model)[0]}."
        self._indices = indices
        shared = [(one, two) for one, two in ties(reference_model).items() if one.startswith(self._blocks)]
        if shared:
            one, two = shared[0]
            raise Refused(
                f"{reference.source}: {one} is the same tensor as {two}: blocks that share weights cannot be cut"
            )

    def targets(self, name: str, places: Names) -> list[tuple[str, Names]]:
        """What a tensor of the reference's file is called in the target's, and what it becomes there; none if cut."""
        blocks = {self._block(place) for place in places}
        if len(blocks) > 1:
            raise Refused(f"{self._source}: {name} belongs to several blocks at once, so layers cannot be told apart")
        block = blocks.pop()
        if block is None:
            return [(name, places)]
        found = []
        for position, index in enumerate(self._indices):
            if index == block:
                module = tuple(self._moved(place, position) for place in places)
                found.append((self._renumbered(name, index, position, module), module))
        return found

    def check_shape(self, stored: StoredTensor, module: Names) -> None:
        """A tensor must have a place, and fit if it is taken as it is: some families have a slice a layer in one."""
        lost = [place for place in module if place not in self._target.held]
        if lost:
            raise Refused(f"{self._source}: the target has no {lost[0]}, which {stored.name} becomes; it cannot be cut")
        shape = tuple(self._target.held[module[0]].shape)
        if len(module) == 1 and not self.reference.converted(stored.name) and shape != stored.shape:
            raise Refused(
                f"{self._source}: {stored.name} has shape {stored.shape}, but the target's {module[0]} {shape}: it "
                "cannot be inherited as it is"
            )

    def _block(self, place: str) -> int | None:
        """The block that a tensor of the module lies in."""
        rest = place.removeprefix(self._blocks)
        return int(rest.partition(".")[0]) if place.startswith(self._blocks) else None

    def _moved(self, place: str, position: int) -> str:
        rest = place.removeprefix(self._blocks).partition(".")[2]
        return f"{self._blocks}{position}.{rest}"

    def _renumbered(self, name: str, index: int, position: int, module: Names) -> str:
        """The name with the block's number changed: of its numbers, that which moves it in the module as it should."""
        pieces = name.split(".")
        found = []
        for place, piece in enumerate(pieces):
            if piece == str(index):
                candidate = ".".join([*pieces[:place], str(position), *pieces[place + 1 :]])
                if self._target.places(candidate) == module:
                    found.append(candidate)
        if len(set(found)) != 1:
            raise Refused(f"{self._source}: which number in {name} is the block's is not clear, so it cannot be cut")
        return found[0]


def _tied(target: PreTrainedModel, filled: set[str]) -> dict[str, str]:
    """Tensors that no file holds but that are the same as one that a file holds."""
    groups: dict[str, list[str]] = {}
    for name, first in ties(target).items():
        groups.setdefault(first, [first]).append(name)
    return {
        name: next(one for one in group if one in filled)
        for group in groups.values()
        if any(one in filled for one in group)
        for name in group
        if name not in filled
    }


def _check_whole(reference: Reference, target: PreTrainedModel, accounted: set[str]) -> None:
    """Nothing is made up: what the target has comes from the reference's files, or is tied to something that does."""
    missing = [name for name in target.state_dict() if name not in accounted]
    if missing:
        raise Refused(
            f"{reference.source}: nothing in its files becomes the target's {missing[0]} ({len(missing)} such "
            "tensors), so it cannot be cut"
        )


def lineage(reference: Reference, indices: Indices, init: str = "inherit") -> Record:
    """Where a target comes from: its reference, the layers kept, and the reference's own lineage, oldest first."""
    before = getattr(reference.config, LINEAGE_KEY, None)
    chain: list[Record] = []
    if isinstance(before, dict):
        older = before.get("chain")
        chain = [step for step in older if isinstance(step, dict)] if isinstance(older, list) else []
        chain.append({key: value for key, value in before.items() if key != "chain"})
    return {
        "reference": reference.source,
        "revision": reference.revision,
        "fingerprint": reference.fingerprint,
        **_origin(reference),
        "init": init,
        "layers_kept": list(indices),
        "reference_layers": reference.layers,
        "chain": chain,
        "license": reference.license,
    }


def _origin(reference: Reference) -> Record:
    """Of a reference that is a GGUF file: which one, and what its weights were quantised in."""
    if reference.gguf is None:
        return {}
    return {
        "gguf": {
            "file": reference.file or Path(reference.source).name,
            "sha256": reference.gguf.sha256,
            "dtype": reference.dtype,
        },
        "dequantised_from": reference.dequantised_from,
    }


def lineage_for_config(lineage: Record) -> Record:
    """Of a lineage, what a config holds: without the recipe and the licence, which the model card holds."""
    return {key: value for key, value in lineage.items() if key not in ("recipe", "license")}
