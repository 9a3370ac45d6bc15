"""The question that `inheritune depth` answers, what its choices cost, and what is refused before it begins."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from inheritune import surgery
from inheritune.config import TrainConfig
from inheritune.depth import Budget, depths_to_try
from inheritune.distributed import World
from inheritune.errors import Failed, Refused
from inheritune.memory import predicted
from inheritune.parallel import compute_dtype
from inheritune.pipeline.checks import no_empty_parents
from inheritune.pipeline.direct import prepared_shards
from inheritune.planning import training_flops_per_token
from inheritune.probing import Candidate, candidates, least_tokens_by_depth
from inheritune.reference import Reference, prefix_parameters
from inheritune.run_directory import clear, lock, read_json, write_json
from inheritune.tokens import Prepared, TokenSet

Record = dict[str, Any]

BATCH_SEQUENCES = 8
"""Of a step of the probe where nothing else is said, and of a forward pass of every measurement."""
_DEVELOPMENT_TOKENS = 32_768
"""Of the development set the first documents, up to so many tokens, are looked at: a probe measures on them often."""
_ASKED = "asked.json"


@dataclass(frozen=True)
class Choice:
    """A choice of layers that can be cut, and what is known of it beforehand."""

    candidate: Candidate
    parameters: int
    memory_bytes: int | None
    """At the peak of a training step of one sequence; None where the family does not let it be predicted."""
    flops_per_token: float


@dataclass(frozen=True)
class Asked:
    """The question: of what, on what, under which budget, and with how much training."""

    reference: Reference
    prepared: Prepared
    train: TrainConfig
    budget: Budget
    probe_tokens: int
    sequence_length: int
    device: str
    """The kind of device, and the dtype of products there: what was measured on one does not go with another's."""
    memory_of: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """What was predicted, by the config."""

    @property
    def step_tokens(self) -> int:
        """Tokens of a step of the probe."""
        return self.train.batch_sequences * self.sequence_length

    @property
    def development(self) -> TokenSet:
        """What is chosen by: the first documents of the development set."""
        return self.prepared.set("development")

    def record(self) -> Record:
        """What a directory must have been begun with to go on."""
        return {
            "reference": self.reference.source,
            "reference_fingerprint": self.reference.fingerprint,
            "data_fingerprint": self.prepared.manifest.get("fingerprint"),
            "max_parameters": self.budget.parameters,
            "max_memory": self.budget.memory_bytes,
            "probe_tokens": self.probe_tokens,
            "sequence_length": self.sequence_length,
            "batch_sequences": self.train.batch_sequences,
            "learning_rate": self.train.peak_learning_rate,
            "seed": self.train.seed,
            "device": self.device,
        }

    def choice(self, candidate: Candidate, world: World) -> Choice:
        """What a choice of layers costs.

        Raises:
            Refused: it cannot be cut; or its memory is asked about, and cannot be predicted.
        """
        cut = surgery.plan_cut(self.reference, candidate.layers)
        config = cut.config.to_json_string()  # of many families the same for all choices of as many layers
        if config not in self.memory_of:
            self.memory_of[config] = self._memory(cut.config, world)
        flops = training_flops_per_token(cut.model, self.sequence_length)
        return Choice(candidate, cut.parameters, self.memory_of[config], flops)

    def _memory(self, config: PretrainedConfig, world: World) -> int | None:
        """Bytes at the peak of a training step of one sequence; None where they are not asked about, nor predicted."""
        try:
            return predicted(
                config,
                self.train,
                sequence_length=self.sequence_length,
                micro_batch=1,
                dtype=compute_dtype(self.train.compute_dtype, world.device),
                device=world.device.type,
                trust_remote_code=self.reference.trust_remote_code,
            ).total
        except Refused:
            if self.budget.memory_bytes is not None:
                raise
            return None

    def most_layers(self, world: World) -> int:
        """The most of the first layers, at least one fewer than the reference has, that fit the budget.

        Raises:
            Refused: not even one does.
        """
        low, high = 0, self.reference.layers - 1  # low layers fit, more than high do not
        if self.budget == Budget():
            return high
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle, world) else (low, middle - 1)
        if low == 0:
            self._refuse_all(self.choice(_prefix(1), world))
        return low

    def _fits(self, count: int, world: World) -> bool:
        """Whether the first so many layers are within the budget; memory is predicted only where it is bounded."""
        if self.budget.memory_bytes is None:
            try:
                parameters = surgery.plan_cut(self.reference, tuple(range(count))).parameters
            except Refused:  # these very layers cannot be cut; more of them, or others as many, may be
                parameters = prefix_parameters(self.reference.skeleton)[count - 1]
            return self.budget.allows(parameters, None)
        one = self.choice(_prefix(count), world)
        return self.budget.allows(one.parameters, one.memory_bytes)

    def _refuse_all(self, least: Choice) -> None:
        over = self.budget.parameters is not None and least.parameters > self.budget.parameters
        key, size, most = (
            ("max_parameters", f"{least.parameters:,} parameters", self.budget.parameters)
            if over
            else ("max_memory", f"a training step that takes {least.memory_bytes:,} bytes", self.budget.memory_bytes)
        )
        raise Refused(f"depth: --{key} {most:,}: one layer of {self.reference.source} has {size}; give more")

    def check_tokens(self, most: int) -> None:
        """Refuse a probe without a step for each candidate, and a training set without a block.

        Args:
            most: layers, as `most_layers` has it.

        Raises:
            Refused: either is so.
        """
        train = self.prepared.set("train")
        if train.tokens <= self.sequence_length:
            what = f"{train.tokens:,} training tokens fill no block of {self.sequence_length}"
            raise Refused(f"{self.prepared.directory}: {what}; lower --sequence_length")
        counts = depths_to_try(most)
        fixed = candidates(self.reference.layers, counts)
        depths = [len(one.layers) for one in fixed] + counts * len(surgery.MEASURES)  # each measure may choose others
        least = least_tokens_by_depth(depths, self.step_tokens)
        if 0 < self.probe_tokens < least:
            what = f"not enough for {len(depths)} candidates to take a step in every round"
            raise Refused(f"depth: --probe_tokens {self.probe_tokens:,}: {what}; give {least:,} or more, or 0")


def _prefix(count: int) -> Candidate:
    return Candidate(f"first:{count}", tuple(range(count)))


_LEAST = {"max_parameters": 1, "max_memory": 1, "probe_tokens": 0, "sequence_length": 2, "batch_sequences": 1}


def check_numbers(learning_rate: float, **numbers: int | None) -> None:
    """Refuse numbers of which nothing can come.

    Args:
        learning_rate: of the probe.
        numbers: others, by the names of `choose_depth`; None where there is none.

    Raises:
        Refused: one is out of its range.
    """
    for name, value in numbers.items():
        if value is not None and value < _LEAST[name]:
            raise Refused(f"depth: --{name} must be {_LEAST[name]} or more, not {value}")
    if not 0 < learning_rate < math.inf:
        raise Refused(f"depth: --learning_rate must be above 0, not {learning_rate:g}")


def developed_shards(data: Path, found: Reference) -> Prepared:
    """The shards, of whose development set the beginning alone is looked at.

    Raises:
        Refused: they cannot be read, do not go with the reference, or hold no development set.
    """
    prepared = prepared_shards(data, found)
    if not prepared.developed:
        what = "holds no development set to choose by"
        raise Refused(f"{prepared.directory}: {what}; prepare it again with --development_share above 0")
    return prepared.shortened("development", _DEVELOPMENT_TOKENS)


@contextlib.contextmanager
def taken(directory: Path, record: Record) -> Iterator[None]:
    """Hold a directory that is new, empty, or was begun with the same question; a refusal leaves nothing in a new one.

    Raises:
        Refused: it holds something else, or another process holds it.
    """
    _check_begun(directory, record)
    created = not directory.exists()
    with no_empty_parents(directory), lock(directory):
        fresh = _check_begun(directory, record)
        try:
            write_json(directory / _ASKED, record)
            yield
        except Refused:
            if fresh:
                clear(directory, remove=created)
            raise


def _check_begun(directory: Path, record: Record) -> bool:
    """Whether nothing was begun in a directory."""
    another = "choose another --out"
    names = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    if all(name == ".lock" or (name.startswith(f".{_ASKED}.") and name.endswith(".tmp")) for name in names):
        return True  # of one that was killed as it began, too
    try:
        held = read_json(directory / _ASKED) if _ASKED in names else None
    except Failed as error:
        raise Refused(f"{directory / _ASKED}: damaged; restore it, or {another}") from error
    if not isinstance(held, dict):
        raise Refused(f"{directory}: not empty, and nothing that `inheritune depth` began; {another}")
    for key, value in record.items():
        if held.get(key) != value:
            raise Refused(f"{directory}: begun with another {key} ({held.get(key)} there, {value} here); {another}")
    return False
