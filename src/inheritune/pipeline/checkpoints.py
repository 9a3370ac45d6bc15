"""A run's checkpoints as models: which there are, and one of them as a Hugging Face directory, without any training."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from inheritune import recipe as recipes, surgery
from inheritune.checkpoint import Checkpointer, checkpoints
from inheritune.console import Console
from inheritune.distributed import single
from inheritune.errors import Failed, Refused
from inheritune.pipeline import checks, layer_choice
from inheritune.pipeline.models import Models, Training
from inheritune.pipeline.recorded import recorded_reference
from inheritune.pipeline.shared import Run
from inheritune.run_directory import read_json
from inheritune.tokens import open_prepared


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint of a run's target, or of a round of a target that grows."""

    path: Path
    training: str
    """`target`, `round-4`, `round-4-seed-1`."""
    learning_rate: float | None
    """Where a model was trained with several, the one of this training."""
    step: int
    tokens: int
    """Trained on up to here, over all passes."""


def checkpoint_directories(run: Path) -> list[Saved]:
    """The whole checkpoints of a run's target and of its rounds, by training, each one's oldest first.

    A round's go when it is recorded, those of learning rates that were not best when that is known, and of all but the
    last `train.keep_checkpoints` as training goes on. Whether one is damaged is seen when it is exported.

    Raises:
        Refused: no run directory.
        Failed: the record of a checkpoint is damaged.
    """
    if not (run / "recipe.yaml").is_file():
        raise Refused(f"{run}: no run directory (it holds no recipe.yaml)")
    trainings = {"target": run} | {f"round-{folder.name}": folder for folder in _rounds(run)}
    found = []
    for name, folder in trainings.items():
        for rate, place in ((None, folder), *sorted(_rates(folder).items())):
            for path in checkpoints(place / "checkpoints"):
                state = read_json(path / "state.json")
                if state is None:  # gone meanwhile: the run is under way
                    continue
                try:
                    found.append(Saved(path, name, rate, int(state["step"]), int(state["tokens"])))
                except (KeyError, TypeError, ValueError):
                    raise Failed(f"{path / 'state.json'}: damaged, no record of a checkpoint; delete {path}") from None
    return found


def _rounds(run: Path) -> list[Path]:
    """The folders of a run's rounds by layers and seed; what else lies beside them is not the run's."""
    found = {}
    for folder in (run / "rounds").glob("*"):
        name = re.fullmatch(r"(\d+)(?:-seed-(\d+))?", folder.name, flags=re.ASCII)
        if name is not None and folder.is_dir():
            found[int(name[1]), int(name[2] or -1)] = folder
    return [folder for _, folder in sorted(found.items())]


def _rates(training: Path) -> dict[float, Path]:
    """The folders of a training's learning rates; what else lies beside them is not the run's."""
    found = {}
    for folder in (training / "learning_rates").glob("*"):
        with contextlib.suppress(ValueError):
            if math.isfinite(rate := float(folder.name)) and folder.is_dir():
                found[rate] = folder
    return found


def exporter(run: Path) -> Callable[[Saved, Path], None]:
    """What exports a run's checkpoints one after the other, given each and the directory that it goes to.

    A checkpoint is written as the run would have exported its model then: weights, config, tokenizer, model card.
    Nothing is written into the run. Of the checkpoint the model's tensors alone are read; memory holds them twice, in
    float32 and in what is exported. The directory is absent or empty, and is written whole or not at all.

    Raises:
        Refused: the run's reference is not there any more, or another one; and what is returned raises it where the
            directory holds something, or the run's data are gone.
        Failed: what is returned raises it: the checkpoint is damaged, or the directory cannot be written.
    """
    models = Models(_opened(run))

    def export(saved: Saved, out: Path) -> None:
        surgery.check_free(out)
        training = _training(models.run, saved)
        model, dtype = models.model(training)
        weights = {name: torch.empty(held.shape, dtype=torch.float32) for name, held in model.named_parameters()}
        reader = Checkpointer(saved.path.parent, single(), sys.maxsize, report=models.run.console.line)
        reader.checked(saved.path)
        reader.load(saved.path, {f"model.{name}": tensor for name, tensor in weights.items()})
        models.export(training, models.filled(model, dtype, weights), out)

    return export


def export_checkpoint(run: Path, saved: Saved, out: Path) -> None:
    """Export one checkpoint that `checkpoint_directories` found in a run (see `exporter`).

    Raises:
        Refused, Failed: as `exporter` and what it returns.
    """
    exporter(run)(saved, out)


def _opened(directory: Path) -> Run:
    """A run as its records have it, to read from."""
    recipe = recipes.load_recipe(str(directory / "recipe.yaml"))
    run = Run(recipe, directory, Console(silent=True), single())
    run.reference = recorded_reference(
        directory,
        reference=recipe.reference,
        revision=recipe.revision,
        trust_remote_code=recipe.trust_remote_code,
        reference_file=recipe.reference_file,
        reference_dtype=recipe.reference_dtype,
    )
    if run.reference is None:
        if recipe.grow is not None:  # it trained its own
            raise Refused(f"{directory / 'reference' / 'model'}: the reference that the run trained is not there")
        return run
    if recipe.grow is None:
        run.indices = surgery.parse_layers(recipe.inherit.layers, run.reference.layers)
    if recipe.grow is None and run.indices is None:
        run.indices = tuple((layer_choice.read(directory) or {}).get("layers", ()))
    return run


def _training(run: Run, saved: Saved) -> Training:
    """The training that a checkpoint is of, as far as its model's shape and its export depend on it."""
    recipe = run.recipe
    indices, cut = run.indices, ""
    if saved.training != "target":
        assert run.reference is not None
        layers = int(saved.training.removeprefix("round-").partition("-seed-")[0])
        indices, cut = checks.round_indices(recipe, layers, run.reference.layers), checks.round_word(recipe, layers)
    return Training(
        name=saved.training,
        directory=saved.path.parent.parent,
        arm=run.target,
        config=recipe.train,
        prepared=open_prepared(Path(recipe.data.prepared or run.directory / "data")),
        passes=recipe.data.passes,
        indices=indices,
        cut=cut,
    )
