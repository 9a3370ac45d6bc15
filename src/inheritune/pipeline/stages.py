"""`run`: the stages in order, each skipped when its record is there: prepare, inherit, train, controls, report.

Everything that can be refused is refused before the first byte is written. A run that was stopped, by whatever means,
goes on when the same command is given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inheritune import checkpoint, corpus, environment, recipe as recipes, reference as references, scratch, surgery
from inheritune.config import DataConfig, Recipe
from inheritune.console import Console
from inheritune.distributed import World, world
from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.parallel import compute_dtype, place, uncompile_blocks
from inheritune.pipeline import checks
from inheritune.pipeline.direct import influence_record
from inheritune.reference import Reference, cast_as_loaded, parameters
from inheritune.report import render_table, usage, write_report
from inheritune.result import OwnTraining, assemble
from inheritune.rules import canonical_init, init_parts
from inheritune.run_directory import clear, lock, read_json, read_jsonl, write_atomic, write_json
from inheritune.tokens import Prepared, TrainingBlocks, open_prepared
from inheritune.training import Trainer, measure_all

Record = dict[str, Any]
_TOKENIZER_BYTES = 40_000_000
"""Text that a tokenizer is trained on at most: more changes a few thousand entries little, and takes minutes."""


def run(recipe: Recipe, out: Path | None = None, *, console: Console | None = None, until: str = "report") -> Record:
    """Run a recipe, or go on with it, in its run directory.

    Args:
        recipe: the experiment.
        out: the run directory; `runs/NAME` if not given.
        console: where progress is shown.
        until: the last stage to run: `prepare`, `inherit`, `train` (the target, without controls), or `report`, all of
            it.

    Returns:
        The run's `result.json`.

    Raises:
        Refused: bad input; nothing was written.
        Failed: something went wrong later; what was finished is kept and the same call goes on.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    recipe = recipes.resolve_paths(recipe)
    directory = out if out is not None else Path("runs") / recipe.name
    stages = _Stages(recipe, directory, console or Console())
    stages.check()
    created = not directory.exists()
    with checks.no_empty_parents(directory), lock(directory):
        stages.check_directory()  # again: another run may have begun here while this one was being checked
        fresh = not (directory / "recipe.yaml").exists()
        try:
            return stages.run(until)
        except Refused:
            if fresh:
                clear(directory, remove=created)
            raise


class _Stages:
    """One run: its recipe, its directory, and what the stages hand on to each other."""

    def __init__(self, recipe: Recipe, directory: Path, console: Console) -> None:
        self.recipe = recipe
        self.directory = directory
        self.console = console
        self.world: World = world()
        self.reference: Reference | None = None
        self.indices: tuple[int, ...] | None = None
        """The layers kept; None as long as they are to be found by their influence."""

    def check(self) -> None:
        """Refuse all that can be refused now."""
        checks.check_recipe(self.recipe)
        if self.recipe.reference is not None:
            self._find_reference(self.recipe.reference)
        else:
            checks.architecture_config(self.recipe, vocabulary=257, end_of_text=0)
        self.check_directory()
        checks.check_data(self.recipe, self.reference, self.directory)

    def check_directory(self) -> None:
        """The run directory is new, empty, or holds this very recipe."""
        checks.check_directory(self.directory, self.recipe)

    def _find_reference(self, name: str) -> None:
        recipe = self.recipe
        self.reference = references.find(name, recipe.revision, recipe.trust_remote_code)
        # the commit that a branch's name stands for now, so that the dumped recipe repeats the run
        self.recipe = dataclasses.replace(recipe, revision=self.reference.revision)
        self.indices = surgery.parse_layers(recipe.inherit.layers, self.reference.layers)
        if self.indices is not None:
            checks.check_cut(self.reference, self.indices, self._inits)
        references.check_sequence_length(self.reference, recipe.data.sequence_length)
        if self.reference.tokenizer is None and recipe.data.prepared is None:
            raise Refused(f"{recipe.reference}: has no tokenizer, so text cannot be prepared; give data.prepared")

    @property
    def _init(self) -> str:
        """What the target starts from."""
        return canonical_init(self.recipe.inherit.init)

    @property
    def _inits(self) -> list[str]:
        """What the target and the trained controls start from, the target first."""
        return [self._init, *(canonical_init(word) for word in self.recipe.controls if word != "cut")]

    def run(self, until: str) -> Record:
        """Every stage up to `until`, with the state of the run kept in `result.json`."""
        write_atomic(self.directory / "recipe.yaml", recipes.dump(self.recipe))
        done = read_json(self.directory / "result.json")
        if isinstance(done, dict) and done.get("state") == "done" and "target" in done:
            self.console.line(f"{self.directory}: already done.")
            return self._show(done)
        write_json(self.directory / "environment.json", environment.describe())
        try:
            return self._run(until)
        except Interrupted:
            self._state("preempted")
            raise
        except KeyboardInterrupt:
            self._state("preempted")
            raise Interrupted(f"{self.directory}: stopped", 130) from None
        except Refused:
            raise
        except (InherituneError, OSError):
            with contextlib.suppress(OSError):  # the disk may be full, which is then the error to report
                self._state("failed")
            raise

    def _run(self, until: str) -> Record:
        self._state("running")
        prepared = self._prepare(self._tokenizer())
        if until == "prepare":
            return self._state("prepared")
        if self.reference is not None:
            self._inherit(self.reference, prepared)
        if until == "inherit":
            return self._state("inherited")
        self._train("target", prepared)
        if until == "train":
            return self._state("trained")
        for name in self._inits[1:]:
            self._train(name, prepared)
        return self._finish(prepared)

    def _state(self, state: str) -> Record:
        record = {"name": self.recipe.name, "state": state}
        write_json(self.directory / "result.json", record)
        return record

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[Record]:
        """Write what a finished stage took to the ledger, with what the body puts into the entry."""
        entry: Record = {}
        started = time.monotonic()
        yield entry
        ledger = read_json(self.directory / "ledger.json") or {}
        ledger[stage] = {"seconds": round(time.monotonic() - started, 3), **entry}
        write_json(self.directory / "ledger.json", ledger)

    def _data(self) -> DataConfig:
        """The data section with its words resolved."""
        return checks.resolved_data(self.recipe, self.reference)

    def _tokenizer(self) -> str:
        """Where the tokenizer is: the reference's own, or the one trained for an architecture."""
        if self.reference is not None:
            return str(self.reference.path)
        architecture = self.recipe.architecture
        assert architecture is not None
        if architecture.tokenizer is not None:
            return architecture.tokenizer
        out = self.directory / "tokenizer"
        if not out.exists():
            self.console.stage(f"Training a tokenizer of {architecture.vocabulary:,} entries")
            temporary = self.directory / ".tokenizer.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            with self._timed("tokenizer"):
                texts = corpus.iterate_training_texts(
                    checks.resolved_data(self.recipe, self.reference), max_bytes=_TOKENIZER_BYTES
                )
                scratch.train_tokenizer(texts, architecture.vocabulary, temporary, self.recipe.data.sequence_length)
                temporary.rename(out)
        return str(out)

    def _prepare(self, tokenizer: str) -> Prepared:
        if self.recipe.data.prepared is not None:
            prepared = open_prepared(Path(self.recipe.data.prepared))
        else:
            out = self.directory / "data"
            self.console.stage("Preparing the data")
            # what was prepared before costs nothing now, and its entry in the ledger stays
            with contextlib.nullcontext() if (out / "manifest.json").exists() else self._timed("prepare"):
                corpus.prepare(
                    checks.resolved_data(self.recipe, self.reference), tokenizer, out, report=self.console.line
                )
            prepared = open_prepared(out)
        checks.check_prepared(prepared, self.reference, self.directory)
        prepared.verify()
        write_json(self.directory / "data.json", {"fingerprint": prepared.manifest["fingerprint"]})
        sets = prepared.manifest["sets"]
        for name, entry in sets.items():
            self.console.line(f"  {name}: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
        for name, removed in prepared.manifest.get("seen_removed", {}).items():
            if removed:
                self.console.line(f"  {name}: {removed:,} documents taken out, which the reference was trained on")
        if self.reference is not None:
            references.check_vocabulary(self.reference, prepared.manifest["tokenizer"]["vocabulary"])
        length = self.recipe.data.sequence_length
        if sets["train"]["tokens"] <= length:
            raise Refused(
                f"data: {sets['train']['tokens']} training tokens fill no block of {length}; lower data.sequence_length"
            )
        train = self.recipe.train
        blocks = TrainingBlocks(
            prepared.set("train"), length, self.recipe.data.passes, train.batch_sequences, train.seed
        )
        steps = min(blocks.steps, train.max_steps or blocks.steps)
        if train.warmup_steps >= steps:
            what = f"{train.warmup_steps} of {steps} steps would all be warm-up"
            raise Refused(f"train.warmup_steps: {what}; lower it, or train longer")
        return prepared

    def _layers(self, reference: Reference, prepared: Prepared) -> tuple[int, ...]:
        """The layers kept; by their influence on tokens of the training set, if the recipe says so."""
        if self.indices is None:
            count = surgery.influence_count(self.recipe.inherit.layers, reference.layers)
            record = read_json(self.directory / "influence.json")
            if record is None:
                self.console.stage("Measuring what each block does to the hidden state")
                with self._timed("influence"):
                    record = influence_record(
                        reference,
                        prepared.set("train"),
                        count,
                        sequence_length=self.recipe.data.sequence_length,
                        batch_sequences=self.recipe.train.micro_batch_sequences,
                        compute=self.recipe.train.compute_dtype,
                        device=self.world.device,
                    )
                write_json(self.directory / "influence.json", record)
            self.indices = tuple(record["layers"])
            self.console.line(f"  layers {surgery.spelled(self.indices)} have the greatest influence")
            try:
                checks.check_cut(reference, self.indices, self._inits)
            except Refused as error:
                raise Failed(f"{error} (these are the layers that {self.recipe.inherit.layers} found)") from error
        return self.indices

    def _inherit(self, reference: Reference, prepared: Prepared) -> None:
        """Cut, prove, record; measure the reference and, where it is a control, the cut before any training."""
        indices = self._layers(reference, prepared)
        losses = self.directory / "losses"
        wanted = ["reference", *(["cut"] if "cut" in self.recipe.controls else [])]
        began_with = read_json(self.directory / "reference.json")
        if began_with is not None and began_with["fingerprint"] != reference.fingerprint:
            raise Refused(f"{reference.source}: its weights changed since this run began; choose another --out")
        whole = self._init if self._init in ("inherit", "stack") else "inherit"
        records = [self.directory / name for name in ("reference.json", "inheritance.json")]
        done = [*records, *(losses / f"{name}.json" for name in wanted)]
        if all(path.exists() for path in done) and (self.directory / "starts" / whole).exists():
            return
        self.console.stage(
            f"Inheriting layers {surgery.spelled(indices)} of {reference.layers} from {reference.source}"
        )
        write_json(self.directory / "reference.json", references.describe(reference))
        start = self._start(whole, prepared)
        record = read_json(start / "inheritance.json")
        if record is None:
            raise Failed(f"{start}: damaged, it holds no inheritance.json; delete it and give the same command again")
        if self._init != whole:
            model, taken = self._partly(self._init, prepared)
            tensors = surgery.tensor_records(model, taken, record)
            record |= surgery.account(indices, reference, tensors, tuple(record["ignored"]), parameters(model))
        record |= {"init": self._init, "layers_word": str(self.recipe.inherit.layers)}
        write_json(self.directory / "inheritance.json", record)
        if not (losses / "reference.json").exists():
            self._measure("reference", references.load(reference), prepared)
        if "cut" in wanted:
            self._measure("cut", self._loaded(start), prepared)

    def _start(self, init: str, prepared: Prepared) -> Path:
        """What models with a whole init begin from, as a directory: cut and proven when it is first asked for."""
        assert self.reference is not None
        assert self.indices is not None
        out = self.directory / "starts" / init
        if not out.exists():
            ids = torch.from_numpy(prepared.set(prepared.main_set).read(0, self.recipe.data.sequence_length))[None]
            with self._timed("inherit" if init == self._init else f"inherit {init}"):
                try:
                    surgery.inherit(
                        self.reference,
                        self.indices,
                        out,
                        init=init,
                        token_ids=ids,
                        tokens_from=prepared.main_set,
                        report=lambda line: self.console.line(f"  {line}"),
                        progress=self.console.work("cutting and proving"),
                    )
                except Refused as error:  # only running the target shows that blocks depend on each other
                    raise Failed(f"{error}; the prepared data is kept, name it as data.prepared") from error
        return out

    def _partly(self, init: str, prepared: Prepared) -> tuple[PreTrainedModel, frozenset[str]]:
        """What models with an init of parts, or of none, begin from, in float32; and which tensors are inherited."""
        assert self.reference is not None
        whole = self._start("inherit", prepared)
        return surgery.start(whole, self.reference, init_parts(init), self.recipe.train.seed)

    def _loaded(self, directory: Path) -> PreTrainedModel:
        """A model that was saved, in the dtype of its files.

        Raises:
            Failed: it does not load.
        """
        try:
            with references.quiet():
                model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=self.recipe.trust_remote_code)
        except references.LOADING_ERRORS as error:
            what = f"{directory}: cannot be loaded ({references.one_line(error)})"
            raise Failed(f"{what}; delete it, checkpoints are kept") from error
        assert isinstance(model, PreTrainedModel)
        return model

    def _measure(self, name: str, model: PreTrainedModel, prepared: Prepared) -> Record:
        """A model's losses by document on every set: measured once, in float32 weights, and recorded."""
        path = self.directory / "losses" / f"{name}.json"
        record = read_json(path)
        if record is None:
            path.parent.mkdir(exist_ok=True)
            train = self.recipe.train
            dtype = compute_dtype(train.compute_dtype, self.world.device)
            self.console.line(f"  measuring the {_called(name)} on {', '.join(prepared.measured_names)}")
            with self._timed(f"measure {name}"):
                place(model.float(), self.world.device)
                losses = measure_all(
                    model, prepared, self.recipe.data.sequence_length, train.micro_batch_sequences, dtype
                )
            record = {
                "layers": model.config.get_text_config().num_hidden_layers,
                "parameters": parameters(model),
                "compute_dtype": str(dtype).removeprefix("torch."),
                "sets": {set_name: result.record() for set_name, result in losses.items()},
            }
            write_json(path, record)
        assert isinstance(record, dict)
        return record

    def _model(self, name: str, prepared: Prepared) -> tuple[PreTrainedModel, torch.dtype]:
        """A model at its start, and the dtype that it is exported in."""
        if self.reference is not None:
            init = self._init if name == "target" else name
            if init in ("inherit", "stack"):
                return self._loaded(self._start(init, prepared)), self.reference.torch_dtype
            return self._partly(init, prepared)[0], self.reference.torch_dtype
        tokenizer = prepared.manifest["tokenizer"]
        config = checks.architecture_config(self.recipe, tokenizer["vocabulary"], tokenizer["end_of_text"])
        wanted: Any = config.dtype or "float32"
        config.dtype = torch.float32  # drawn in full precision, whatever the export's is
        model = references.fresh(config, self.recipe.train.seed, trust_remote_code=self.recipe.trust_remote_code)
        return model, wanted if isinstance(wanted, torch.dtype) else getattr(torch, wanted)

    def _train(self, name: str, prepared: Prepared) -> None:
        """Train a model, export it, measure what was exported. Skipped when its losses are recorded."""
        if (self.directory / "losses" / f"{name}.json").exists():
            return
        directory = self._directory_of(name)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "model").exists():
            self.console.stage(f"Training the {_called(name)}")
            model, dtype = self._model(name, prepared)
            trainer = Trainer(
                model=place(model, self.world.device),
                prepared=prepared,
                config=self.recipe.train,
                directory=directory,
                sequence_length=self.recipe.data.sequence_length,
                passes=self.recipe.data.passes,
                report=self.console.line,
                progress=self.console.progress,
            )
            with self._timed(f"train {name}") as entry:
                entry.update(dataclasses.asdict(trainer.run()))
            uncompile_blocks(model)
            if trainer.best_weights is not None:
                checkpoint.load_weights(trainer.best_weights, model)
            cast_as_loaded(model.cpu(), dtype, trust_remote_code=self.recipe.trust_remote_code)
            self._export(name, model, directory / "model")
        self._measure(name, self._loaded(directory / "model"), prepared)

    def _directory_of(self, name: str) -> Path:
        """Where a model's records, checkpoints and export go."""
        return self.directory if name == "target" else self.directory / "controls" / name

    def _export(self, name: str, model: PreTrainedModel, out: Path) -> None:
        """Write a Hugging Face directory of the model, with its tokenizer and its lineage."""
        recipe = {"recipe": recipes.as_dict(self.recipe)}
        if self.reference is None:
            tokenizer = AutoTokenizer.from_pretrained(self._tokenizer())
            surgery.save(model, tokenizer, out, {"initialisation": "random", **recipe})
            return
        assert self.indices is not None
        init = self._init if name == "target" else name
        lineage: Record = {"initialisation": "random"}
        if init != "random":
            lineage = surgery.lineage(self.reference, surgery.kept(self.indices, init), init)
        surgery.save(model, None, out, {**lineage, **recipe}, reference=self.reference)

    def _finish(self, prepared: Prepared) -> Record:
        """Compute `result.json` from the records, write it and the report, show the table."""
        own = self._own_training(prepared) if self.reference is not None else None
        trained = ["target", *self._inits[1:]]
        names = ("reference", *(["cut"] if "cut" in self.recipe.controls else []), *trained)
        losses = {name: read_json(self.directory / "losses" / f"{name}.json") for name in names}
        ledger = read_json(self.directory / "ledger.json")
        for name in trained:
            if losses[name] is not None and (not isinstance(ledger, dict) or f"train {name}" not in ledger):
                what = f"{self.directory / 'ledger.json'}: has no entry of the {name}'s training"
                raise Failed(f"{what}; restore the file, or run the recipe into another --out")
        result = assemble(
            self.recipe.name,
            losses={name: record for name, record in losses.items() if record is not None},
            ledger=ledger,
            metrics={name: read_jsonl(self._directory_of(name) / "metrics.jsonl") for name in trained},
            own_training=own,
            main_set=prepared.main_set,
            init=self._init,
        )
        result["sets"] = {
            name: {key: entry[key] for key in ("documents", "tokens", "bytes")}
            for name, entry in prepared.manifest["sets"].items()
        }
        result["model"] = "model"
        write_json(self.directory / "result.json", result)
        return self._show(result)

    def _own_training(self, prepared: Prepared) -> OwnTraining:
        """What is known of the reference's own training: its tokens, and its validation curve where it ships one."""
        assert self.reference is not None
        folder = Path(self.reference.path)
        record = read_json(folder / "inheritune.json") or {}
        held_out = [file["sha256"] for file in prepared.manifest["sets"][prepared.main_set]["files"]]
        return OwnTraining(
            name=self.reference.source,
            tokens=self.reference.tokens_trained,
            metrics=read_jsonl(folder / "training.jsonl"),
            same_documents=record.get("held_out_sha256") == held_out,
        )

    def _show(self, result: Record) -> Record:
        """The report, the table, the verdict, and how to use the model."""
        page = write_report(self.directory)
        self.console.table(render_table(result, read_json(self.directory / "ledger.json")))
        model = self.directory / "model"
        self.console.line(f"\n{result['verdict']}")
        for difference in result.get("differences", {}).values():
            self.console.line(difference["text"])
        if result.get("tokens_to_match"):
            self.console.line(result["tokens_to_match"]["text"])
        self.console.line(f"\nReport: {page}\nModel:  {model}\n")
        for line in usage(str(model)):
            self.console.line(f"  {line}")
        return result


def _called(name: str) -> str:
    """A model's name in a sentence."""
    plain = {"reference": "reference", "target": "target", "cut": "untrained cut"}
    return plain.get(name, f"{name} control")
