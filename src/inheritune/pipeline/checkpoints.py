"""A run's checkpoints as models: which there are, and one of them as a Hugging Face directory, without any training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from inheritune import recipe as recipes, reference as references, surgery
from inheritune.checkpoint import Checkpointer, checkpoints
from inheritune.console import Console
from inheritune.distributed import single
from inheritune.errors import Failed, Refused
from inheritune.pipeline import checks
from inheritune.pipeline.models import Models, Training
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
    rounds = {tuple(map(int, folder.name.split("-seed-"))): folder for folder in (run / "rounds").glob("[0-9]*")}
    trainings = {"target": run} | {f"round-{folder.name}": folder for _, folder in sorted(rounds.items())}
    found = []
    for name, folder in trainings.items():
        rates = {float(one.name): one for one in (folder / "learning_rates").glob("*")}
        for rate, place in ((None, folder), *sorted(rates.items())):
            for path in checkpoints(place / "checkpoints"):
                state = read_json(path / "state.json")
                if state is None:  # gone meanwhile: the run is under way
                    continue
                try:
                    found.append(Saved(path, name, rate, int(state["step"]), int(state["tokens"])))
                except (KeyError, TypeError, ValueError):
                    raise Failed(f"{path / 'state.json'}: damaged, no record of a checkpoint; delete {path}") from None
    return found


def export_checkpoint(run: Path, saved: Saved, out: Path) -> None:
    """Write a checkpoint as the run would have exported its model then: weights, config, tokenizer, model card.

    Nothing is written into the run. Of the checkpoint the model's tensors alone are read; memory holds them twice, in
    float32 and in what is exported.

    Args:
        run: its directory.
        saved: a checkpoint that `checkpoint_directories` found there.
        out: the directory that is written, whole or not at all; absent or empty.

    Raises:
        Refused: `out` holds something, or the run's reference or data are not there any more.
        Failed: the checkpoint is damaged, or `out` cannot be written.
    """
    surgery.check_free(out)
    models = Models(_opened(run))
    training = _training(models.run, saved)
    model, dtype = models.model(training)
    weights = {name: torch.empty(held.shape, dtype=torch.float32) for name, held in model.named_parameters()}
    reader = Checkpointer(saved.path.parent, single(), sys.maxsize, report=models.run.console.line)
    reader.checked(saved.path)
    reader.load(saved.path, {f"model.{name}": tensor for name, tensor in weights.items()})
    models.export(training, models.filled(model, dtype, weights), out)


def _opened(directory: Path) -> Run:
    """A run as its records have it, to read from."""
    recipe = recipes.load_recipe(str(directory / "recipe.yaml"))
    run = Run(recipe, directory, Console(silent=True), single())
    name, revision = recipe.reference, recipe.revision
    if name is None and recipe.grow is not None:  # it trained its own
        name, revision = str(directory / "reference" / "model"), None
    if name is None:
        return run
    run.reference = references.find(name, revision, recipe.trust_remote_code)
    began_with = read_json(directory / "reference.json") or {}
    if began_with.get("fingerprint", run.reference.fingerprint) != run.reference.fingerprint:
        raise Refused(f"{name}: its weights changed since {directory} began")
    if recipe.grow is None:
        run.indices = surgery.parse_layers(recipe.inherit.layers, run.reference.layers)
    if recipe.grow is None and run.indices is None:
        run.indices = tuple((read_json(directory / "influence.json") or {}).get("layers", ()))
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
