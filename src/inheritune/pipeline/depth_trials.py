"""The choices of layers that `inheritune depth` compares: cut and proven, measured untrained, trained a little."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from inheritune import reference as references, surgery
from inheritune.console import Console, duration
from inheritune.depth import depths_to_try
from inheritune.distributed import World
from inheritune.errors import Failed, Refused
from inheritune.hardware import peak_flops
from inheritune.parallel import compute_dtype, place
from inheritune.pipeline.depth_asked import BATCH_SEQUENCES, Asked, Choice
from inheritune.probing import Candidate, Probe, Rung, candidates, folder, least_tokens_by_depth
from inheritune.run_directory import read_json, write_json
from inheritune.tokens import TrainingBlocks
from inheritune.validation import SetLosses, measure

Record = dict[str, Any]


class Trials:
    """Choices of layers put to the test; what a directory holds of it already is not done again.

    Args:
        asked: of what, on what, and with how much training.
        directory: what is written to: the models in `starts/`, the probe in `probe/`, losses by document in `losses/`.
        console: where progress is shown.
        world: the device.
    """

    def __init__(self, asked: Asked, directory: Path, console: Console, world: World) -> None:
        self._asked = asked
        self._directory = directory
        self._console = console
        self._world = world

    def within_budget(self, most: int, chosen: Mapping[str, Sequence[int]]) -> list[Choice]:
        """The choices within the budget that can be cut, the deepest first.

        Args:
            most: layers that fit the budget.
            chosen: what the measures would keep, by their words, as `layers.json` has it.
        """
        asked = self._asked
        found, among = [], candidates(asked.reference.layers, depths_to_try(most), chosen)
        show = self._console.work("what choices take", "choices")
        for number, candidate in enumerate(among):
            show(number, len(among))
            try:
                one = asked.choice(candidate, self._world)
            except Refused:
                continue
            if asked.budget.allows(one.parameters, one.memory_bytes):
                found.append(one)
        show(len(among), len(among))
        return sorted(found, key=lambda one: -len(one.candidate.layers))

    def cut(self, choices: Sequence[Choice]) -> list[Choice]:
        """Those of them that are proven: only running a target shows whether its blocks depend on others.

        Raises:
            Refused: none is.
        """
        show = self._console.work("cutting and proving", "choices")
        proven, why = [], "no choice of its layers within the budget can be cut"
        for number, choice in enumerate(choices, 1):
            out = self._start_of(choice.candidate)
            try:
                if not out.exists():
                    surgery.inherit(self._asked.reference, choice.candidate.layers, out)
                proven.append(choice)
            except Refused as error:
                why = str(error)
                self._console.line(f"  {choice.candidate.name} is left out: {why}")
            show(number, len(choices))
        if not proven:
            raise Refused(f"depth: {why}")
        return proven

    def untrained(self, choices: Sequence[Choice]) -> list[Record]:
        """What each choice scores without training, as recorded or measured now."""
        show = self._console.work("measuring untrained", "choices")
        entries = []
        for number, choice in enumerate(choices, 1):
            one = choice.candidate
            if not self._path(one).exists():
                self._measure(one, place(self._start(one).float(), self._world.device))
            loss = self.losses(one).loss
            known = {"name": one.name, "layers": list(one.layers), "losses": [], "tokens": 0}
            entries.append({**known, "untrained": loss if math.isfinite(loss) else None})
            show(number, len(choices))
        return entries

    def probed(self, choices: Sequence[Choice]) -> Record:
        """Choices trained a little, for equal FLOPs; killed, it goes on.

        Returns:
            What `probe.json` holds.

        Raises:
            Failed: every candidate diverged.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        asked, console = self._asked, self._console
        flops = {one.candidate.name: one.flops_per_token for one in choices}
        dearest, cheapest = max(flops.values()), min(flops.values())
        # where choices could not be cut, those left may need more than all would have (of 1, 3, 3: 12; of 3, 3: 14)
        least = least_tokens_by_depth([len(one.candidate.layers) for one in choices], asked.step_tokens)
        clock = _Clock(dearest * asked.step_tokens, console.line)
        probe = Probe(
            candidates=[one.candidate for one in choices],
            prepared=asked.prepared,
            config=asked.train,
            tokens=max(asked.probe_tokens, least),
            directory=self._directory / "probe",
            sequence_length=asked.sequence_length,
            passes=1,
            start=self._start,
            report=console.line,
            progress=console.progress,
            world=self._world,
            flops_per_token=flops,
        )
        planned = probe.planned(asked.step_tokens)
        longest = int(planned[-1].steps * dearest / cheapest) * asked.step_tokens
        passes = self._passes(longest)

        def climbed(candidate: Candidate, model: PreTrainedModel, rungs: int) -> None:
            if rungs == len(planned):
                self._measure(candidate, model)

        probe = dataclasses.replace(probe, passes=passes, climbed=climbed, over=clock.tick)
        console.stage(f"Probing {len(choices)} choices of {', '.join(map(str, _depths(choices)))} layers")
        self._say_cost(planned, longest, passes, dearest)
        clock.begin(planned, read_json(self._directory / "probe" / "probe.json"))
        return probe.run()

    def are_noted(self, candidate: Candidate) -> bool:
        """Whether losses by document were noted."""
        return self._path(candidate).exists()

    def losses(self, candidate: Candidate) -> SetLosses:
        """Losses by document as they were noted; infinite where they were not finite, or the training diverged."""
        held = read_json(self._path(candidate))
        if held is None:
            nowhere = np.zeros(len(self._asked.development.document_ends))
            return SetLosses(nowhere + math.inf, nowhere, nowhere + 1, nowhere)
        documents = (len(self._asked.development.document_ends),)
        try:
            found = SetLosses(*(np.array(held[name], np.float64) for name in ("nats", "correct", "tokens", "bytes")))
        except (TypeError, ValueError, LookupError, OverflowError):
            found = None
        if found is None or any(part.shape != documents for part in vars(found).values()):
            raise Failed(f"{self._path(candidate)}: damaged; delete it and give the same command again")
        return found

    def remove_starts(self) -> None:
        """Remove the models that were cut."""
        shutil.rmtree(self._directory / "starts", ignore_errors=True)

    def _start_of(self, candidate: Candidate) -> Path:
        return self._directory / "starts" / folder(candidate)

    def _start(self, candidate: Candidate) -> PreTrainedModel:
        """A choice of layers as a model, in the dtype of its files."""
        out, trusted = self._start_of(candidate), self._asked.reference.trust_remote_code
        return references.load(references.find(str(out), trust_remote_code=trusted))

    def _passes(self, tokens: int) -> int:
        """Passes over the training set that so many tokens take."""
        train = self._asked.train
        blocks = TrainingBlocks(
            self._asked.prepared.set("train"), self._asked.sequence_length, 1, train.batch_sequences, train.seed
        )
        return max(1, math.ceil(tokens / (blocks.blocks * self._asked.sequence_length)))

    def _say_cost(self, planned: Sequence[Rung], longest: int, passes: int, dearest: float) -> None:
        total = _planned_flops(planned, dearest * self._asked.step_tokens)
        dtype = compute_dtype(self._asked.train.compute_dtype, self._world.device)
        floor = total / peak_flops(self._world.device, dtype)[0]
        tokens = planned[-1].steps * self._asked.step_tokens
        times = f", {passes} passes over the training set" if passes > 1 else ""
        self._console.line(
            f"  {len(planned)} rounds at equal FLOPs; who stays to the end sees {tokens:,} (the most layers) to "
            f"{longest:,} tokens{times}"
        )
        self._console.line(
            f"  {total:.1e} FLOPs: at least {duration(floor)} at this device's peak; after each training the time left "
            "is said"
        )

    def _measure(self, candidate: Candidate, model: PreTrainedModel) -> None:
        """Note what a model scores on each development document."""
        asked = self._asked
        found = measure(
            model,
            asked.development,
            sequence_length=asked.sequence_length,
            context_token=asked.prepared.context_token,
            batch_sequences=BATCH_SEQUENCES,
            dtype=compute_dtype(asked.train.compute_dtype, self._world.device),
        )
        path = self._path(candidate)
        path.parent.mkdir(exist_ok=True)
        if np.isfinite(found.nats).all():
            write_json(path, found.record())

    def _path(self, candidate: Candidate) -> Path:
        return self._directory / "losses" / f"{folder(candidate)}.json"


class _Clock:
    """Says after each of a probe's trainings how long the others will take, by what these took.

    Args:
        step_flops: FLOPs of a step of the dearest candidate.
        say: where.
    """

    def __init__(self, step_flops: float, say: Callable[[str], None]) -> None:
        self._step_flops = step_flops
        self._say = say
        self._left: list[float] = []
        self._done = 0.0
        self._began = 0.0

    def begin(self, planned: Sequence[Rung], held: Record | None) -> None:
        """Begin to count.

        Args:
            planned: the probe's rungs.
            held: what the probe has recorded so far.
        """
        before = 0
        for rung in planned:
            self._left += [(rung.steps - before) * self._step_flops] * rung.candidates
            before = rung.steps
        done = sum(len(one["losses"]) for one in held["candidates"]) if held is not None else 0
        self._left = self._left[done:]
        self._began = time.monotonic()

    def tick(self) -> None:
        """One more training is over."""
        if not self._left:
            return
        self._done += self._left.pop(0)
        if self._left:
            spent = time.monotonic() - self._began
            self._say(f"  about {duration(spent * sum(self._left) / self._done)} left of the probe")


def _planned_flops(planned: Sequence[Rung], step_flops: float) -> float:
    """What all trainings of a probe take, at equal FLOPs."""
    before, total = 0, 0.0
    for rung in planned:
        total += rung.candidates * (rung.steps - before) * step_flops
        before = rung.steps
    return total


def _depths(choices: Sequence[Choice]) -> list[int]:
    return list(dict.fromkeys(len(one.candidate.layers) for one in choices))
