"""The models of a run: what each starts from, its training, its export, its losses; each done once and recorded."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inheritune import recipe as recipes, reference as references, surgery
from inheritune.arms import Arm, init_parts
from inheritune.between import Between
from inheritune.config import DistillConfig, ObjectiveConfig, TrainConfig
from inheritune.errors import Diverged, Failed, Refused
from inheritune.ledger import entries
from inheritune.parallel import compute_dtype, place, uncompile_blocks
from inheritune.pipeline import checks, evaluating, resuming
from inheritune.pipeline.data import tokenizer
from inheritune.pipeline.shared import Record, Run, called
from inheritune.reference import cast_as_loaded, parameters
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared
from inheritune.trained import Watch
from inheritune.training import Trainer
from inheritune.validation import measure_all


@dataclass(frozen=True)
class Training:
    """One training of a run: what starts from what, for how long, and where its records go."""

    name: str
    """In `losses/`, in the ledger and in words."""
    directory: Path
    arm: Arm
    config: TrainConfig
    prepared: Prepared
    passes: int
    indices: tuple[int, ...] | None = None
    """The reference's layers that it has; None where it starts from an architecture."""
    cut: str = ""
    """What tells its start from that of other layers, in the start's name; empty for those of the target."""
    grown_from: Path | None = None
    """A model whose layers, embeddings, final norm and head it takes instead of the reference's."""
    grown_from_mend: str = ""
    """What to do where that model does not load."""
    watch: Callable[[TrainConfig], Watch] | None = None
    """Gives what may end it early, by its settings, the learning rate among them."""
    keep_abandoned: bool = False
    """Whether it is exported even when it was ended early."""

    @property
    def is_target(self) -> bool:
        """Whether it is the target's, be it a round of one that grows."""
        return self.name == "target" or self.name.startswith("round-")

    def whole_start(self, whole: str) -> str:
        """The name of a start with a whole init."""
        return f"{whole}@{self.cut}" if self.cut else whole


@dataclass
class Models:
    """Makes, trains, exports and measures the models of a run."""

    run: Run
    evaluator: evaluating.Evaluator | None = None
    """What evaluates the target while it trains, if the recipe says so; on rank 0 alone."""

    def start(self, training: Training, whole: str) -> Path:
        """What models with a whole init begin from, as a directory: cut and proven when it is first asked for."""
        run = self.run
        assert run.reference is not None
        assert training.indices is not None
        name = training.whole_start(whole)
        out = run.directory / "starts" / name
        if not out.exists():
            prepared = training.prepared
            ids = torch.from_numpy(prepared.set(prepared.main_set).read(0, run.recipe.data.sequence_length))[None]
            own = name == run.target.init and not training.cut
            with run.timed("inherit" if own else f"inherit {name}"):
                try:
                    surgery.inherit(
                        run.reference,
                        training.indices,
                        out,
                        init=whole,
                        token_ids=ids,
                        tokens_from=prepared.main_set,
                        report=lambda line: run.console.line(f"  {line}"),
                        progress=run.console.work("cutting and proving"),
                    )
                except Refused as error:  # only running the target shows that blocks depend on each other
                    raise Failed(f"{error}; the prepared data is kept, name it as data.prepared") from error
        return out

    def partly(self, training: Training) -> tuple[PreTrainedModel, frozenset[str]]:
        """What models with an init of parts, or of none, begin from, in float32; and which tensors are inherited."""
        assert self.run.reference is not None
        whole = self.start(training, "inherit")
        return surgery.start(whole, self.run.reference, init_parts(training.arm.init), training.config.seed)

    def loaded(self, directory: Path, mend: str = "delete it, checkpoints are kept") -> PreTrainedModel:
        """A model that was saved, in the dtype of its files.

        Args:
            directory: where.
            mend: what to do where it does not load.

        Raises:
            Failed: it does not load.
        """
        if not directory.is_dir():  # its name would be taken for one on the hub
            raise Failed(f"{directory}: is gone; {mend}")
        try:
            with references.quiet():
                model = AutoModelForCausalLM.from_pretrained(
                    directory, trust_remote_code=self.run.recipe.trust_remote_code
                )
        except references.LOADING_ERRORS as error:
            what = f"{directory}: cannot be loaded ({references.one_line(error)})"
            raise Failed(f"{what}; {mend}") from error
        assert isinstance(model, PreTrainedModel)
        return model

    def account(self, training: Training) -> Record:
        """What `inheritance.json` says of a start: where each tensor comes from.

        Raises:
            Failed: the start lost its own account.
        """
        run, arm = self.run, training.arm
        assert run.reference is not None
        assert training.indices is not None
        start = self.start(training, arm.whole_init or "inherit")
        record = read_json(start / "inheritance.json")
        if record is None:
            raise Failed(f"{start}: damaged, it holds no inheritance.json; delete it and give the same command again")
        if arm.whole_init is None:
            model, taken = self.partly(training)
            tensors = surgery.tensor_records(model, taken, record)
            ignored = tuple(record["ignored"])
            record |= surgery.account(training.indices, run.reference, tensors, ignored, parameters(model))
        assert isinstance(record, dict)
        return record | {"init": arm.init}

    def measure(self, name: str, model: Callable[[], PreTrainedModel], prepared: Prepared) -> Record:
        """A model's losses by document on every set: measured once, in float32 weights, and recorded."""
        run = self.run
        path = self._losses(name)
        record = resuming.losses(path, prepared)
        if record is None:
            path.parent.mkdir(exist_ok=True)
            run.console.line(f"  measuring the {called(name)} on {', '.join(prepared.measured_names)}")
            with run.timed(f"measure {name}"):
                record = self.losses(model(), prepared)
            wrong = [key for key, sums in record["sets"].items() if not all(map(math.isfinite, sums["nats"]))]
            if wrong:
                what = f"the {called(name)}'s loss on {wrong[0]} is not finite"
                raise Failed(f"{path}: {what}, so there is nothing to compare; its weights are damaged, or too large")
            write_json(path, record)
        return record

    def measure_cut(self, training: Training) -> None:
        """Measure what a training starts from, untrained: the control `cut`."""
        whole = training.arm.whole_init or "inherit"
        self.measure("cut", lambda: self.loaded(self.start(training, whole)), training.prepared)

    def losses(self, model: PreTrainedModel, prepared: Prepared) -> Record:
        """A model's size, and its losses by document on every set."""
        run, data = self.run, self.run.recipe.data
        dtype = compute_dtype(run.recipe.train.compute_dtype, run.world.device)
        place(model.float(), run.world.device)
        losses = measure_all(
            model, prepared, data.sequence_length, run.measured_at_once, dtype, document_mask=data.document_mask
        )
        return {
            "layers": model.config.get_text_config().num_hidden_layers,
            "parameters": parameters(model),
            "compute_dtype": str(dtype).removeprefix("torch."),
            "sets": {set_name: result.record() for set_name, result in losses.items()},
        }

    def measured(self, name: str, prepared: Prepared) -> bool:
        """Whether a model's losses are recorded.

        Raises:
            Failed: they are damaged.
        """
        return resuming.losses(self._losses(name), prepared) is not None

    def _losses(self, name: str) -> Path:
        return self.run.directory / "losses" / f"{name.replace(':', '-')}.json"

    def train(self, training: Training, *, later: int) -> bool:
        """Train a model, export it, measure what was exported. Skipped as far as it is recorded.

        Args:
            training: what is trained; with several learning rates with each, and the best on the development set stays.
            later: how many trainings come after this one.

        Returns:
            Whether it was trained to the end; if it was ended early there is no measurement.
        """
        run, world = self.run, self.run.world
        if world.on_main(lambda: self.measured(training.name, training.prepared)):
            return True
        exported = training.directory / "model"
        if not world.on_main(exported.exists):
            run.console.stage(f"Training the {called(training.name)}")
            rates = training.config.learning_rates
            whole = self._once(training, later) if len(rates) == 1 else self._with_each(training, rates, later)
            if not whole:
                return False
        world.on_main(lambda: self.measure(training.name, lambda: self.loaded(exported), training.prepared))
        return True

    def _once(self, training: Training, later: int, stage: str | None = None) -> bool:
        """Train with one learning rate and export; whether it was trained to the end."""
        run = self.run
        run.world.on_main(lambda: self.make_start(training))
        model, dtype = self.model(training)
        recipe = run.recipe
        trainer = Trainer(
            model=model,
            prepared=training.prepared,
            config=training.config,
            directory=training.directory,
            sequence_length=recipe.data.sequence_length,
            passes=training.passes,
            report=run.console.line,
            progress=lambda progress: run.console.progress(progress, later),
            world=run.world,
            document_mask=recipe.data.document_mask,
            teacher=self.teacher(training.config),
            run_name=f"{recipe.name}/{training.name}",
            run_config=recipes.as_dict(recipe),
            watch=training.watch(training.config) if training.watch is not None else None,
            between=self._between(training),
        )
        stage = stage or f"train {training.name}"
        with run.timed(stage) as entry:
            try:
                trained = trainer.run()
            except Diverged:
                run.world.on_main(lambda: run.note(stage, trainer.trained().entry() | {"diverged": True}))
                raise
            entry.update(trained.entry())
        if not trained.abandoned or training.keep_abandoned:
            out = training.directory / ("stopped" if trained.abandoned else "model")
            run.world.on_main(lambda: shutil.rmtree(out, ignore_errors=True))  # of a start that was killed
            with run.timed(stage.replace("train", "export", 1)):
                self._export_trained(training, trainer, dtype, out)
        return not trained.abandoned

    def _with_each(self, training: Training, rates: list[float], later: int) -> bool:
        """Train with each learning rate and keep the best on the development set; whether any came to its end."""
        run, world = self.run, self.run.world
        folder = training.directory / "learning_rates"
        for left, rate in zip(range(len(rates) - 1, -1, -1), rates, strict=True):
            one = dataclasses.replace(
                training,
                directory=folder / f"{rate:g}",
                config=dataclasses.replace(training.config, learning_rate=rate),
            )
            record = one.directory / "trained.json"
            if world.on_main(record.exists):
                continue
            run.console.line(f"  learning rate {rate:g}")
            self._with_one(one, left + later * len(rates), record)
        return world.on_main(lambda: self._choose(training, folder, rates))

    def _with_one(self, training: Training, later: int, path: Path) -> None:
        """Train with one learning rate of several, and record what came of it."""
        stage = f"train {training.name} at {training.config.peak_learning_rate:g}"
        whole, diverged = False, False
        try:
            whole = self._once(training, later, stage)
        except Diverged as error:
            self.run.console.line(f"  {error}")
            diverged = True

        def note() -> None:
            records = read_jsonl(training.directory / "metrics.jsonl")
            last = [one["losses"]["development"] for one in records if one.get("kind") == "validation"][-1]
            lost = diverged or not math.isfinite(last if last is not None else math.nan)
            entry = entries(self.run.directory).get(stage, {})
            loss = None if lost else last
            write_json(path, {"development_loss": loss, "whole": whole and not lost, "trained": entry})

        self.run.world.on_main(note)

    def _choose(self, training: Training, folder: Path, rates: list[float]) -> bool:
        """Give the arm what its best learning rate came to."""
        records = {rate: read_json(folder / f"{rate:g}" / "trained.json") for rate in rates}
        losses = {rate: one["development_loss"] for rate, one in records.items() if one["whole"]}
        whole = bool(losses)
        losses = losses or {
            rate: one["development_loss"] for rate, one in records.items() if one["development_loss"] is not None
        }
        if not losses:
            raise Failed(f"{training.directory}: diverged at every learning rate; lower them in a new run")
        best = min(losses, key=lambda rate: (losses[rate], rate))
        chosen = folder / f"{best:g}"
        shown = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        self.run.console.line(f"  learning rate {best:g} is best on the development set ({shown} nats a token)")
        by_rate = {f"{rate:g}": loss for rate, loss in losses.items()}
        trained = records[best]["trained"] | {"learning_rate": best, "development_losses": by_rate}
        # what it took to find it, trainings that diverged among it
        counted = ("tokens", "flops", "seconds")
        trained["all_rates"] = {name: sum(one["trained"].get(name, 0) for one in records.values()) for name in counted}
        self.run.note(f"train {training.name}", trained)
        shutil.copyfile(chosen / "metrics.jsonl", training.directory / "metrics.jsonl")
        for rate in rates:  # the weights of the others take room, and what is known of them is recorded
            if rate != best:
                for name in ("model", "stopped", "checkpoints", "best"):
                    shutil.rmtree(folder / f"{rate:g}" / name, ignore_errors=True)
        for name in ("model", "stopped"):
            if (chosen / name).exists():
                os.rename(chosen / name, training.directory / name)
        return whole

    def make_start(self, training: Training) -> None:
        """Make the training's directory, and what its model starts from, if they are not there."""
        training.directory.mkdir(parents=True, exist_ok=True)
        if self.run.reference is not None and training.indices is not None and not training.arm.half_width:
            self.start(training, training.arm.whole_init or "inherit")

    def model(self, training: Training) -> tuple[PreTrainedModel, torch.dtype]:
        """A model at its start, and the dtype that it is exported in."""
        run, arm = self.run, training.arm
        if run.reference is None or training.name == "reference":
            return self._from_architecture(training)
        dtype = run.reference.torch_dtype
        if arm.half_width:
            return surgery.half_width(run.reference, training.config.seed), dtype
        if arm.whole_init is None:
            return self.partly(training)[0], dtype
        model = self.loaded(self.start(training, arm.whole_init))
        if training.grown_from is not None:
            surgery.grow(model, self.loaded(training.grown_from, training.grown_from_mend))
        return model, dtype

    def with_weights(self, training: Training, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
        """A model such as a training starts from, with these weights in its own memory, as it would be exported.

        Args:
            training: whose.
            weights: by name, each whole, in float32.
        """
        return self.filled(*self.model(dataclasses.replace(training, grown_from=None)), weights)

    def filled(self, model: PreTrainedModel, dtype: torch.dtype, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
        """A model whose parameters became these weights, each whole and in float32, and then what an export casts."""
        with torch.no_grad():
            for name, parameter in model.float().named_parameters():
                parameter.copy_(weights[name])
        cast_as_loaded(model, dtype, trust_remote_code=self.run.recipe.trust_remote_code)
        return model

    def _from_architecture(self, training: Training) -> tuple[PreTrainedModel, torch.dtype]:
        made = training.prepared.manifest["tokenizer"]
        recipe = self.run.recipe
        config = checks.architecture_config(recipe, made["vocabulary"], made["end_of_text"])
        wanted: Any = config.dtype or "float32"
        config.dtype = torch.float32  # drawn in full precision, whatever the export's is
        model = references.fresh(config, training.config.seed, trust_remote_code=recipe.trust_remote_code)
        return model, wanted if isinstance(wanted, torch.dtype) else getattr(torch, wanted)

    def _between(self, training: Training) -> Between | None:
        """What is measured between the steps of a target's training."""
        config = self.run.recipe.evaluate
        if config is None or not training.is_target:
            return None
        return evaluating.between(
            self.run,
            config.every_tokens,
            self.evaluator,
            training.directory,
            copy=lambda weights: self.with_weights(training, weights),
        )

    def teacher(self, config: TrainConfig) -> PreTrainedModel | None:
        """The model to learn from, if the objective is distillation."""
        if config.objective.distill is None or self.run.reference is None:
            return None
        return references.load(self.run.reference)

    def _export_trained(self, training: Training, trainer: Trainer, dtype: torch.dtype, out: Path) -> None:
        """Write what was trained: rank 0 gathers the weights, each whole, into a model of its own."""
        # every rank takes part in gathering, one keeps what comes of it
        whole = {key: value.cpu() for key, value in trainer.exported() if self.run.world.main}

        def write() -> None:
            if self.run.world.size > 1:  # the trainer's modules are sharded, or share their memory with DDP's
                model = self.with_weights(training, whole)
            else:
                uncompile_blocks(trainer.model)
                model = self.filled(trainer.model.cpu(), dtype, whole)
            self.export(training, model, out)

        self.run.world.on_main(write)

    def export(self, training: Training, model: PreTrainedModel, out: Path) -> None:
        """Write a Hugging Face directory of the model, with its tokenizer and its lineage."""
        run, arm = self.run, training.arm
        recipe = {"recipe": recipes.as_dict(run.recipe)}
        if run.reference is None or training.name == "reference":
            words = AutoTokenizer.from_pretrained(tokenizer(run))
            surgery.save(model, words, out, {"initialisation": "random", **recipe})
            return
        descent: Record = {"initialisation": "random"}
        if arm.init != "random":
            assert training.indices is not None
            descent = surgery.lineage(run.reference, surgery.kept(training.indices, arm.init), arm.init)
        surgery.save(model, None, out, {**descent, **recipe}, reference=run.reference)


def for_arm(arm: Arm, config: TrainConfig, steps: int, passes: int) -> tuple[TrainConfig, int]:
    """An arm's settings and passes over the data, where the target takes so many steps."""
    if arm.distilled:
        config = dataclasses.replace(config, objective=ObjectiveConfig(distill=DistillConfig()))
    if arm.times == 1:
        return config, passes
    return dataclasses.replace(config, max_steps=arm.times * steps), math.ceil(arm.times * passes)
