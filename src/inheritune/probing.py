"""Probing: which layers to inherit, found by training every candidate a little and going on with the better half.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): rung after rung the candidates that are left share
an equal part of the budget, and the better half, by the loss on the development set, goes on from where it is. The
learning rate stays at its peak after the warm-up, so that a candidate that goes on need not begin again.

Candidates of several numbers of layers are trained for equal FLOPs: the fewer layers, the more tokens. Halves are then
taken within each number of layers, so that every number is there at the end, all at the same cost.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from inheritune.arms import chosen_layers
from inheritune.config import TrainConfig
from inheritune.distributed import World
from inheritune.errors import Diverged, Failed
from inheritune.metrics import Progress
from inheritune.reference import parameters
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.surgery import spelled
from inheritune.tokens import Prepared
from inheritune.training import Trainer

Record = dict[str, Any]

MOST_OF_A_COUNT = 7
"""Candidates that there are of one number of layers, at most."""
_RECORD = "probe.json"
_JUDGED_BY = "development"


@dataclass(frozen=True)
class Candidate:
    """A choice of a reference's layers."""

    name: str
    """What it is called in records: the word for its layers, such as `first:12+last:3`."""
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Rung:
    """A round of successive halving."""

    candidates: int
    """How many take part."""
    steps: int
    """Steps that each has taken at its end, those of the rungs before included; at equal FLOPs the dearest."""


def candidates(
    total: int, counts: Iterable[int], measured: Mapping[str, Sequence[int]] | None = None
) -> list[Candidate]:
    """The choices of layers that are worth a try: the poster's own, splits of first and last, evenly spread, measured.

    Args:
        total: layers of the reference.
        counts: how many of them to keep; with several the choices of each.
        measured: layers that were found on tokens, by the word for them, such as `influence:15`.

    Returns:
        At most `MOST_OF_A_COUNT` for each count, no two of the same layers, the poster's own first.
    """
    found: dict[tuple[int, ...], str] = {}
    for count in counts:
        found.setdefault(tuple(range(count)), f"first:{count}")
        for last in (1, round(count / 5), round(count / 2)):
            if 0 < last < count:
                split = (*range(count - last), *range(total - last, total))
                found.setdefault(split, f"first:{count - last}+last:{last}")
        found.setdefault(chosen_layers("every-other", count, total), f"every-other:{count}")
    for word, layers in (measured or {}).items():
        found.setdefault(tuple(layers), word)
    return [Candidate(name, layers) for layers, name in found.items()]


def least_tokens(count: int, step_tokens: int) -> int:
    """The smallest budget in tokens: one step for every candidate in every rung.

    Args:
        count: candidates.
        step_tokens: tokens a step.
    """
    return _rungs(count) * count * step_tokens


def rungs(count: int, tokens: int, step_tokens: int) -> list[Rung]:
    """The rungs of successive halving: each costs the same, and half of its candidates, rounded up, go on.

    Args:
        count: candidates at the beginning; of one alone there is nothing to find out.
        tokens: what all trainings together may take.
        step_tokens: tokens a step.
    """
    if count < 2:
        return []
    planned, left, steps = [], count, 0
    for _ in range(_rungs(count)):
        steps += tokens // (_rungs(count) * left * step_tokens)
        planned.append(Rung(left, steps))
        left = math.ceil(left / 2)
    return planned


def _rungs(count: int) -> int:
    return math.ceil(math.log2(max(2, count)))


def rungs_by_depth(depths: Sequence[int], tokens: int, step_tokens: int) -> list[Rung]:
    """The rungs where each number of layers halves its own candidates: each costs about the same.

    A rung's steps are a multiple of the first one's, so that what is measured every so many steps is measured at all
    of them.

    Args:
        depths: each candidate's number of layers; of one candidate alone there is nothing to find out.
        tokens: what all trainings together would take at most, if each candidate cost what the dearest does.
        step_tokens: tokens a step.
    """
    if len(depths) < 2:
        return []
    first = tokens // least_tokens_by_depth(depths, step_tokens)
    planned, steps = [], 0
    for count, longer in _taking_part(depths):
        steps += first * longer
        planned.append(Rung(count, steps))
    return planned


def least_tokens_by_depth(depths: Sequence[int], step_tokens: int) -> int:
    """The smallest budget in tokens for `rungs_by_depth`: a step for every candidate in the first rung."""
    return sum(count * longer for count, longer in _taking_part(depths)) * step_tokens


def _taking_part(depths: Sequence[int]) -> list[tuple[int, int]]:
    """How many candidates there are in each rung, and how many times as long it is as the first."""
    sizes = Counter(depths).values()
    taking = [sum(math.ceil(size / 2**number) for size in sizes) for number in range(_rungs(max(sizes)))]
    return [(count, round(taking[0] / count)) for count in taking]


@dataclass
class Probe:
    """Candidates that are trained beside each other; killed at any moment, the same call goes on."""

    candidates: Sequence[Candidate]
    prepared: Prepared
    """With a development set, which alone is looked at."""
    config: TrainConfig
    """The target's settings; its learning rate, of several the middle one, is kept constant after the warm-up."""
    tokens: int
    """What all trainings together may take, at least `least_tokens`; at equal FLOPs as `rungs_by_depth` says."""
    directory: Path
    """Gets `probe.json`, and a folder a candidate with its `metrics.jsonl`; no checkpoint stays."""
    sequence_length: int
    passes: int
    start: Callable[[Candidate], PreTrainedModel]
    """Gives a candidate's model untrained, on the CPU; called once a rung."""
    report: Callable[[str], None]
    progress: Callable[[Progress, int], None]
    """Told where a training stands, and how many of its rung come after it."""
    world: World
    document_mask: bool = False
    teacher: Callable[[], PreTrainedModel | None] = lambda: None
    """Gives the model to learn from, where the objective is distillation."""
    flops_per_token: Mapping[str, float] | None = None
    """Of each candidate, by its name, what training takes. With it candidates are trained for equal FLOPs, and each
    number of layers halves its own. None: equal tokens, and all are halved together."""
    climbed: Callable[[Candidate, PreTrainedModel, int], None] = lambda _candidate, _model, _rungs: None
    """Told a candidate with its model, trained in float32, at the end of each of its rungs, and how many these are."""
    over: Callable[[], None] = lambda: None
    """Told when one more training is over, also one that diverged."""

    def run(self) -> Record:
        """Train, halve, and say which candidate is best; with several ranks a collective call.

        Returns:
            `chosen` (a name) and its `layers`; `rungs`; `candidates`, each with its layers, parameters, its loss on the
            development set untrained and after each rung that it took part in (nats a token; null where it diverged),
            and what it cost; `tokens`, `flops` and `seconds` of all of them. With `flops_per_token` also
            `equal_tokens`, its losses after the tokens that the dearest has seen at the end of these rungs.

        Raises:
            Failed: every candidate diverged.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        done = self.world.on_main(self._read)
        step_tokens = self.config.batch_sequences * self.sequence_length
        planned = self.planned(step_tokens)
        left = list(self.candidates)
        for number, rung in enumerate(planned):
            for later, candidate in zip(range(len(left) - 1, -1, -1), left, strict=True):
                if len(done[candidate.name]["losses"]) <= number:
                    config = self._config(candidate, rung, planned[0])
                    done[candidate.name] = self._climb(candidate, config, later, done, planned[: number + 1])
                    self.world.on_main(partial(self._make_room, done, left, number))
            left = self._better_half(left, done, number)
        if planned:
            left = sorted(left, key=lambda one: _rank(done[one.name]["losses"][-1]))
        if planned and done[left[0].name]["losses"][-1] is None:
            raise Failed(f"{self.directory}: every candidate diverged; lower train.learning_rate in a new run")
        record = self._record(left[0], planned, done)
        self.world.on_main(lambda: self._finish(record))
        return record

    def planned(self, step_tokens: int) -> list[Rung]:
        """Its rungs.

        Args:
            step_tokens: tokens a step.
        """
        if self.flops_per_token is None:
            return rungs(len(self.candidates), self.tokens, step_tokens)
        return rungs_by_depth([len(one.layers) for one in self.candidates], self.tokens, step_tokens)

    def _read(self) -> dict[str, Record]:
        """What is known of each candidate, by name."""
        self.directory.mkdir(parents=True, exist_ok=True)
        held = read_json(self.directory / _RECORD)
        if held is not None and not _is_record(held):
            what = f"{self.directory / _RECORD}: damaged, no record of candidates"
            raise Failed(f"{what}; delete it and give the same command again")
        known = {one["name"]: one for one in held["candidates"]} if held is not None else {}
        fresh: Record = {"untrained": None, "losses": [], "steps": 0, "tokens": 0, "flops": 0.0, "seconds": 0.0}
        return {
            one.name: known.get(one.name, {"name": one.name, "layers": list(one.layers), **fresh})
            for one in self.candidates
        }

    def _config(self, candidate: Candidate, rung: Rung, first: Rung) -> TrainConfig:
        """The settings of a candidate's training up to a rung; but for its length the same in every rung."""
        steps, every = rung.steps, rung.steps
        if self.flops_per_token is not None:
            dearest = max(self.flops_per_token.values())
            steps, every = int(rung.steps * dearest / self.flops_per_token[candidate.name]), first.steps
        rates = sorted(self.config.learning_rates)
        rate = rates[len(rates) // 2]
        return dataclasses.replace(
            self.config,
            learning_rate=rate,
            final_learning_rate=rate,
            warmup_steps=min(self.config.warmup_steps, first.steps // 2),
            max_steps=steps,
            validate_every_steps=every,
            keep_checkpoints=1,
            export="last",
            tracker="none",
        )

    def _climb(
        self, candidate: Candidate, config: TrainConfig, later: int, done: dict[str, Record], climbed: Sequence[Rung]
    ) -> Record:
        """Train a candidate to the end of the last of some rungs; what is known of it then."""
        directory = self.directory / folder(candidate)
        self.world.on_main(lambda: directory.mkdir(exist_ok=True))
        model = self.start(candidate)
        costs: Record = {"parameters": parameters(model)}
        trainer = Trainer(
            model=model,
            prepared=self.prepared.only("train", _JUDGED_BY),
            config=config,
            directory=directory,
            sequence_length=self.sequence_length,
            passes=self.passes,
            report=lambda line: self.report(f"  {line}"),
            progress=lambda progress: self.progress(progress, later),
            world=self.world,
            document_mask=self.document_mask,
            teacher=self.teacher(),
        )
        lost = False
        try:
            trained = trainer.run()
            self.climbed(candidate, trainer.model, len(climbed))
        except Diverged as error:
            self.report(f"  {error}")
            trained, lost = trainer.trained(), True
        costs |= {name: getattr(trained, name) for name in ("steps", "tokens", "flops", "seconds")}
        costs["consumption"] = trained.consumption.record()
        # of one whose record was lost, and whose weights are further than that, too
        until = min(costs["steps"], config.max_steps or costs["steps"])
        noted = self.world.on_main(lambda: self._noted(candidate, costs, done, climbed, until=None if lost else until))
        self.over()
        return noted

    def _noted(
        self,
        candidate: Candidate,
        costs: Record,
        done: dict[str, Record],
        climbed: Sequence[Rung],
        *,
        until: int | None,
    ) -> Record:
        """Read a candidate's losses from its metrics, and write them down before its checkpoints may go.

        Args:
            candidate: that was trained.
            costs: what it took.
            done: what is known of each candidate.
            climbed: the rungs so far.
            until: the step at the end of the last of them; None where it diverged before.
        """
        measured = {
            one["step"]: one["losses"][_JUDGED_BY]
            for one in read_jsonl(self.directory / folder(candidate) / "metrics.jsonl")
            if one.get("kind") == "validation"
        }
        loss = None if until is None else _finite(measured[until])
        before = done[candidate.name]
        entry = {**before, **costs, "untrained": _finite(measured[0]), "losses": [*before["losses"], loss]}
        if self.flops_per_token is not None:
            entry["equal_tokens"] = [_finite(measured.get(rung.steps)) for rung in climbed]
        write_json(self.directory / _RECORD, {"candidates": list({**done, candidate.name: entry}.values())})
        shown = "diverged" if loss is None else f"{loss:.3f} nats a token after {entry['tokens']:,} tokens"
        self.report(f"  {candidate.name}: {shown}")
        return entry

    def _make_room(self, done: dict[str, Record], among: Sequence[Candidate], number: int) -> None:
        """Delete the checkpoints of those that are out, whatever the others of the rung come to."""
        for rivals in self._rivals(among):
            over = [one for one in rivals if len(done[one.name]["losses"]) > number]
            order = sorted(over, key=lambda one: _rank(done[one.name]["losses"][number]))
            for one in order[math.ceil(len(rivals) / 2) :]:
                shutil.rmtree(self.directory / folder(one) / "checkpoints", ignore_errors=True)

    def _better_half(self, left: list[Candidate], done: dict[str, Record], number: int) -> list[Candidate]:
        """Those that go on, in their own order; of equals the one named first."""
        kept: set[str] = set()
        for rivals in self._rivals(left):
            order = sorted(rivals, key=lambda one: _rank(done[one.name]["losses"][number]))
            kept |= {one.name for one in order[: math.ceil(len(rivals) / 2)]}
        return [one for one in left if one.name in kept]

    def _rivals(self, among: Sequence[Candidate]) -> list[list[Candidate]]:
        """Who is halved with whom: all of them, or those of a number of layers."""
        if self.flops_per_token is None:
            return [list(among)]
        depths = dict.fromkeys(len(one.layers) for one in among)
        return [[one for one in among if len(one.layers) == depth] for depth in depths]

    def _finish(self, record: Record) -> None:
        """Write what came of it; the weights, trained by another schedule than the target's, are of no further use."""
        write_json(self.directory / _RECORD, record)
        for one in self.candidates:
            shutil.rmtree(self.directory / folder(one) / "checkpoints", ignore_errors=True)

    def _record(self, chosen: Candidate, planned: Sequence[Rung], done: dict[str, Record]) -> Record:
        entries = [done[one.name] for one in self.candidates]
        return {
            "chosen": chosen.name,
            "layers": list(chosen.layers),
            "set": _JUDGED_BY,
            "rungs": [dataclasses.asdict(rung) for rung in planned],
            **{name: sum(one[name] for one in entries) for name in ("tokens", "flops", "seconds")},
            "candidates": entries,
        }


def folder(candidate: Candidate) -> str:
    """A candidate's directory: its name without what file systems take for something else."""
    return candidate.name.replace(":", "-").replace(",", "-")


def in_words(record: Record) -> str:
    """A probe's outcome in a line."""
    layers = spelled(tuple(record["layers"]))
    if not record["rungs"]:
        return f"{record['chosen']} is the only candidate: layers {layers}"
    last = [one for one in record["candidates"] if len(one["losses"]) == len(record["rungs"])]
    best = next(one for one in last if one["name"] == record["chosen"])["losses"][-1]
    others = [one["losses"][-1] for one in last if one["name"] != record["chosen"] and one["losses"][-1] is not None]
    ahead = f", {min(others) - best:.3f} ahead of the next" if others else ""
    return (
        f"{record['chosen']} is best of {len(record['candidates'])} candidates after {record['tokens']:,} tokens of "
        f"training in all: {best:.3f} nats a token on the {record['set']} set{ahead}; layers {layers}"
    )


def _is_record(held: Any) -> bool:
    """Whether a record has what is taken from it of each candidate."""
    found = held.get("candidates") if isinstance(held, dict) else None
    return isinstance(found, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("losses"), list)
        for one in found
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rank(loss: float | None) -> float:
    """Where a loss stands among others: one that diverged is last."""
    return math.inf if loss is None else loss
