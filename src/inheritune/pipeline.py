"""`run`: the stages in order, each skipped when its record is there: prepare, inherit, train, controls, report.

Everything that can be refused is refused before the first byte is written. A run that was stopped, by whatever means,
goes on when the same command is given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from inheritune import checkpoint, corpus, environment, recipe as recipes, reference as references, scratch, surgery
from inheritune.config import DataConfig, Recipe
from inheritune.console import Console
from inheritune.distributed import World, world
from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.parallel import cast_parameters, compute_dtype, place, uncompile_blocks
from inheritune.planning import parameters
from inheritune.reference import Reference
from inheritune.report import render_table, usage, write_report
from inheritune.result import OwnTraining, assemble
from inheritune.run_directory import clear, lock, read_json, read_jsonl, write_atomic, write_json
from inheritune.tokens import Prepared, TrainingBlocks, open_prepared
from inheritune.training import Trainer, measure_all

Record = dict[str, Any]
_NAMES = {"random": "random control", "cut": "untrained cut"}
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
    with lock(directory):
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
        self.indices: tuple[int, ...] = ()

    def check(self) -> None:
        """Refuse all that can be refused now."""
        recipe = self.recipe
        if (recipe.reference is None) == (recipe.architecture is None):
            raise Refused(
                "recipe: give a reference (a directory, a hub id or packaged:demo), or an architecture to start from"
            )
        if recipe.train.tracker == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise Refused("train.tracker: tensorboard is not installed; pip install 'inheritune[tensorboard]'")
        if recipe.reference is not None:
            self._find_reference(recipe.reference)
        elif recipe.controls:
            raise Refused(
                "recipe: controls compare a target with its reference; this recipe starts from an architecture"
            )
        else:
            self._architecture(vocabulary=257, end_of_text=0)
        self.check_directory()
        self._check_data()

    def _find_reference(self, name: str) -> None:
        recipe = self.recipe
        self.reference = references.find(name, recipe.revision, recipe.trust_remote_code)
        # the commit that a branch's name stands for now, so that the dumped recipe repeats the run
        self.recipe = dataclasses.replace(recipe, revision=self.reference.revision)
        self.indices = surgery.parse_layers(recipe.inherit.layers, self.reference.layers)
        references.check_sequence_length(self.reference, recipe.data.sequence_length)
        if self.reference.tokenizer is None and recipe.data.prepared is None:
            raise Refused(f"{recipe.reference}: has no tokenizer, so text cannot be prepared; give data.prepared")

    def _check_data(self) -> None:
        data, best = self.recipe.data, self.recipe.train.export == "best"
        if data.prepared is not None:
            try:
                prepared = open_prepared(Path(data.prepared))
            except Failed as error:
                raise Refused(f"data.prepared: {error}") from None
            self._check_prepared(prepared)
            judged, developed = len(prepared.measured_names) > prepared.developed, prepared.developed
        else:
            if not data.sources:
                raise Refused("recipe: data.sources is empty; name files, a directory, hub:ORG/NAME or python-source")
            judged = data.validation_share > 0 or bool(data.validation_sets)
            developed = data.development_share > 0
            if judged:
                corpus.check_sources(self._data())
        if not judged:
            raise Refused(
                "recipe: nothing to judge by: data.validation_share is 0; raise it, or name data.validation_sets"
            )
        if best and not developed:
            raise Refused("train.export: best is chosen on a development set; raise data.development_share")

    def _check_prepared(self, prepared: Prepared) -> None:
        """Shards are of this reference's tokenizer, and those that this run began with."""
        made = prepared.manifest
        if self.reference is not None and self.reference.tokenizer is not None:
            own = corpus.tokenizer_fingerprint(str(self.reference.path))
            if own != made["tokenizer"]["fingerprint"]:
                raise Refused(
                    f"{prepared.directory}: prepared with another tokenizer than {self.reference.source}'s "
                    f"({made['tokenizer']['fingerprint'][:12]} there, {own[:12]} here); prepare the data again"
                )
        began_with = read_json(self.directory / "data.json")
        if began_with is not None and began_with["fingerprint"] != made["fingerprint"]:
            raise Refused(
                f"{prepared.directory}: the shards changed since this run began "
                f"({began_with['fingerprint'][:12]} then, {made['fingerprint'][:12]} now); choose another --out"
            )

    def check_directory(self) -> None:
        """The run directory is new, empty, or holds this very recipe."""
        if self.directory.exists() and not self.directory.is_dir():
            raise Refused(f"{self.directory}: a file, not a directory; choose another --out")
        if not self.directory.is_dir() or not any(self.directory.iterdir()):
            return
        path = self.directory / "recipe.yaml"
        if not path.exists():
            if {entry.name for entry in self.directory.iterdir()} <= {".lock"}:
                return
            raise Refused(
                f"{self.directory}: not empty and no run directory (it holds no recipe.yaml); choose another --out"
            )
        try:
            held = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            held = None
        if not isinstance(held, dict) or not isinstance(held.get("data"), dict):
            raise Refused(f"{path}: damaged, so what this run is cannot be told; restore it, or choose another --out")
        mine = recipes.as_dict(self.recipe)
        for values in (held, mine):
            values["data"].pop("workers", None)  # changes speed, not the result
        difference = recipes.first_difference(held, mine)
        if difference is not None:
            key, old, new = difference
            what = f"{key}: {old!r} there, {new!r} here"
            raise Refused(f"{self.directory}: holds a run of another recipe ({what}); choose another --out")

    def _data(self) -> DataConfig:
        """The data section with its words resolved."""
        data = self.recipe.data
        if data.exclude_seen != "reference":
            return data
        seen = self.reference.seen_hashes if self.reference is not None else None
        if seen is None:
            raise Refused("data.exclude_seen: the reference ships no seen.txt; give a file of content hashes, or null")
        return dataclasses.replace(data, exclude_seen=str(seen))

    def _architecture(self, vocabulary: int, end_of_text: int) -> PretrainedConfig:
        """The config of a recipe that starts from an architecture."""
        assert self.recipe.architecture is not None
        config = scratch.architecture_config(self.recipe.architecture, vocabulary, end_of_text)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and self.recipe.data.sequence_length > positions:
            length = self.recipe.data.sequence_length
            raise Refused(f"data.sequence_length: {length} is too long: the architecture has {positions} positions")
        return config

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
        if "random" in self.recipe.controls:
            self._train("random", prepared)
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
                texts = corpus.iterate_training_texts(self._data(), max_bytes=_TOKENIZER_BYTES)
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
                corpus.prepare(self._data(), tokenizer, out, report=self.console.line)
            prepared = open_prepared(out)
        self._check_prepared(prepared)
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

    def _inherit(self, reference: Reference, prepared: Prepared) -> None:
        """Cut, prove, record; measure the reference and, where it is a control, the cut before any training."""
        losses = self.directory / "losses"
        wanted = ["reference", *(["cut"] if "cut" in self.recipe.controls else [])]
        began_with = read_json(self.directory / "reference.json")
        if began_with is not None and began_with["fingerprint"] != reference.fingerprint:
            raise Refused(f"{reference.source}: its weights changed since this run began; choose another --out")
        done = [self.directory / "inheritance.json", *(losses / f"{name}.json" for name in wanted)]
        if all(path.exists() for path in done):
            return
        self.console.stage(
            f"Inheriting layers {surgery.spelled(self.indices)} of {reference.layers} from {reference.source}"
        )
        with self._timed("inherit"):
            model = references.load(reference)
            target, account = surgery.inherit(model, self.indices)
            ids = torch.from_numpy(prepared.set(prepared.main_set).read(0, self.recipe.data.sequence_length))[None]
            proof = surgery.prove(model, target, self.indices, ids)
            write_json(self.directory / "reference.json", references.describe(reference))
            write_json(self.directory / "inheritance.json", {**account.record(), "proof": proof})
        sizes = f"{parameters(model):,} parameters become {parameters(target):,}"
        self.console.line(f"  {sizes}; every kept tensor equals its source, hidden states agree bit for bit")
        self._measure("reference", model, prepared)
        if "cut" in wanted:
            self._measure("cut", target, prepared)

    def _measure(self, name: str, model: PreTrainedModel, prepared: Prepared) -> Record:
        """A model's losses by document on every set: measured once, in float32 weights, and recorded."""
        path = self.directory / "losses" / f"{name}.json"
        record = read_json(path)
        if record is None:
            path.parent.mkdir(exist_ok=True)
            train = self.recipe.train
            dtype = compute_dtype(train.compute_dtype, self.world.device)
            self.console.line(f"  measuring the {_NAMES.get(name, name)} on {', '.join(prepared.measured_names)}")
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
        """A model at its start, and the dtype that it is exported in.

        The start is the inherited target, its random control, or an architecture's random init.
        """
        if self.reference is not None and name == "target":
            target, _ = surgery.inherit(references.load(self.reference), self.indices)
            return target, target.dtype
        if self.reference is not None:
            config = AutoConfig.from_pretrained(
                self.directory / "model", trust_remote_code=self.recipe.trust_remote_code
            )
            delattr(config, references.LINEAGE_KEY)  # the control inherits nothing
            wanted: Any = self.reference.dtype
        else:
            tokenizer = prepared.manifest["tokenizer"]
            config = self._architecture(tokenizer["vocabulary"], tokenizer["end_of_text"])
            wanted = config.dtype or "float32"
        config.dtype = torch.float32  # drawn in full precision, whatever the export's is
        model = references.fresh(config, self.recipe.train.seed, trust_remote_code=self.recipe.trust_remote_code)
        return model, wanted if isinstance(wanted, torch.dtype) else getattr(torch, wanted)

    def _train(self, name: str, prepared: Prepared) -> None:
        """Train a model, export it, measure what was exported. Skipped when its losses are recorded."""
        if (self.directory / "losses" / f"{name}.json").exists():
            return
        directory = self.directory if name == "target" else self.directory / "controls" / name
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "model").exists():
            self.console.stage(f"Training the {_NAMES.get(name, name)}")
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
            self._export(name, cast_parameters(model.cpu(), dtype), directory / "model")
        try:
            exported = AutoModelForCausalLM.from_pretrained(directory / "model")
        except (OSError, ValueError) as error:
            what = f"{directory / 'model'}: cannot be loaded ({references.one_line(error)})"
            raise Failed(f"{what}; delete it, the checkpoint is kept") from error
        self._measure(name, exported, prepared)

    def _export(self, name: str, model: PreTrainedModel, out: Path) -> None:
        """Write a Hugging Face directory of the model, with its tokenizer and its lineage."""
        if self.reference is not None:
            tokenizer = self.reference.tokenizer
            lineage = (
                surgery.lineage(self.reference, self.indices) if name == "target" else {"initialisation": "random"}
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(self._tokenizer())
            lineage = {"initialisation": "random"}
        surgery.save(model, tokenizer, out, {**lineage, "recipe": recipes.as_dict(self.recipe)})

    def _finish(self, prepared: Prepared) -> Record:
        """Compute `result.json` from the records, write it and the report, show the table."""
        own = self._own_training(prepared) if self.reference is not None else None
        names = ("reference", "cut", "target", "random")
        losses = {name: read_json(self.directory / "losses" / f"{name}.json") for name in names}
        ledger = read_json(self.directory / "ledger.json")
        for name in ("target", "random"):
            if losses[name] is not None and (not isinstance(ledger, dict) or f"train {name}" not in ledger):
                what = f"{self.directory / 'ledger.json'}: has no entry of the {name}'s training"
                raise Failed(f"{what}; restore the file, or run the recipe into another --out")
        result = assemble(
            self.recipe.name,
            losses={name: record for name, record in losses.items() if record is not None},
            ledger=ledger,
            metrics={
                "target": read_jsonl(self.directory / "metrics.jsonl"),
                "random": read_jsonl(self.directory / "controls" / "random" / "metrics.jsonl"),
            },
            own_training=own,
            main_set=prepared.main_set,
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
        if result.get("tokens_to_match"):
            self.console.line(result["tokens_to_match"]["text"])
        self.console.line(f"\nReport: {page}\nModel:  {model}\n")
        for line in usage(str(model)):
            self.console.line(f"  {line}")
        return result


def prepare(data: DataConfig, tokenizer: str, out: Path, console: Console | None = None) -> Record:
    """Text to token shards with a reference's tokenizer (see `corpus.prepare`)."""
    console = console or Console()
    if not data.sources:
        raise Refused("prepare: no SOURCE; name files, globs, directories, hub:ORG/NAME or python-source")
    corpus.check_sources(data)
    folder = references.find(tokenizer).path if tokenizer.startswith("packaged:") else tokenizer
    manifest = corpus.prepare(data, folder, out, report=console.line)
    for name, entry in manifest["sets"].items():
        console.line(f"{name}: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
    console.line(f"{out}: fingerprint {manifest['fingerprint']}")
    return manifest
