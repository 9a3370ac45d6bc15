"""`run`: the stages in order, each skipped when its record is there: prepare, inherit, train or grow, controls, report.

Everything that can be refused is refused before the first byte is written. A run that was stopped, by whatever means,
goes on when the same command is given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from inheritune import environment, ledger, recipe as recipes, reference as references, surgery
from inheritune.arms import Arm
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.distributed import World, joined, lost_rank
from inheritune.errors import Failed, InherituneError, Interrupted, Refused
from inheritune.growth import Growth
from inheritune.parallel import check_ranks
from inheritune.pipeline import checks, data, evaluating, layer_choice, probing, resuming
from inheritune.pipeline.growing import Growing
from inheritune.pipeline.models import Models, Training, for_arm
from inheritune.pipeline.outcome import complete, finish, show, trained
from inheritune.pipeline.plan import Circumstances, make_plan
from inheritune.pipeline.shared import Record, Run
from inheritune.reference import Reference
from inheritune.report import three_lines
from inheritune.run_directory import clear, lock, read_json, read_object, write_atomic, write_json
from inheritune.tokens import Prepared, open_prepared
from inheritune.tracking import check_tracker


def run(recipe: Recipe, out: Path | None = None, *, console: Console | None = None, until: str = "report") -> Record:
    """Run a recipe, or go on with it, in its run directory; under torchrun on all its ranks.

    Args:
        recipe: the experiment.
        out: the run directory; `runs/NAME` if not given.
        console: where progress is shown.
        until: the last stage to run: `prepare`, `inherit`, `train` (the target, without controls), or `report`, all of
            it. Of a recipe that grows `inherit` is all before the rounds, `train` the rounds.

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
            if fresh and world.main and not stages.holds_work:
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
    """The stages of one run, in order."""

    def __init__(self, recipe: Recipe, directory: Path, console: Console, world: World) -> None:
        self._run = Run(recipe, directory, console, world)
        self._models = Models(self._run)
        self._depths: tuple[int, ...] = ()
        """Layers of the planned rounds, where the target grows."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._run.directory

    @property
    def holds_work(self) -> bool:
        """Whether a late refusal would take something with it that took long: a growth's text, or its own reference.

        Until its first round is over the same directory takes other settings of `grow`, and other controls.
        """
        worked = ("reference/model", "data/manifest.json", "losses/reference.json", "pilot.json")
        return self._run.recipe.grow is not None and any((self.directory / name).exists() for name in worked)

    def check(self) -> None:
        """Refuse all that can be refused now."""
        run = self._run
        checks.check_recipe(run.recipe)
        if run.world.main:  # the others are told: no collective call may stand in here
            check_tracker(run.recipe.train.tracker)
        check_ranks(run.world, run.recipe.train.fsdp_ranks)
        checks.check_sources(run.recipe, None)  # before a reference is fetched, or dequantised into the cache
        if run.recipe.reference is not None:
            checks.check_reference_is_there(self.directory, run.recipe)
            self._find_reference(run.recipe.reference)
        else:
            config = checks.architecture_config(run.recipe, vocabulary=257, end_of_text=0)
            if run.recipe.grow is not None:
                layers = int(config.get_text_config().num_hidden_layers)
                self._depths = checks.check_growth(run.recipe, layers)
        self.check_directory()
        if run.reference is not None:
            checks.check_sources(run.recipe, run.reference)
        checks.check_data(run.recipe, run.reference, run.directory)
        if run.recipe.data.document_mask and run.world.main:
            checks.check_documents(run.recipe, run.reference)
        if run.recipe.evaluate is not None and run.world.main:
            self._models.evaluator = evaluating.evaluator(run.recipe.evaluate, run.reference)

    def check_on_all(self) -> None:
        """Refuse on every rank what any of them refuses; no rank writes before all have looked."""
        problem = None
        try:
            self.check()
        except Refused as error:
            problem = str(error)
        found = next((one for one in self._run.world.gathered(problem) if one is not None), None)
        if found is not None:
            refused = Refused(found)
            refused.said = not self._run.world.main
            raise refused

    def check_directory(self) -> None:
        """The run directory is new, empty, or holds this very recipe."""
        checks.check_directory(self.directory, self._run.recipe)

    def _find_reference(self, name: str) -> None:
        run, recipe = self._run, self._run.recipe
        run.reference = references.find(
            name, recipe.revision, recipe.trust_remote_code, recipe.reference_file, recipe.reference_dtype
        )
        # the commit that a branch's name stands for now, so that the dumped recipe repeats the run
        run.recipe = dataclasses.replace(recipe, revision=run.reference.revision)
        if recipe.grow is not None:
            self._depths = checks.check_growth(recipe, run.reference.layers)
            rounds = [checks.round_indices(recipe, depth, run.reference.layers) for depth in self._depths]
            checks.check_arms(run.reference, rounds, run.target, run.controls)
        else:
            run.indices = surgery.parse_layers(recipe.inherit.layers, run.reference.layers)
            if run.indices is not None:
                checks.check_arms(run.reference, [run.indices], run.target, run.controls)
            elif surgery.is_probe(recipe.inherit.layers):
                probing.check(recipe, run.reference)
        references.check_sequence_length(run.reference, recipe.data.sequence_length)
        if run.reference.tokenizer is None and recipe.data.prepared is None:
            raise Refused(f"{recipe.reference}: has no tokenizer, so text cannot be prepared; give data.prepared")

    def run(self, until: str) -> Record:
        """Every stage up to `until`, with the state of the run kept in `result.json`."""
        run = self._run
        done = run.world.on_main(self._begin)
        if done is not None:
            return done
        try:
            return self._stages(until)
        except Interrupted:
            run.state("preempted")
            raise
        except KeyboardInterrupt:
            run.state("preempted")
            raise Interrupted(f"{self.directory}: stopped", 130) from None
        except Refused:
            raise
        except (InherituneError, OSError):
            with contextlib.suppress(OSError):  # the disk may be full, which is then the error to report
                run.state("failed")
            raise

    def _begin(self) -> Record | None:
        """Write what the run is; its result, if it is done already."""
        done = read_json(self.directory / "result.json")
        if resuming.is_whole(done):
            self._run.console.line(f"{self.directory}: already done.")
            complete(self.directory)
            return show(self.directory, done, self._run.console)
        ledger.entries(self.directory)  # a damaged one is said before more is spent
        write_atomic(self.directory / "recipe.yaml", recipes.dump(self._run.recipe))
        write_json(self.directory / "environment.json", environment.describe())
        for line in self._plan():
            self._run.console.line(line)
        return None

    def _plan(self) -> list[str]:
        """What the run will take, in three lines; nothing where that cannot be told beforehand.

        `plan.json` keeps what was foreseen before anything was done, for the report to compare with what happened.
        """
        run, path = self._run, self.directory / "plan.json"
        asked = Circumstances(devices=run.world.size)
        try:
            plan = make_plan(run.recipe, asked, reference=run.reference, quick=True)
        except Refused:
            return []
        if not path.exists():
            write_json(path, plan)
        return three_lines(plan)

    def _stages(self, until: str) -> Record:
        run = self._run
        run.state("running")
        prepared = open_prepared(run.world.on_main(lambda: data.prepare(run).directory))
        other = None
        if run.recipe.compare is not None:
            other = open_prepared(run.world.on_main(lambda: data.prepare_other(run, prepared).directory))
            run.limit_steps(checks.shared_steps(run.recipe, prepared, other))
        if until == "prepare":
            return run.state("prepared")
        growth = None
        if run.recipe.grow is not None:
            growth = self._grow(prepared, until)
        else:
            if run.reference is not None:
                reference = run.reference
                run.world.on_main(lambda: self._note_reference(reference))
                if surgery.is_probe(run.recipe.inherit.layers):
                    probing.probed(run, self._models, reference, prepared)
                run.indices = run.world.on_main(lambda: self._inherit(reference, prepared))
            if until != "inherit":
                self._train(run.target, prepared, later=self._to_come if until == "report" else 0)
        if until == "inherit":
            return run.state("inherited")
        if until == "train":
            return run.world.on_main(lambda: trained(run, growth))
        if other is not None:
            self._train_on_other(other, prepared)
        for left, arm in zip(range(len(run.controls) - 1, -1, -1), run.controls, strict=True):
            again = self._would_repeat(arm, growth)
            if again is not None:
                run.console.line(f"The {arm.name} control would be the {again} again at this depth; it is left out.")
                continue
            self._train(arm, prepared, later=left)
        return run.world.on_main(lambda: finish(run, prepared, growth))

    def _would_repeat(self, arm: Arm, growth: Growth | None) -> str | None:
        """What a control would only be again at the target's depth; None where it is a training of its own."""
        run = self._run
        if run.reference is None or run.indices is None:
            return None
        best = growth.best if growth is not None else None
        grown_warm = best is not None and best["growth"] == "warm"  # then it is no target trained from its start
        if not grown_warm and checks.is_the_target(arm, run.indices, run.target, run.reference.layers):
            return "target"
        same = checks.same_control(arm, run.controls, run.indices, run.reference.layers)
        return f"{same.name} control" if same is not None else None

    @property
    def _to_come(self) -> int:
        """Trainings after the target's."""
        return len(self._run.controls) + (self._run.recipe.compare is not None)

    def _layers(self, reference: Reference, prepared: Prepared) -> tuple[int, ...]:
        """The layers kept; chosen on tokens of the training set, if the recipe says so."""
        run = self._run
        if run.indices is None:
            word = run.recipe.inherit.layers
            record = layer_choice.read(self.directory)
            if record is None:
                run.console.stage("Measuring what the blocks do to the hidden state")
                with run.timed("layer_choice"), layer_choice.kept_data():
                    record = layer_choice.choice_record(
                        reference,
                        prepared.set("train"),
                        word,
                        sequence_length=run.recipe.data.sequence_length,
                        batch_sequences=run.measured_at_once,
                        compute=run.recipe.train.compute_dtype,
                        device=run.world.device,
                    )
                layer_choice.write(self.directory, record)
            run.indices = tuple(record["layers"])
            run.console.line(f"  {layer_choice.in_words(record)}")
            try:
                checks.check_arms(reference, [run.indices], run.target, run.controls, found=True)
            except Refused as error:
                raise Failed(f"{error} (these are the layers that {word} found)") from error
        return run.indices

    def _note_reference(self, reference: Reference) -> None:
        """Write what the reference is, which must not change while the run goes on."""
        path = self.directory / "reference.json"
        began_with = read_object(path, "fingerprint")
        if began_with is not None and began_with["fingerprint"] != reference.fingerprint:
            raise Refused(f"{reference.source}: its weights changed since this run began; choose another --out")
        if began_with is None:
            write_json(path, references.describe(reference))

    def _inherit(self, reference: Reference, prepared: Prepared) -> tuple[int, ...]:
        """Cut, prove, record; measure the reference and, where it is a control, the cut before any training.

        Returns:
            The layers kept.
        """
        run, models = self._run, self._models
        indices = self._layers(reference, prepared)
        whole = run.target.whole_init or "inherit"
        measured = ["reference", *(["cut"] if run.has_cut else [])]
        made = (self.directory / "inheritance.json").exists() and (self.directory / "starts" / whole).exists()
        if made and all(models.measured(name, prepared) for name in measured):
            return indices
        run.console.stage(f"Inheriting layers {surgery.spelled(indices)} of {reference.layers} from {reference.source}")
        training = self._training(run.target, prepared)
        record = models.account(training) | {"layers_word": str(run.recipe.inherit.layers)}
        write_json(self.directory / "inheritance.json", record)
        models.measure("reference", lambda: references.load(reference), prepared)
        if run.has_cut:
            models.measure_cut(training)
        return indices

    def _grow(self, prepared: Prepared, until: str) -> Growth | None:
        """The full-data recipe: the reference, trained where there is none yet; rounds until one matches it."""
        run, models, recipe = self._run, self._models, self._run.recipe
        if run.reference is None:
            arm = Arm("reference", "random")
            training = Training(
                name="reference",
                directory=self.directory / "reference",
                arm=arm,
                config=recipe.train,
                prepared=prepared,
                passes=recipe.data.passes,
            )
            models.train(training, later=0)
            trained_here = self.directory / "reference" / "model"
            if not trained_here.is_dir():
                raise Failed(f"{trained_here}: this run trained its reference there, and it is gone; put it back")
            run.reference = references.find(str(trained_here), None, recipe.trust_remote_code)
            rounds = [checks.round_indices(recipe, depth, run.reference.layers) for depth in self._depths]
            checks.check_arms(run.reference, rounds, run.target, run.controls)
        reference = run.reference
        run.world.on_main(lambda: self._note_reference(reference))
        run.world.on_main(lambda: models.measure("reference", lambda: references.load(reference), prepared))
        if until == "inherit":
            return None
        steps = checks.planned_steps(recipe, prepared)
        growth = Growing(run, models, prepared, self._depths, steps, recipe.data.passes)()
        if growth.best is None:
            raise Failed(f"{self.directory}: every round was abandoned; in a new run set grow.abandon to off")
        run.indices = checks.round_indices(recipe, int(growth.best["layers"]), reference.layers)
        training = self._training(run.target, prepared)
        if run.has_cut:
            run.world.on_main(lambda: models.measure_cut(training))
        return growth

    def _training(self, arm: Arm, prepared: Prepared) -> Training:
        """The training of the target or a control."""
        run, recipe = self._run, self._run.recipe
        config, passes = for_arm(arm, recipe.train, checks.planned_steps(recipe, prepared), recipe.data.passes)
        indices, cut = None, ""
        if run.reference is not None and run.indices is not None:
            indices = checks.arm_indices(arm, run.indices, run.reference.layers)
            word = f"{arm.choice}-{len(indices)}" if arm.choice else str(len(indices))
            grown = recipe.grow is not None and indices == run.indices
            cut = checks.round_word(recipe, len(indices)) if grown else "" if indices == run.indices else word
        return Training(
            name=arm.name,
            directory=run.directory_of(arm),
            arm=arm,
            config=config,
            prepared=prepared,
            passes=passes,
            indices=indices,
            cut=cut,
        )

    def _train(self, arm: Arm, prepared: Prepared, *, later: int) -> None:
        """Train the target or a control, export it, measure it."""
        self._models.train(self._training(arm, prepared), later=later)

    def _train_on_other(self, other: Prepared, prepared: Prepared) -> None:
        """Train the target once more, for the same steps, on the other data."""
        run, compare = self._run, self._run.recipe.compare
        assert compare is not None
        own = self._training(run.target, prepared)
        config = dataclasses.replace(own.config, max_steps=checks.planned_steps(run.recipe, prepared))
        training = dataclasses.replace(
            own,
            name="other-data",
            directory=self.directory / "controls" / "other-data",
            config=config,
            prepared=other,
            passes=compare.passes,
        )
        self._models.train(training, later=len(run.controls))
