"""`inheritune depth`: what each layer is worth, choices of layers trained a little, and which of them to inherit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import layerwise, reference as references, surgery
from inheritune.config import TrainConfig
from inheritune.console import Console, duration
from inheritune.depth import Budget, Contender, Recommendation, depths_to_try, recommend, runs
from inheritune.distributed import World, single
from inheritune.errors import Refused
from inheritune.hardware import peak_flops
from inheritune.memory import predicted
from inheritune.parallel import compute_dtype, place
from inheritune.pipeline import layer_choice
from inheritune.pipeline.checks import check_can_be_made, no_empty_parents
from inheritune.pipeline.direct import SCAN_POSITIONS, prepared_shards
from inheritune.planning import training_flops_per_token
from inheritune.probing import Candidate, Probe, Rung, candidates, folder, least_tokens_by_depth
from inheritune.reference import Reference
from inheritune.report import candidates_table, degeneracy_svg, degeneracy_table, depth_svg, layers_table, scan_svg
from inheritune.run_directory import clear, lock, read_json, write_atomic, write_json
from inheritune.tokens import Prepared, TokenSet, TrainingBlocks
from inheritune.validation import SetLosses, measure

Record = dict[str, Any]

PROBE_TOKENS = 2_000_000
"""What the probe may cost where nothing else is said: as much as training the deepest candidate on so many tokens."""
BATCH_SEQUENCES = 8
_SEQUENCE_LENGTH = 512
_LEARNING_RATE = 3e-4
_DEVELOPMENT_TOKENS = 32_768
"""Of the development set the first documents, up to so many tokens, are looked at: a probe measures on them often."""
_ATTENTION_SEQUENCES, _ATTENTION_TOKENS = 8, 256
_ASKED, _LAYERS, _OUTCOME = "asked.json", "layers.json", "depth.json"


@dataclass(frozen=True)
class _Choice:
    """A choice of layers that can be cut, and what is known of it beforehand."""

    candidate: Candidate
    parameters: int
    memory_bytes: int | None
    """At the peak of a training step of one sequence; None where the family does not let it be predicted."""
    flops_per_token: float


def choose_depth(
    reference: str,
    data: Path,
    *,
    out: Path | None = None,
    max_parameters: int | None = None,
    max_memory: int | None = None,
    probe_tokens: int = PROBE_TOKENS,
    sequence_length: int | None = None,
    batch_sequences: int = BATCH_SEQUENCES,
    learning_rate: float = _LEARNING_RATE,
    seed: int = 0,
    revision: str | None = None,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """How many layers of a reference to inherit, and which: measures of its layers, short probes, a recommendation.

    Everything is measured on the development set, by which one may choose. Killed, the same call goes on.

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`.
        data: a directory that `prepare` wrote, with a development set.
        out: the directory that is written; `runs/depth-NAME` by the reference's name if not given.
        max_parameters: of the target.
        max_memory: bytes at the peak of its training step with one sequence, as `memory.predicted` has it.
        probe_tokens: what the probe may cost, in tokens of training the deepest candidate; 0: no training.
        sequence_length: tokens of a sequence; by default 512, or the reference's positions where they are fewer.
        batch_sequences: sequences a step of the probe.
        learning_rate: of the probe, constant after the warm-up.
        seed: of the order of the blocks, and of the untrained network beside the reference.
        revision: of a hub id.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is dequantised to, "float32" (None) or "bfloat16".
        trust_remote_code: whether code of the reference may be run.
        console: where progress is shown.

    Returns:
        What `depth.json` in `out` holds (see docs/depth.md).

    Raises:
        Refused: bad input; nothing was written.
        Failed: every candidate diverged, or something could not be written.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    world, console = single(), console or Console()
    name = re.sub(r"[^\w.-]+", "-", reference.rstrip("/").rpartition("/")[2].rpartition(":")[2])
    directory = out if out is not None else Path("runs") / f"depth-{name}"
    _check_numbers(max_parameters, max_memory, probe_tokens, batch_sequences, learning_rate)
    if directory.exists() and not directory.is_dir():
        raise Refused(f"{directory}: a file, not a directory; choose another --out")
    check_can_be_made(directory)
    found = references.find(reference, revision, trust_remote_code, reference_file, reference_dtype)
    if found.layers < 2:
        raise Refused(f"{reference}: has 1 layer, so there is no number of layers to choose")
    prepared = _development(data, found)
    length = sequence_length or min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH)
    references.check_sequence_length(found, length)
    train = TrainConfig(
        batch_sequences=batch_sequences,
        micro_batch_sequences="auto",
        learning_rate=learning_rate,
        seed=seed,
    )
    asked = _Asked(found, prepared, train, Budget(max_parameters, max_memory), probe_tokens, length)
    most = asked.most_layers(world)
    asked.check_tokens(most)
    with _taken(directory, asked.record()):
        return _Study(asked, most, directory, console, world)()


def _check_numbers(
    max_parameters: int | None, max_memory: int | None, probe_tokens: int, batch_sequences: int, learning_rate: float
) -> None:
    least = {"max_parameters": (max_parameters, 1), "max_memory": (max_memory, 1), "probe_tokens": (probe_tokens, 0)}
    for name, (value, bound) in {**least, "batch_sequences": (batch_sequences, 1)}.items():
        if value is not None and value < bound:
            raise Refused(f"depth: --{name} must be {bound} or more, not {value}")
    if not 0 < learning_rate < math.inf:
        raise Refused(f"depth: --learning_rate must be above 0, not {learning_rate:g}")


def _development(data: Path, found: Reference) -> Prepared:
    """The shards, of whose development set the beginning alone is looked at."""
    prepared = prepared_shards(data, found)
    if not prepared.developed:
        what = "holds no development set to choose by"
        raise Refused(f"{prepared.directory}: {what}; prepare it again with --development_share above 0")
    return prepared.shortened("development", _DEVELOPMENT_TOKENS)


@contextlib.contextmanager
def _taken(directory: Path, record: Record) -> Iterator[None]:
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
    if names <= {".lock"}:
        return True
    held = read_json(directory / _ASKED) if _ASKED in names else None
    if not isinstance(held, dict):
        raise Refused(f"{directory}: not empty, and nothing that `inheritune depth` began; {another}")
    for key, value in record.items():
        if held.get(key) != value:
            raise Refused(f"{directory}: begun with another {key} ({held.get(key)} there, {value} here); {another}")
    return False


@dataclass(frozen=True)
class _Asked:
    """The question: of what, on what, under which budget, and with how much training."""

    reference: Reference
    prepared: Prepared
    train: TrainConfig
    budget: Budget
    probe_tokens: int
    sequence_length: int
    memory_of: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """What was predicted, by the config."""

    @property
    def step_tokens(self) -> int:
        return self.train.batch_sequences * self.sequence_length

    @property
    def development(self) -> TokenSet:
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
        }

    def choice(self, candidate: Candidate, world: World) -> _Choice:
        """What a choice of layers costs.

        Raises:
            Refused: it cannot be cut; or its memory is asked about, and cannot be predicted.
        """
        cut = surgery.plan_cut(self.reference, candidate.layers)
        config = cut.config.to_json_string()  # of many families the same for all choices of as many layers
        if config not in self.memory_of:
            self.memory_of[config] = self._memory(cut.config, world)
        flops = training_flops_per_token(cut.model, self.sequence_length)
        return _Choice(candidate, cut.parameters, self.memory_of[config], flops)

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
            return self.budget.allows(surgery.plan_cut(self.reference, tuple(range(count))).parameters, None)
        one = self.choice(_prefix(count), world)
        return self.budget.allows(one.parameters, one.memory_bytes)

    def _refuse_all(self, least: _Choice) -> None:
        over = self.budget.parameters is not None and least.parameters > self.budget.parameters
        key, size, most = (
            ("max_parameters", f"{least.parameters:,} parameters", self.budget.parameters)
            if over
            else ("max_memory", f"a training step that takes {least.memory_bytes:,} bytes", self.budget.memory_bytes)
        )
        raise Refused(f"depth: --{key} {most:,}: one layer of {self.reference.source} has {size}; give more")

    def check_tokens(self, most: int) -> None:
        """Refuse a probe without a step for each candidate, and a training set without a block."""
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


class _Study:
    """The stages of an answer, each skipped as far as it is recorded."""

    def __init__(self, asked: _Asked, most: int, directory: Path, console: Console, world: World) -> None:
        self._asked = asked
        self._most = most
        self._directory = directory
        self._console = console
        self._world = world

    def __call__(self) -> Record:
        """Measure, probe, recommend, write, show."""
        asked, directory = self._asked, self._directory
        held: Record | None = read_json(directory / _OUTCOME)
        if held is not None:
            self._show_layers(held["layers"])
            self._show_answer(held)
            return held
        layers = self._layers()
        self._show_layers(layers)
        choices = self._cut(self._choices(layers))
        probe = self._probed(choices) if asked.probe_tokens and len(choices) > 1 else None
        entries = probe["candidates"] if probe is not None else self._untrained(choices)
        rungs = len(probe["rungs"]) if probe is not None else 0
        sizes = np.diff(asked.development.document_ends, prepend=0).astype(np.float64)
        found = recommend(
            [self._contender(one, rungs) for one in entries],
            document_tokens=sizes,
            rungs=rungs,
            most=self._most,
            of_layers=asked.reference.layers,
        )
        record = self._outcome(layers, choices, entries, probe, found)
        write_atomic(directory / "depth.svg", depth_svg(record))
        write_atomic(directory / "scan.svg", scan_svg(layers))
        if layers["degeneracy"] is not None:
            write_atomic(directory / "degeneracy.svg", degeneracy_svg(layers["degeneracy"], layers["untrained"]))
        shutil.rmtree(directory / "starts", ignore_errors=True)
        write_json(directory / _OUTCOME, record)
        self._show_answer(record)
        return record

    def _show_answer(self, record: Record) -> None:
        self._console.table(candidates_table(record, width=self._console.width))
        for line in _answer(record):
            self._console.line(line)
        self._console.line(f"{self._directory}: depth.json, depth.svg and its other figures")

    # ---- the reference's layers

    def _layers(self) -> Record:
        """What each layer is worth, as recorded or measured now."""
        held: Record | None = read_json(self._directory / _LAYERS)
        if held is None:
            held = self._measured_layers()
            write_json(self._directory / _LAYERS, held)
        return held

    def _measured_layers(self) -> Record:
        asked, found = self._asked, self._asked.reference
        development = asked.development
        self._console.stage(f"Measuring the {found.layers} layers of {found.source}")
        model, dtype = layer_choice.loaded(found, "auto", self._world.device)
        scan = layerwise.scan_prefixes(
            model,
            development,
            sequence_length=asked.sequence_length,
            context_token=asked.prepared.context_token,
            batch_sequences=BATCH_SEQUENCES,
            dtype=dtype,
            positions=SCAN_POSITIONS,
            progress=self._console.work("scanning", "sequences"),
        )
        record = layerwise.scan_record(
            scan,
            set_name=development.name,
            parameters=references.prefix_parameters(model),
            vocabulary=found.embedding_rows,
        )
        chosen: dict[str, list[int]] = {}
        for count in depths_to_try(self._most) if scan.turning is not None else ():
            for measure_name in surgery.MEASURES:
                assert scan.turning is not None
                chosen[f"{measure_name}:{count}"] = list(layerwise.choose(scan.turning, measure_name, count))
        return {**record, "chosen": chosen, **self._degeneracy(model, dtype)}

    def _degeneracy(self, model: PreTrainedModel, dtype: torch.dtype) -> Record:
        """How far attention degenerates, with the same network untrained beside it; why not, where nothing is seen."""
        asked = self._asked
        length = min(_ATTENTION_TOKENS, asked.sequence_length)

        def measured(one: PreTrainedModel, seed: int | None, what: str) -> Record:
            batches = layerwise.first_batches(
                asked.development,
                sequence_length=length,
                batch_sequences=1,
                most_tokens=_ATTENTION_SEQUENCES * length,
            )
            progress = self._console.work(f"attention of the {what}", "sequences")
            seen = layerwise.measure_degeneracy(one, batches, dtype=dtype, progress=progress)
            return layerwise.degeneracy_record(seen, set_name=asked.development.name, seed=seed)

        try:
            own = measured(model, None, "reference")
        except Refused as error:
            return {"degeneracy": None, "untrained": None, "no_degeneracy": str(error)}
        fresh = layerwise.untrained(model, asked.train.seed, trust_remote_code=asked.reference.trust_remote_code)
        return {"degeneracy": own, "untrained": measured(fresh, asked.train.seed, "untrained network")}

    def _show_layers(self, layers: Record) -> None:
        console, seen = self._console, layers["degeneracy"]
        if seen is None:
            console.line(f"nothing to look at in attention ({layers['no_degeneracy']}); the other measures are shown")
        else:
            console.table(degeneracy_table(seen, layers["untrained"], width=console.width))
            blind = [layer for layer, heads in enumerate(seen["rank"]) if heads is None]
            if blind:
                which = surgery.spelled(tuple(blind))
                console.line(f"layers without attention of tokens to tokens: {which}; the others are shown")
        console.table(layers_table(layers, width=console.width))

    # ---- choices of layers

    def _choices(self, layers: Record) -> list[_Choice]:
        """The choices within the budget that can be cut, the deepest first."""
        asked = self._asked
        counts = depths_to_try(self._most)
        found, among = [], candidates(asked.reference.layers, counts, layers["chosen"])
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

    def _cut(self, choices: Sequence[_Choice]) -> list[_Choice]:
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

    def _start_of(self, candidate: Candidate) -> Path:
        return self._directory / "starts" / folder(candidate)

    def _start(self, candidate: Candidate) -> PreTrainedModel:
        """A choice of layers as a model, in the dtype of its files."""
        out, trusted = self._start_of(candidate), self._asked.reference.trust_remote_code
        return references.load(references.find(str(out), trust_remote_code=trusted))

    def _untrained(self, choices: Sequence[_Choice]) -> list[Record]:
        """What each choice scores without training, as recorded or measured now."""
        show = self._console.work("measuring untrained", "choices")
        entries = []
        for number, choice in enumerate(choices, 1):
            one = choice.candidate
            path = self._losses(one)
            if not path.exists():
                self._measure(one, place(self._start(one).float(), self._world.device))
            loss = _read(path).loss
            known = {"name": one.name, "layers": list(one.layers), "losses": [], "tokens": 0}
            entries.append({**known, "untrained": loss if math.isfinite(loss) else None})
            show(number, len(choices))
        return entries

    def _probed(self, choices: Sequence[_Choice]) -> Record:
        """Choices trained a little, for equal FLOPs; killed, it goes on."""
        asked, console = self._asked, self._console
        flops = {one.candidate.name: one.flops_per_token for one in choices}
        dearest, cheapest = max(flops.values()), min(flops.values())
        clock = _Clock(dearest * asked.step_tokens, console.line)
        probe = Probe(
            candidates=[one.candidate for one in choices],
            prepared=asked.prepared,
            config=asked.train,
            tokens=asked.probe_tokens,
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
            clock.tick()

        probe = dataclasses.replace(probe, passes=passes, climbed=climbed)
        console.stage(f"Probing {len(choices)} choices of {', '.join(map(str, _depths(choices)))} layers")
        self._say_cost(planned, longest, passes, dearest)
        clock.begin(planned, read_json(self._directory / "probe" / "probe.json"))
        return probe.run()

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
        path = self._losses(candidate)
        path.parent.mkdir(exist_ok=True)
        if np.isfinite(found.nats).all():
            write_json(path, found.record())

    def _losses(self, candidate: Candidate) -> Path:
        return self._directory / "losses" / f"{folder(candidate)}.json"

    # ---- the outcome

    def _contender(self, entry: Record, rungs: int) -> Contender:
        path = self._losses(Candidate(entry["name"], tuple(entry["layers"])))
        last = rungs and len(entry["losses"]) == rungs and entry["losses"][-1] is not None
        return Contender(
            name=entry["name"],
            layers=tuple(entry["layers"]),
            untrained=entry["untrained"],
            losses=tuple(entry["losses"]),
            equal_tokens=tuple(entry.get("equal_tokens", ())),
            nats=_read(path).nats if last else None,
        )

    def _outcome(
        self,
        layers: Record,
        choices: Sequence[_Choice],
        entries: Sequence[Record],
        probe: Record | None,
        found: Recommendation,
    ) -> Record:
        asked = self._asked
        known = {one.candidate.name: one for one in choices}
        rows = [
            {
                "name": entry["name"],
                "layers": entry["layers"],
                "parameters": known[entry["name"]].parameters,
                "memory_bytes": known[entry["name"]].memory_bytes,
                "flops_per_token": known[entry["name"]].flops_per_token,
                "untrained": entry["untrained"],
                "losses": entry["losses"],
                "equal_tokens": entry.get("equal_tokens", []),
                "tokens": entry["tokens"],
            }
            for entry in entries
        ]
        kept = {"rungs": [], "tokens": 0, "flops": 0.0, "seconds": 0.0}
        if probe is not None:
            kept = {name: probe[name] for name in kept}
        return {
            **asked.record(),
            "of_layers": asked.reference.layers,
            "most_layers": self._most,
            "set": asked.development.name,
            "documents": len(asked.development.document_ends),
            "development_tokens": asked.development.tokens,
            "layers": layers,
            "candidates": rows,
            "probe": kept,
            "recommended": {
                "name": found.contender.name,
                "layers": list(found.contender.layers),
                "lowest_loss": found.best.name,
                "reasons": list(found.reasons),
                "recipe": f"inherit: {{layers: {_quoted(runs(found.contender.layers))}}}",
            },
        }


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


def _depths(choices: Sequence[_Choice]) -> list[int]:
    return list(dict.fromkeys(len(one.candidate.layers) for one in choices))


def _read(path: Path) -> SetLosses:
    """Losses by document as they were noted; infinite where they were not finite."""
    held = read_json(path)
    if held is None:
        nowhere = np.zeros(1)
        return SetLosses(nowhere + math.inf, nowhere, nowhere + 1, nowhere)
    return SetLosses(*(np.array(held[name], np.float64) for name in ("nats", "correct", "tokens", "bytes")))


def _quoted(word: str) -> str:
    return word if word.isdigit() else f'"{word}"'


def _answer(record: Record) -> Iterator[str]:
    """The recommendation in lines."""
    found = record["recommended"]
    yield f"Recommended: {found['name']}, layers {surgery.spelled(tuple(found['layers']))}"
    yield from (f"  {reason}" for reason in found["reasons"])
    yield "In a recipe:"
    yield f"  {found['recipe']}"
