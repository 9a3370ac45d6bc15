"""Training a target (or a control) on few tokens: steps, validation, records, checkpoints; on one rank or on many.

The loop is plain: every step's batch, learning rate and random numbers are pure functions of the step's number, so a
run that is started again reads the last checkpoint and goes on where it was. Nothing in a step waits for the device:
what it computed is read when the next one is under way.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from inheritune.batching import batch_on_device
from inheritune.between import Between
from inheritune.checkpoint import Checkpointer
from inheritune.config import TrainConfig
from inheritune.distributed import World, lost_rank
from inheritune.errors import Diverged, Failed, Interrupted
from inheritune.hardware import give_back_freed_memory, keep_freed_memory
from inheritune.metering import Metering
from inheritune.metrics import Launched, Metrics, Progress, StepReader
from inheritune.micro_batch import found_once, largest_micro_batch
from inheritune.objective import Objective
from inheritune.optimizer import (
    Guard,
    gradient_norm,
    make_optimizer,
    moment_bytes,
    set_learning_rate,
    take_step,
)
from inheritune.parallel import (
    compile_blocks,
    compute_dtype,
    distribute,
    reshard,
    sharded,
    share_blocks,
    whole_tensors,
)
from inheritune.planning import training_flops_per_token
from inheritune.recomputation import recompute_blocks
from inheritune.run_directory import read_jsonl
from inheritune.schedule import learning_rate, validation_interval
from inheritune.scores import Reading
from inheritune.stopping import stop_signals
from inheritune.tokens import Prepared, TrainingBlocks
from inheritune.tracking import open_tracker
from inheritune.trained import State, Trained, Watch
from inheritune.training_state import TrainingState
from inheritune.validation import measure_objective


@dataclass
class Trainer:
    """One training: the model, its data, where its records go, and whom to tell."""

    model: PreTrainedModel
    """On the CPU; it is moved, sharded and changed in place."""
    prepared: Prepared
    config: TrainConfig
    directory: Path
    """Gets `metrics.jsonl` and `checkpoints/`."""
    sequence_length: int
    passes: int
    report: Callable[[str], None]
    progress: Callable[[Progress], None]
    world: World = World(rank=0, size=1, device=torch.device("cpu"))  # noqa: RUF009  (frozen)
    document_mask: bool = False
    teacher: PreTrainedModel | None = None
    """The reference, for `objective.distill`."""
    run_name: str = "run"
    """What a tracker calls this training."""
    run_config: dict[str, Any] = field(default_factory=dict)
    """What a tracker shows of it: the recipe."""
    watch: Watch | None = None
    """Asked after every validation but the last whether to go on."""
    between: Between | None = None
    """What is measured between steps; the training does not change by it, to the bit."""
    read_late: bool | None = None
    """Read a step's values when the next one is under way; None: where the device computes by itself."""
    _state: State = field(default_factory=State)
    _metering: Metering = field(init=False, repr=False)

    def run(self) -> Trained:
        """Train to the end, from the last checkpoint if there is one; with several ranks a collective call.

        Weights are float32 while training, whatever dtype the model came in.

        Raises:
            Failed: too many steps in a row were skipped, a rank was lost, or weights could not be written.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        on_cpu = self.world.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        try:
            with contextlib.closing(Metering(self.directory, self.world)) as self._metering:
                return self._run()
        except RuntimeError as error:
            if self.world.size > 1 and lost_rank(error):
                raise Failed(
                    f"{self.directory}: another rank was lost; the same command goes on from the last checkpoint"
                ) from error
            raise
        finally:
            if on_cpu:
                give_back_freed_memory()

    def _run(self) -> Trained:
        config, world = self.config, self.world
        self.model.float().train()
        self.model.requires_grad_(True)
        self._blocks = TrainingBlocks(
            self.prepared.set("train"), self.sequence_length, self.passes, config.batch_sequences, config.seed
        )
        blocks = self._blocks
        self._steps = steps = min(blocks.steps, config.max_steps or blocks.steps)
        self._flops_per_token = training_flops_per_token(self.model, self.sequence_length)
        self._abandoned = False
        self._dtype = compute_dtype(config.compute_dtype, world.device)
        self._late = world.device.type != "cpu" if self.read_late is None else self.read_late
        self._shard = sharded(self.model, world, config.parallel)
        keep = sys.maxsize if config.keep_checkpoints == "all" else config.keep_checkpoints
        self._checkpointer = Checkpointer(self.directory / "checkpoints", world, keep, self.report)
        self._checkpointer.drop_half_written()
        found = self._checkpointer.latest()
        if found is None or found[1]["step"] < steps:
            self._state.compiled = compile_blocks(
                self.model,
                config.compile,
                world.device,
                flops=self._blocks.tokens_of(steps) * self._flops_per_token,
                report=self.report,
            )
        self._prepare_model()
        self._resume(found)
        if self._state.step < steps or self._evaluation_is_missing():
            with self._open_metrics() as metrics:
                self._loop(metrics)
        if self.config.export == "best" and self._state.best_step is not None:
            # the last validation left the root's tensors whole, and they would not see what is loaded
            reshard(self._called)
            self._held.load_best()
        self._metering.meet()
        return self.trained()

    def trained(self) -> Trained:
        """What the training came to so far; of one that diverged, what it took."""
        blocks, state = self._blocks, self._state
        tokens, unique = blocks.tokens_of(state.step), self.prepared.unique_training_tokens
        return Trained(
            steps=state.step,
            tokens=tokens,
            unique_tokens=min(blocks.blocks * self.sequence_length, tokens, unique or tokens),
            tail_tokens=blocks.tail_tokens,
            flops=tokens * self._flops_per_token,
            seconds=state.seconds,
            skipped_steps=state.skipped_steps,
            best_step=state.best_step,
            compiled=state.compiled,
            compute_dtype=str(self._dtype).removeprefix("torch."),
            ranks=self.world.size,
            micro_batch_sequences=self._micro_batch,
            parallel=self._parallel,
            abandoned=self._abandoned,
            consumption=self._metering.consumption,
        )

    @property
    def _parallel(self) -> str:
        return "none" if self.world.size == 1 else "fsdp" if self._shard else "ddp"

    def exported(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trained weights, the last or the best, by name and each whole: a collective call, to be used up."""
        return whole_tensors(self.model)

    def _prepare_model(self) -> None:
        """Put model, teacher and objective on the ranks' devices, and make optimiser and guard."""
        config, world = self.config, self.world
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
            if self._dtype == torch.float32:
                self.teacher.float()
            if self._shard:
                share_blocks(self.teacher, world)
            else:
                torch.nn.Module.to(self.teacher, world.device)
        if config.activation_checkpointing:
            recompute_blocks(self.model)
        self._objective = Objective(self.model, self._dtype, distill=config.objective.distill, teacher=self.teacher)
        self._called = distribute(self._objective, self.model, world, shard=self._shard, fsdp_ranks=config.fsdp_ranks)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(self.model, config, compiled=self._state.compiled)
        self._guard = Guard(world.device, config.spike_factor)
        self._held = TrainingState(
            self._checkpointer,
            self.directory / "best",
            model=self.model,
            optimizer=self._optimizer,
            guard=self._guard,
            world=world,
            report=self.report,
        )
        self._micro_batch = self._micro_batch_sequences()

    def _micro_batch_sequences(self) -> int:
        """Sequences a forward pass: the recipe's, or the most that fit, found once for these ranks."""
        most = math.ceil(self.config.batch_sequences / self.world.size)
        if self.config.micro_batch_sequences != "auto":
            return min(self.config.micro_batch_sequences, most)
        path, how = self.directory / "micro_batch.json", self._parallel
        return found_once(
            lambda: self._largest_micro_batch(most), path, self.world, most=most, parallel=how, report=self.report
        )

    def _largest_micro_batch(self, most: int) -> int:
        """Try how many sequences fit into memory, at most so many."""

        def run(sequences: int) -> None:
            ids = torch.zeros((sequences, self.sequence_length), dtype=torch.int64, device=self.world.device)
            # a document a token: positions in order would need no mask, and its memory would not be seen
            positions = torch.zeros_like(ids) if self.document_mask else None
            # DDP would wait for the reduction of a pass that ran out of memory half-way
            called = self._called
            apart = called.no_sync() if isinstance(called, DistributedDataParallel) else contextlib.nullcontext()
            try:
                with apart:
                    called(ids, ids, positions).minimised.backward()
            finally:
                self._optimizer.zero_grad()

        # gradients, in float32, and moments, of what this rank holds
        own = [one.to_local() if isinstance(one, DTensor) else one for one in self._parameters]
        state = 4 * sum(one.numel() for one in own) + moment_bytes(own, self.config)
        return largest_micro_batch(
            run,
            self.world,
            most=most,
            batch_sequences=self.config.batch_sequences,
            held=[tensor for tensor in self.model.parameters() if not self._shard],
            later_bytes=state,
        )

    @contextmanager
    def _open_metrics(self) -> Iterator[Metrics]:
        """The records, on the main rank; on the others nothing is written."""
        opened: list[Metrics] = []  # kept here, since it cannot be sent to the other ranks

        def open_one() -> None:
            step, name = self._state.step, self.config.tracker
            tracker = open_tracker(name, self.directory, self.run_name, self.run_config, step, report=self.report)
            opened.append(Metrics(self.directory / "metrics.jsonl", step, tracker))
            records = read_jsonl(self.directory / "metrics.jsonl") if self.watch is not None else []
            self._curve += [(one["step"], one["losses"]) for one in records if one.get("kind") == "validation"]

        self._curve: list[tuple[int, dict[str, float]]] = []
        self.world.on_main(open_one)
        metrics = opened[0] if opened else Metrics(None, self._state.step)
        try:
            yield metrics
        finally:
            metrics.close()

    def _loop(self, metrics: Metrics) -> None:
        """Steps, each with its record, and what falls between them."""
        config, state = self.config, self._state
        reader = StepReader(
            metrics,
            self.progress,
            steps=self._steps,
            first=state.step,
            late=self._late,
            flops_per_token=self._flops_per_token,
            peak_flops=self._metering.begin(self._dtype, resumed=state.step > 0),
            device=self.world.device,
        )
        self._seen_stop = False
        self._tell_gaps()
        if state.step == 0:
            self._validate(metrics)
        every = self._validation_interval()
        # the last one stalls nobody; once the optimiser's moments exist, room is made for the others
        reserving = state.step + config.checkpoint_every_steps < self._steps
        pending: Launched | None = None
        with stop_signals() as stop:
            if self._evaluation_is_missing():
                self._evaluate(metrics, stop)
            if 0 < state.step < self._steps and self._ended_early():  # killed after a checkpoint, before it was asked
                self._end(stop)
                return
            while state.step < self._steps:
                launched = self._step(stop)
                if reserving:
                    self._held.reserve()
                    reserving = False
                if pending is not None:
                    self._read(pending, reader)
                pending = launched
                last = state.step == self._steps
                validating = last or state.step % every == 0
                evaluating = self._evaluation_is_due()
                # an evaluation may take long: with a checkpoint before it, a kill costs the evaluation alone
                saving = last or evaluating or state.step % config.checkpoint_every_steps == 0
                stopping = bool(stop) if self.world.size == 1 else self._seen_stop
                if validating or saving or stopping or not self._late:
                    self._read(pending, reader)
                    pending = None
                    stopping = bool(stop) if self.world.size == 1 else self._seen_stop
                if validating:
                    self._validate(metrics)
                if saving or stopping:
                    self._save()
                if stopping:
                    self._interrupt(stop)
                if evaluating:
                    self._evaluate(metrics, stop)
                if validating and not last and self._ended_early():
                    break
            self._end(stop)

    def _step(self, stop: list[int]) -> Launched:
        """One optimiser step, launched: its loss is the mean over the step's tokens, however they are split."""
        state, config, world = self._state, self.config, self.world
        started = time.monotonic()
        # Dropout, where a model has it, is drawn from the step's number and the rank: a resumed run draws the same.
        torch.manual_seed((config.seed * 1_000_003 + state.step + 7_919 * world.rank) % 2**63)
        rate = learning_rate(
            state.step,
            steps=self._steps,
            warmup_steps=config.warmup_steps,
            peak=config.peak_learning_rate,
            final=config.final_learning_rate,
        )
        set_learning_rate(self._optimizer, rate)
        tokens = len(self._blocks.indices(state.step)) * self.sequence_length
        sums = torch.zeros(3, device=world.device)
        parts = self._blocks.micro_batches(state.step, self._micro_batch, world.rank, world.size)
        for index, part in enumerate(parts):
            ids, labels, positions = self._inputs(part)
            with self._reduced_at(last=index == len(parts) - 1):
                losses = self._called(ids, labels, positions)
                # Reductions average over ranks, so their number comes in; all ranks' tokens count, not this rank's.
                # (The published code sums over micro-batches and then clips the sum.)
                (losses.minimised * (world.size / tokens)).backward()
            sums[0] += losses.nats.detach()
            sums[1] += losses.divergence.detach()
        sums[2] = float(bool(stop))
        world.add_up(sums)
        norm = gradient_norm(self._parameters)
        skipped = self._guard.judge(norm)
        take_step(self._optimizer, skipped, norm, config.gradient_clip)
        state.step += 1
        values = torch.stack([sums[0] / tokens, sums[1] / tokens, norm, skipped, self._guard.in_a_row, sums[2]])
        place = {**self._place(), "learning_rate": rate}
        return Launched(state.step, tokens, started, values, place)

    def _inputs(self, part: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A micro-batch on the device, as `batch_on_device` makes it."""
        return batch_on_device(
            self._blocks,
            part,
            micro_batch=self._micro_batch,
            sequence_length=self.sequence_length,
            context_token=self.prepared.context_token if self.document_mask else None,
            device=self.world.device,
        )

    def _reduced_at(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP adds gradients up over the ranks once a step; FSDP does so every time, since it keeps none whole."""
        if isinstance(self._called, DistributedDataParallel) and not last:
            context: contextlib.AbstractContextManager[None] = self._called.no_sync()
            return context
        return contextlib.nullcontext()

    def _place(self) -> dict[str, int]:
        """Where the training stands in the data."""
        return self._blocks.place(self._state.step)

    def _read(self, launched: Launched, reader: StepReader) -> None:
        """Read what a step computed; end the run where it goes nowhere."""
        values, seconds = reader.read(launched)
        self._state.seconds += seconds
        self._metering.step(launched.tokens, launched.tokens * self._flops_per_token, seconds)
        self._state.skipped_steps += int(values.skipped)
        self._seen_stop = values.stops > 0
        problem = None
        if values.in_a_row >= self.config.skipped_in_a_row:
            problem = (
                f"{int(values.in_a_row)} steps in a row were skipped, up to step {launched.step} (loss "
                f"{values.loss:.4g}, gradient norm {values.gradient_norm:.4g}); the last checkpoint is kept"
            )
        elif launched.step == self._steps and not math.isfinite(values.loss):
            problem = f"loss {values.loss} at the last step"
        if problem is not None:
            self._checkpointer.finish()
            self._metering.meet()
            error = Diverged(
                f"{self.directory}: {problem}; lower train.learning_rate or lengthen the warm-up in a new run"
            )
            error.said = not self.world.main
            raise error

    def _end(self, stop: list[int]) -> None:
        """Wait for the last checkpoint; a stop that came while the last step was validated or saved counts, too."""
        self._checkpointer.finish()
        if any(self.world.gathered(bool(stop))):
            self._interrupt(stop)

    def _interrupt(self, stop: list[int]) -> NoReturn:
        self._metering.meet()
        written = self._checkpointer.finish()
        numbers = [number for number in self.world.gathered(stop[0] if stop else 0) if number]
        kept = "checkpoint written" if written else "no checkpoint could be written, the one before is kept"
        raise Interrupted(
            f"{self.directory}: stopped after step {self._state.step} of {self._steps}, {kept}", 128 + numbers[0]
        )

    def _ended_early(self) -> bool:
        """Whether the watch, asked on rank 0, ends the training here, where it was validated."""
        watch, curve = self.watch, self._curve
        if watch is not None:
            self._abandoned = self.world.on_main(
                lambda: bool(curve) and curve[-1][0] == self._state.step and watch(curve)
            )
        return self._abandoned

    def _validation_interval(self) -> int:
        """Steps between validations: the recipe's, or as many as keep them cheap."""
        if self.config.validate_every_steps != "auto":
            return self.config.validate_every_steps
        measured = sum(self.prepared.set(name).tokens for name in self.prepared.measured_names)
        return validation_interval(measured, self.config.batch_sequences * self.sequence_length)

    def _validate(self, metrics: Metrics) -> None:
        """Measure every set but the training set; keep the best weights by the development set if they are exported."""
        state = self._state
        losses = {
            name: measure_objective(
                self._objective,
                self.prepared.set(name),
                self.world,
                sequence_length=self.sequence_length,
                context_token=self.prepared.context_token,
                batch_sequences=self._micro_batch,
                document_mask=self.document_mask,
            )
            for name in self.prepared.measured_names
        }
        by_set = {name: result.loss for name, result in losses.items()}
        self._curve.append((state.step, by_set))
        metrics.append({"kind": "validation", "step": state.step, "tokens": self._place()["tokens"], "losses": by_set})
        development = losses["development"].loss if "development" in losses else math.inf
        if self.config.export == "best" and (state.best_loss is None or development < state.best_loss):
            state.best_loss, state.best_step = development, state.step
            self._held.save_best(state.step, development)

    def _tell_gaps(self) -> None:
        """Say before the first step what no evaluation will have."""
        for name, reason in self.between.gaps.items() if self.between is not None else ():
            self.report(f"  evaluation will have a gap at {name}: {reason}")

    def _evaluation_is_due(self) -> bool:
        """Whether `between` is due after the last step that was done."""
        step = self._state.step
        if self.between is None or step == 0:
            return False
        before, now = self._blocks.tokens_of(step - 1), self._blocks.tokens_of(step)
        return self.between.is_due(before, now, last=step == self._steps)

    def _evaluation_is_missing(self) -> bool:
        """Whether it is due where a run goes on, and was not recorded: the run was stopped, or killed, before."""
        if not self._evaluation_is_due():
            return False
        step, path = self._state.step, self.directory / "metrics.jsonl"
        return self.world.on_main(
            lambda: not any(one.get("kind") == "evaluation" and one["step"] == step for one in read_jsonl(path))
        )

    def _evaluate(self, metrics: Metrics, stop: list[int]) -> None:
        """Have a copy of the model measured on rank 0; whatever fails there is told, and leaves a gap.

        Raises:
            Interrupted: rank 0 was told to stop meanwhile. What it left then is made up when the run goes on.
        """
        between, world = self.between, self.world
        step, tokens = self._state.step, self._place()["tokens"]
        assert between is not None
        # every rank takes part in gathering, one keeps what comes of it
        weights = {name: value.cpu() for name, value in self.exported() if world.main}

        def measured() -> tuple[Reading | str | None, bool]:
            return between.measured(weights, world.device, step, tokens, stopped=lambda: bool(stop)), bool(stop)

        found, stopping = world.on_main(measured)
        if isinstance(found, str):
            self.report(f"Not evaluated after step {step} ({found}); training goes on.")
        elif found is not None:
            metrics.append({"kind": "evaluation", "step": step, "tokens": tokens, **found.record()})
            self.report(f"  evaluated after step {step}, {tokens:,} tokens: {between.in_words(found)}")
        if stopping:
            self._interrupt(stop)

    def _resume(self, found: tuple[Path, dict[str, Any]] | None) -> None:
        """Load the last whole checkpoint, whatever ranks wrote it."""
        if found is not None:
            compiled = self._state.compiled
            self._state = self._held.load(*found)
            self._state.compiled |= compiled

    def _save(self) -> None:
        self._held.save(self._state, self._place())
        self._metering.meet()
