"""The full-data recipe within a run: benchmark, pilot, rounds, verdicts, and the target that comes of them."""

from __future__ import annotations

import dataclasses
import filecmp
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from inheritune.abandonment import FEWEST_VALIDATIONS, Schedule, cannot_reach, forecast
from inheritune.comparison import Documents
from inheritune.config import GrowConfig, TrainConfig
from inheritune.decision import decide, documents_needed, foreseen_half_width
from inheritune.errors import Failed, Refused
from inheritune.growth import Growth, Next, grow, layers_in_words
from inheritune.ledger import entries
from inheritune.pipeline import checks, resuming
from inheritune.pipeline.models import Models, Training
from inheritune.pipeline.shared import Record, Run
from inheritune.run_directory import JsonlWriter, read_json, read_jsonl, write_json
from inheritune.tokens import Prepared
from inheritune.trained import Watch
from inheritune.training import Trainer

Curve = list[tuple[int, float]]


@dataclass
class Growing:
    """The rounds of one run."""

    run: Run
    models: Models
    prepared: Prepared
    depths: tuple[int, ...]
    steps: int
    """Of the first round, and of every other where growth is cold: T."""
    passes: int

    @property
    def config(self) -> GrowConfig:
        """The recipe's."""
        assert self.run.recipe.grow is not None
        return self.run.recipe.grow

    @property
    def margin(self) -> float:
        """What target - reference must lie below, in nats a token."""
        return self.config.tolerance_nats if self.config.margin == "non-inferior" else 0.0

    @property
    def log(self) -> Path:
        """The rounds that are over, a line each."""
        return self.run.directory / "growth.jsonl"

    def __call__(self) -> Growth:
        """Train rounds until one matches; those that are recorded are not repeated."""
        world = self.run.world
        records = world.on_main(self._over)
        if not records:
            self._pilot()
        for record in records if world.main else ():  # killed just before it
            self._tidy(record)
        self._announce(records)
        grown = grow(self.depths, self.config.decision_seeds, records, self._play)
        world.on_main(lambda: self._settle(grown))
        return grown

    def _over(self) -> list[Record]:
        """The rounds that are over, with what they go on with checked before another is trained."""
        records = resuming.rounds(self.log)
        for record in records:
            self.models.measured(_name(record["layers"], record["seed"]), self.prepared)
        return records

    def _announce(self, records: list[Record]) -> None:
        benchmark = self._nats("reference")[0].sum() / self._tokens().sum()
        what = f"target - reference below {self.margin:g} nats a token" if self.margin else "target below the reference"
        depths = ", ".join([*map(str, self.depths[:-1]), layers_in_words(self.depths[-1])])
        self.run.console.line(
            f"  benchmark: {benchmark:.4f} nats a token on {self.prepared.main_set}; a match is {what}, at the upper "
            f"{1 - self.config.alpha / len(self.depths):.1%} bound; rounds of {depths}, {self.steps} steps"
        )
        for record in records:
            self.run.console.line(f"  {self._sentence(record)} (done before)")
        every = self.run.recipe.train.validate_every_steps
        if self.config.abandon == "auto" and every != "auto" and self.steps / every < FEWEST_VALIDATIONS:
            self.run.console.line(
                f"  note: no round will be abandoned: a forecast needs about {FEWEST_VALIDATIONS} validations; lower "
                f"train.validate_every_steps ({every}, of {self.steps} steps)"
            )

    def _pilot(self) -> None:
        """Foresee what difference the validation set can resolve, and refuse a tolerance below it.

        A target of the middle depth, trained for a few steps, differs from the reference from document to document much
        as a target near the match will; the whole reference, trained for as long, differs less than half as much.
        """
        run, path = self.run, self.run.directory / "pilot.json"
        steps = min(self.config.pilot_steps, self.steps)
        if steps == 0:
            return
        middle = len(self.depths) // 2
        layers = self.depths[middle]
        config = self._pilot_config(steps)
        bound = {key: value for key, value in dataclasses.asdict(config).items() if ("train", key) not in checks.FREE}
        settings: Record = {"layers": layers, "steps": steps, "alpha": self.config.alpha, "rounds": len(self.depths)}
        settings["choice"] = self.config.choice
        settings["train"] = bound  # it may have changed since, as long as no round began
        record = run.world.on_main(lambda: read_json(path))
        if not isinstance(record, dict) or any(record.get(name) != value for name, value in settings.items()):
            run.console.stage(f"Pilot: {layers_in_words(layers)}, trained for {steps} steps")
            training = dataclasses.replace(
                self._training(Next(middle + 1, layers, 0)),
                directory=run.directory / "pilot",
                config=config,
                grown_from=None,
            )
            weights = self._pilot_weights(training)
            record = run.world.on_main(lambda: self._foreseen(training, weights) | settings)
            run.world.on_main(lambda: self._keep_pilot(training.directory, path, record))
        run.world.on_main(lambda: shutil.rmtree(run.directory / "pilot", ignore_errors=True))
        run.world.on_main(lambda: self._check_resolution(record))

    def _pilot_config(self, steps: int) -> TrainConfig:
        """The recipe's settings for a few steps, most of them near the peak learning rate."""
        train = self.run.recipe.train
        return dataclasses.replace(
            train,
            learning_rate=train.peak_learning_rate,
            max_steps=steps,
            warmup_steps=steps // 4,
            validate_every_steps=steps,
            checkpoint_every_steps=steps,
            export="last",
            compile="never",
            tracker="none",
        )

    def _pilot_weights(self, training: Training) -> dict[str, torch.Tensor]:
        """Train the pilot; its weights, each whole, on rank 0."""
        run = self.run
        run.world.on_main(lambda: shutil.rmtree(training.directory, ignore_errors=True))  # of one that was killed
        run.world.on_main(lambda: self.models.make_start(training))
        trainer = Trainer(
            model=self.models.model(training)[0],
            prepared=self.prepared,
            config=training.config,
            directory=training.directory,
            sequence_length=run.recipe.data.sequence_length,
            passes=self.passes,
            report=run.console.line,
            progress=lambda progress: run.console.progress(progress, 0),
            world=run.world,
            document_mask=run.recipe.data.document_mask,
        )
        with run.timed("pilot") as entry:
            trained = trainer.run()
            entry.update(trained.entry())
        return {key: value.cpu() for key, value in trainer.exported() if run.world.main}

    def _foreseen(self, training: Training, weights: dict[str, torch.Tensor]) -> Record:
        """What the pilot says of the validation set."""
        model = self.models.model(training)[0].float()
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])
        sets = self.models.losses(model, self.prepared)["sets"][self.prepared.main_set]
        theirs, tokens = self._nats("reference")[0], self._tokens()
        target = np.asarray(sets["nats"], np.float64)
        width = math.inf
        if len(tokens) > 1:
            width = foreseen_half_width(target, theirs, tokens, alpha=self.config.alpha, rounds=len(self.depths))
        return {
            "set": self.prepared.main_set,
            "documents": len(tokens),
            "tokens": int(tokens.sum()),
            "difference": float((target - theirs).sum() / tokens.sum()),
            "half_width": width if math.isfinite(width) else None,
            "tolerance_nats": self.config.tolerance_nats,
        }

    def _keep_pilot(self, folder: Path, path: Path, record: Record) -> None:
        """Keep what the pilot said; it itself has done its service."""
        write_json(path, record)
        shutil.rmtree(folder, ignore_errors=True)

    def _check_resolution(self, record: Record) -> None:
        """Refuse a tolerance that the validation set cannot resolve.

        Raises:
            Refused: it is below the half-width foreseen; how many documents would do is said.
        """
        width, documents = record["half_width"], record["documents"]
        tolerance = self.config.tolerance_nats
        if width is None:
            counted = "1 validation document says" if documents == 1 else f"{documents} validation documents say"
            raise Refused(f"grow.tolerance_nats: {counted} nothing of others; give many more{self._elsewhere()}")
        self.run.console.line(
            f"  pilot: {documents} documents of {record['set']} resolve differences of about {width:.4f} nats a token"
        )
        if self.config.margin == "superior":
            return
        needed = documents_needed(width, documents, tolerance)
        if width >= tolerance:
            found = f"{documents} documents of {record['set']} resolve about {width:.4f} nats a token, says a pilot"
            raise Refused(
                f"grow.tolerance_nats: {tolerance:g} is too small: {found}; {_above(width):g} goes on in this "
                f"directory, {tolerance:g} takes about {needed:,} documents{self._elsewhere()}"
            )
        if needed > documents:
            self.run.console.line(
                f"  note: a target exactly as good as the reference may be missed by chance, up to every second time; "
                f"with about {needed:,} documents one in six"
            )

    def _elsewhere(self) -> str:
        """Where more documents can be had: not here, where data is prepared and losses are measured."""
        text = " (data.validation_share, validation_tokens, held_out_document_tokens) in another --out"
        if self.run.recipe.reference is not None:
            return text
        trained = self.run.directory / "reference" / "model"
        return f"{text}, with reference: {trained} instead of the architecture, so that it is not trained again"

    def _play(self, coming: Next) -> Record:
        """Train one round with one seed, decide, record."""
        training = self._training(coming)
        run = self.run
        later = self.config.decision_seeds - coming.seed - 1
        run.world.on_main(lambda: self._forget(training))
        run.console.stage(f"Round {coming.round} of at most {len(self.depths)}: {layers_in_words(coming.layers)}")
        whole = self.models.train(training, later=later)
        record = run.world.on_main(lambda: self._record(coming, training, whole))
        run.console.line(f"  {self._sentence(record)}")
        return record

    def _forget(self, training: Training) -> None:
        """Let a round that was measured be trained again where its model is gone, and its line with it."""
        losses = self.run.directory / "losses" / f"{training.name}.json"
        if losses.exists() and not (training.directory / "model").exists():
            losses.unlink()
            shutil.rmtree(training.directory, ignore_errors=True)

    def _training(self, coming: Next) -> Training:
        """The training of a round."""
        reference = self.run.reference
        assert reference is not None
        config, grown_from = self.run.recipe.train, None
        if self.config.growth == "warm" and coming.round > 1:
            grown_from = self._before(coming.round)
            config = dataclasses.replace(config, max_steps=self.warm_steps)
        config = dataclasses.replace(config, seed=config.seed + coming.seed)
        name = _name(coming.layers, coming.seed)
        directory = self.run.directory / "rounds" / resuming.folder_of(coming.layers, coming.seed)
        recipe, layers = self.run.recipe, coming.layers
        return Training(
            name=name,
            directory=directory,
            arm=dataclasses.replace(self.run.target, name=name),
            config=config,
            prepared=self.prepared,
            passes=self.passes,
            indices=checks.round_indices(recipe, layers, reference.layers),
            cut=checks.round_word(recipe, layers),
            grown_from=grown_from,
            grown_from_mend=self._again(coming.round - 1) if grown_from is not None else "",
            watch=(lambda config: self._watch(directory, config)) if self.config.abandon == "auto" else None,
            keep_abandoned=self.config.growth == "warm",
        )

    @property
    def warm_steps(self) -> int:
        """Steps of the rounds after the first where growth is warm."""
        return self.config.warm_steps or max(1, self.steps // 2)

    def _before(self, number: int) -> Path:
        """The model that the round before this one came to, at its end or where it was abandoned."""
        folder = self.run.directory / "rounds" / str(self.depths[number - 2])
        return next((folder / name for name in ("model", "stopped") if (folder / name).exists()), folder / "model")

    def _again(self, number: int) -> str:
        """How a round that is over is trained again."""
        lines = [(one["round"], one["seed"]) for one in read_jsonl(self.log)]
        line = lines.index((number, 0)) + 1 if (number, 0) in lines else 0
        where = f"line {line} of {self.log}" if line else f"its line of {self.log}"
        folder = self.run.directory / "rounds" / resuming.folder_of(self.depths[number - 1], 0)
        return f"delete {folder} and remove {where}, and round {number} is trained again"

    def _watch(self, directory: Path, config: TrainConfig) -> Watch:
        """What ends a round early: a forecast that it cannot match any more, kept in the round's directory."""
        schedule = self._schedule(self._planned(config), config.peak_learning_rate)
        records = read_jsonl(self.log) if self.run.world.main else []
        earlier = [
            (
                [(int(step), float(loss)) for step, loss in one["curve"]],
                self._schedule(one["planned_steps"], one["learning_rate"]),
            )
            for one in records
            if one["state"] == "finished" and one["seed"] == 0
        ]

        def ends(curve: list[tuple[int, dict[str, float]]]) -> bool:
            seen = [(step, losses[self.prepared.main_set]) for step, losses in curve]
            found = forecast(seen, schedule, earlier=earlier)
            wanted = float(self._nats("reference")[0].sum() / self._tokens().sum()) + self.margin
            if found is None or not cannot_reach(found, wanted):
                return False
            write_json(directory / "forecast.json", dataclasses.asdict(found))
            return True

        return ends

    def _schedule(self, steps: int, peak: float) -> Schedule:
        train = self.run.recipe.train
        return Schedule(steps=steps, warmup_steps=train.warmup_steps, peak=peak, final=train.final_learning_rate)

    def _record(self, coming: Next, training: Training, whole: bool) -> Record:
        """Decide about a training that is over, and write its line."""
        run, main_set = self.run, self.prepared.main_set
        entry = entries(run.directory)[f"train {training.name}"]
        curve = {
            one["step"]: one["losses"][main_set]
            for one in read_jsonl(training.directory / "metrics.jsonl")
            if one.get("kind") == "validation"
        }
        record: Record = {
            "round": coming.round,
            "layers": coming.layers,
            "seed": coming.seed,
            "growth": "cold" if training.grown_from is None else "warm",
            "state": "finished" if whole else "abandoned",
            "steps": entry["steps"],
            "planned_steps": self._planned(training.config),
            **{name: entry.get("all_rates", entry)[name] for name in ("tokens", "flops", "seconds")},
            "learning_rate": entry.get("learning_rate", training.config.peak_learning_rate),
            "directory": str(training.directory.relative_to(run.directory)),
            "verdict": None,
            "forecast": None if whole else read_json(training.directory / "forecast.json"),
        }
        if whole:
            losses = read_json(run.directory / "losses" / f"{training.name}.json")
            target, tokens = self._nats(training.name)[0], self._tokens()
            found = decide(
                target,
                self._nats("reference")[0],
                tokens,
                margin=self.margin,
                alpha=self.config.alpha,
                rounds=len(self.depths),
            )
            record |= {
                "parameters": losses["parameters"],
                "validation_loss": float(target.sum() / tokens.sum()),
                "verdict": dataclasses.asdict(found),
            }
        record["curve"] = [[step, loss] for step, loss in sorted(curve.items())]
        writer = JsonlWriter(self.log)
        writer.append(record)
        writer.close()
        self._tidy(record)
        return record

    def _tidy(self, record: Record) -> None:
        """Of a round that is over its models and curves are kept; what it was trained from step to step with is not."""
        folder, kept = self.run.directory / record["directory"], self.run.recipe.train.keep_checkpoints == "all"
        for place in (folder, *folder.glob("learning_rates/*")):
            for name in ("best",) if kept else ("checkpoints", "best"):
                shutil.rmtree(place / name, ignore_errors=True)

    def _planned(self, config: TrainConfig) -> int:
        """Steps that a training has if it is not ended early."""
        return min(config.max_steps or self.steps, self.steps)

    def _sentence(self, record: Record) -> str:
        what = f"round {record['round']}, {layers_in_words(record['layers'])}"
        what += f", seed {record['seed']}" if record["seed"] else ""
        if record["verdict"] is not None:
            return f"{what}: {record['validation_loss']:.4f} nats a token, {record['verdict']['text']}"
        why = (record["forecast"] or {}).get("text", "no reason recorded")
        return f"{what}: abandoned after {record['steps']} of {record['planned_steps']} steps: {why}"

    def _settle(self, grown: Growth) -> None:
        """Let the round that matched, or the best, be the run's target: its model, its records, its account."""
        best = grown.best
        if best is None:
            return
        run, out = self.run, self.run.directory / "model"
        source, name = run.directory / best["directory"], _name(best["layers"], 0)
        again = self._again(best["round"])
        if out.exists() and (source / "model").exists() and not _same_weights(source / "model", out):
            shutil.rmtree(out)  # of a round that was trained again since
        if not out.exists():
            if not (source / "model").exists():
                raise Failed(f"{source / 'model'}: is gone; {again}")
            temporary = run.directory / ".model.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source / "model", temporary, copy_function=_linked)
            temporary.rename(out)
        shutil.copyfile(source / "metrics.jsonl", run.directory / "metrics.jsonl")
        self.models.measure(name, lambda: self.models.loaded(source / "model", again), self.prepared)
        shutil.copyfile(run.directory / "losses" / f"{name}.json", run.directory / "losses" / "target.json")
        training = self._training(Next(best["round"], best["layers"], 0))
        write_json(run.directory / "inheritance.json", self.models.account(training))

    def _nats(self, name: str) -> tuple[Documents, Documents]:
        """A model's loss of each document of the judging set, in nats, and the documents' tokens."""
        record = read_json(self.run.directory / "losses" / f"{name}.json")["sets"][self.prepared.main_set]
        return np.asarray(record["nats"], np.float64), np.asarray(record["tokens"], np.float64)

    def _tokens(self) -> Documents:
        return self._nats("reference")[1]


def _name(layers: int, seed: int) -> str:
    """What a round's training is called."""
    return f"round-{resuming.folder_of(layers, seed)}"


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two models have the same weights; those that are linked are not read."""
    return all(
        (other / file.name).exists()
        and ((other / file.name).samefile(file) or filecmp.cmp(file, other / file.name, shallow=False))
        for file in one.glob("*.safetensors")
    )


def _linked(source: str, out: str) -> str:
    """A file under a second name, without a copy where the file system allows it."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copy2(source, out)
    return out


def _above(width: float) -> float:
    """A round number above a half-width."""
    scale: float = 10.0 ** math.floor(math.log10(width))
    return math.ceil(2.4 * width / scale) / 2 * scale
