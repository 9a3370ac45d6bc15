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

from inheritune import corpus, environment, recipe as recipes, reference as references, scratch, surgery
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.distributed import World, joined, lost_rank
from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.parallel import check_ranks, compute_dtype, place, uncompile_blocks
from inheritune.pipeline import checks
from inheritune.pipeline.direct import influence_record
from inheritune.pipeline.outcome import called, directory_of, finish, show
from inheritune.reference import Reference, cast_as_loaded, parameters
from inheritune.rules import canonical_init, init_parts
from inheritune.run_directory import clear, lock, read_json, write_atomic, write_json
from inheritune.tokens import Prepared, open_prepared
from inheritune.tracking import check_tracker
from inheritune.training import Trainer
from inheritune.validation import measure_all

Record = dict[str, Any]
_MEASURED_AT_ONCE = 8
"""Sequences a forward pass of a measurement where the recipe leaves the micro-batch to be found."""
_TOKENIZER_BYTES = 40_000_000
"""Text that a tokenizer is trained on at most: more changes a few thousand entries little, and takes minutes."""


def run(recipe: Recipe, out: Path | None = None, *, console: Console | None = None, until: str = "report") -> Record:
    """Run a recipe, or go on with it, in its run directory; under torchrun on all its ranks.

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
    with joined() as world, contextlib.ExitStack() as stack:
        stages = _Stages(recipe, directory, console or Console(silent=not world.main), world)
        stages.check_on_all()
        created, fresh = world.on_main(lambda: _enter(stack, stages))
        try:
            return stages.run(until)
        except Refused:
            if fresh and world.main:
                clear(directory, remove=created)
            raise
        except Interrupted as stop:
            stop.said = not world.main
            raise
        except RuntimeError as error:
            if world.size > 1 and lost_rank(error):
                raise Failed(f"{directory}: another rank was lost; the same command goes on from there") from error
            raise


def _enter(stack: contextlib.ExitStack, stages: _Stages) -> tuple[bool, bool]:
    """Take the run directory for this run; whether it is made now, and whether the run begins now."""
    directory = stages.directory
    created = not directory.exists()
    stack.enter_context(checks.no_empty_parents(directory))
    stack.enter_context(lock(directory))
    stages.check_directory()  # again: another run may have begun here while this one was being checked
    return created, not (directory / "recipe.yaml").exists()


class _Stages:
    """One run: its recipe, its directory, and what the stages hand on to each other."""

    def __init__(self, recipe: Recipe, directory: Path, console: Console, world: World) -> None:
        self.recipe = recipe
        self.directory = directory
        self.console = console
        self.world = world
        self.reference: Reference | None = None
        self.indices: tuple[int, ...] | None = None
        """The layers kept; None as long as they are to be found by their influence."""

    def check(self) -> None:
        """Refuse all that can be refused now."""
        checks.check_recipe(self.recipe)
        if self.world.main:  # the others are told: no collective call may stand in here
            check_tracker(self.recipe.train.tracker)
        check_ranks(self.world, self.recipe.train.fsdp_ranks)
        if self.recipe.reference is not None:
            self._find_reference(self.recipe.reference)
        else:
            checks.architecture_config(self.recipe, vocabulary=257, end_of_text=0)
        self.check_directory()
        checks.check_data(self.recipe, self.reference, self.directory)
        if self.recipe.data.document_mask and self.world.main:
            checks.check_documents(self.recipe, self.reference)

    def check_on_all(self) -> None:
        """Refuse on every rank what any of them refuses; no rank writes before all have looked."""
        problem = None
        try:
            self.check()
        except Refused as error:
            problem = str(error)
        found = next((one for one in self.world.gathered(problem) if one is not None), None)
        if found is not None:
            refused = Refused(found)
            refused.said = not self.world.main
            raise refused

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
        done = self.world.on_main(self._begin)
        if done is not None:
            return done
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

    def _begin(self) -> Record | None:
        """Write what the run is; its result, if it is done already."""
        done = read_json(self.directory / "result.json")
        if isinstance(done, dict) and done.get("state") == "done" and "target" in done:
            self.console.line(f"{self.directory}: already done.")
            return show(self.directory, done, self.console)
        write_atomic(self.directory / "recipe.yaml", recipes.dump(self.recipe))
        write_json(self.directory / "environment.json", environment.describe())
        return None

    def _run(self, until: str) -> Record:
        self._state("running")
        world = self.world
        data = world.on_main(lambda: self._prepare(self._tokenizer()).directory)
        prepared = open_prepared(data)
        if until == "prepare":
            return self._state("prepared")
        if self.reference is not None:
            reference = self.reference
            self.indices = world.on_main(lambda: self._inherit(reference, prepared))
        if until == "inherit":
            return self._state("inherited")
        self._train("target", prepared, later=len(self._inits) - 1 if until == "report" else 0)
        if until == "train":
            return self._state("trained")
        for count, name in enumerate(self._inits[1:], 1):
            self._train(name, prepared, later=len(self._inits) - 1 - count)
        return world.on_main(
            lambda: finish(self.directory, self.recipe, self._inits, self.reference, prepared, self.console)
        )

    def _state(self, state: str) -> Record:
        record = {"name": self.recipe.name, "state": state}
        if self.world.main:
            write_json(self.directory / "result.json", record)
        return record

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[Record]:
        """Write what a finished stage took to the ledger, with what the body puts into the entry."""
        entry: Record = {}
        started = time.monotonic()
        yield entry
        if not self.world.main:
            return
        ledger = read_json(self.directory / "ledger.json") or {}
        ledger[stage] = {"seconds": round(time.monotonic() - started, 3), **entry}
        write_json(self.directory / "ledger.json", ledger)

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
        checks.check_blocks(self.recipe, prepared)
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
                        batch_sequences=self._measured_at_once,
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

    def _inherit(self, reference: Reference, prepared: Prepared) -> tuple[int, ...]:
        """Cut, prove, record; measure the reference and, where it is a control, the cut before any training.

        Returns:
            The layers kept.
        """
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
            return indices
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
        return indices

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
            self.console.line(f"  measuring the {called(name)} on {', '.join(prepared.measured_names)}")
            with self._timed(f"measure {name}"):
                place(model.float(), self.world.device)
                data = self.recipe.data
                losses = measure_all(
                    model,
                    prepared,
                    data.sequence_length,
                    self._measured_at_once,
                    dtype,
                    document_mask=data.document_mask,
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

    @property
    def _measured_at_once(self) -> int:
        """Sequences a forward pass of a measurement."""
        asked = self.recipe.train.micro_batch_sequences
        return asked if asked != "auto" else _MEASURED_AT_ONCE

    def _train(self, name: str, prepared: Prepared, *, later: int) -> None:
        """Train a model, export it, measure what was exported. Skipped when its losses are recorded.

        Args:
            name: `target`, or a control's.
            prepared: the data.
            later: how many trainings come after this one.
        """
        world, directory = self.world, directory_of(self.directory, name)
        done, exported = world.on_main(lambda: self._before_training(name, prepared))
        if done:
            return
        if not exported:
            self.console.stage(f"Training the {called(name)}")
            model, dtype = self._model(name, prepared)
            recipe = self.recipe
            trainer = Trainer(
                model=model,
                prepared=prepared,
                config=recipe.train,
                directory=directory,
                sequence_length=recipe.data.sequence_length,
                passes=recipe.data.passes,
                report=self.console.line,
                progress=lambda progress: self.console.progress(progress, later),
                world=world,
                document_mask=recipe.data.document_mask,
                teacher=self._teacher(),
                run_name=f"{recipe.name}/{name}",
                run_config=recipes.as_dict(recipe),
            )
            with self._timed(f"train {name}") as entry:
                entry.update(dataclasses.asdict(trainer.run()))
            self._export_trained(name, trainer, dtype, directory / "model")
        world.on_main(lambda: self._measure(name, self._loaded(directory / "model"), prepared))

    def _before_training(self, name: str, prepared: Prepared) -> tuple[bool, bool]:
        """Whether a model is measured already, and whether it is exported; what it starts from is there afterwards."""
        directory = directory_of(self.directory, name)
        directory.mkdir(parents=True, exist_ok=True)
        done = (self.directory / "losses" / f"{name}.json").exists()
        exported = (directory / "model").exists()
        if self.reference is not None and not done and not exported:
            init = self._init if name == "target" else name
            self._start(init if init in ("inherit", "stack") else "inherit", prepared)
        return done, exported

    def _teacher(self) -> PreTrainedModel | None:
        """The model to learn from, if the objective is distillation."""
        if self.recipe.train.objective.distill is None or self.reference is None:
            return None
        return references.load(self.reference)

    def _export_trained(self, name: str, trainer: Trainer, dtype: torch.dtype, out: Path) -> None:
        """Write what was trained: rank 0 gathers the weights, each whole, into a model of its own."""
        # every rank takes part in gathering, one keeps what comes of it
        whole = {key: value.cpu() for key, value in trainer.exported() if self.world.main}

        def write() -> None:
            model = trainer.model
            uncompile_blocks(model)
            if self.world.size > 1:  # its modules are sharded, or share their memory with DDP's
                model = self._model(name, trainer.prepared)[0].float()
            with torch.no_grad():
                for key, parameter in model.cpu().named_parameters():
                    parameter.copy_(whole[key])
            cast_as_loaded(model, dtype, trust_remote_code=self.recipe.trust_remote_code)
            self._export(name, model, out)

        self.world.on_main(write)

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
