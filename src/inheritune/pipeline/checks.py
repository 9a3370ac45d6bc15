"""What `run` refuses before it writes anything: what cannot be done, and inputs that do not fit each other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from transformers import PretrainedConfig

from inheritune import corpus, recipe as recipes, reference as references, scratch, surgery
from inheritune.config import DataConfig, Recipe
from inheritune.errors import Failed, Refused
from inheritune.objective import keeps_documents_apart
from inheritune.optimizer import check_optimizer
from inheritune.reference import Reference
from inheritune.rules import WHOLE_INITS
from inheritune.run_directory import read_json
from inheritune.tokens import Prepared, TrainingBlocks, open_prepared

_FREE = (
    *(("data", key) for key in ("workers", "executor", "slurm")),
    *(("train", key) for key in ("micro_batch_sequences", "parallel", "fsdp_ranks", "tracker")),
    *(("train", key) for key in ("activation_checkpointing", "offload_optimizer")),
)
"""What a run may go on with otherwise than it began: it changes speed, where things run, or how sums round at most."""


def check_recipe(recipe: Recipe) -> None:
    """What a recipe says of itself must be possible here."""
    if (recipe.reference is None) == (recipe.architecture is None):
        raise Refused(
            "recipe: give a reference (a directory, a hub id or packaged:demo), or an architecture to start from"
        )
    if recipe.reference is None and recipe.controls:
        raise Refused("recipe: controls compare a target with its reference; this recipe starts from an architecture")
    check_optimizer(recipe.train)


def check_cut(reference: Reference, indices: tuple[int, ...], inits: Iterable[str]) -> None:
    """Plan what the models start from: what cannot be cut is refused before anything is prepared or written.

    Args:
        reference: what `find` found.
        indices: the layers to keep.
        inits: the canonical words for what target and controls start from.
    """
    words = list(inits)
    for kept in dict.fromkeys(surgery.kept(indices, word) for word in words):
        cut = surgery.plan_cut(reference, kept)
    if any(word not in WHOLE_INITS for word in words):
        surgery.parts(cut.model)


def check_data(recipe: Recipe, reference: Reference | None, directory: Path) -> None:
    """There is text to train on and text to judge by; shards prepared before are of this reference and this run."""
    data, best = recipe.data, recipe.train.export == "best"
    if data.prepared is not None:
        try:
            prepared = open_prepared(Path(data.prepared))
        except (Failed, OSError) as error:
            raise Refused(f"data.prepared: {error}") from None
        check_prepared(prepared, reference, directory)
        judged, developed = len(prepared.measured_names) > prepared.developed, prepared.developed
    else:
        if not data.sources:
            raise Refused("recipe: data.sources is empty; name files, a directory, hub:ORG/NAME or python-source")
        judged = data.validation_share > 0 or bool(data.validation_sets)
        developed = data.development_share > 0
        if judged:
            corpus.check_sources(resolved_data(recipe, reference))
    if not judged:
        raise Refused("recipe: nothing to judge by: data.validation_share is 0; raise it, or name data.validation_sets")
    if best and not developed:
        raise Refused("train.export: best is chosen on a development set; raise data.development_share")


def check_prepared(prepared: Prepared, reference: Reference | None, directory: Path) -> None:
    """Shards are of this reference's tokenizer, and those that this run began with."""
    if reference is not None:
        check_tokenizer(prepared, reference)
    made = prepared.manifest
    began_with = read_json(directory / "data.json")
    if began_with is not None and began_with["fingerprint"] != made["fingerprint"]:
        raise Refused(
            f"{prepared.directory}: the shards changed since this run began "
            f"({began_with['fingerprint'][:12]} then, {made['fingerprint'][:12]} now); choose another --out"
        )


def check_documents(recipe: Recipe, reference: Reference | None) -> None:
    """The model keeps documents apart if it is told to: tried, so it is loaded for it."""
    if reference is not None:
        model = references.load(reference)
    else:
        config = architecture_config(recipe, vocabulary=257, end_of_text=0)
        model = references.fresh(config, recipe.train.seed, trust_remote_code=recipe.trust_remote_code)
    if not keeps_documents_apart(model.float()):
        what = f"{type(model).__name__} lets documents see each other in one sequence, whatever it is told"
        raise Refused(f"data.document_mask: {what}; set it to false")


def check_blocks(recipe: Recipe, prepared: Prepared) -> None:
    """The training set fills blocks, and not all of the steps over them are warm-up."""
    length, train = recipe.data.sequence_length, recipe.train
    tokens = prepared.manifest["sets"]["train"]["tokens"]
    if tokens <= length:
        raise Refused(f"data: {tokens} training tokens fill no block of {length}; lower data.sequence_length")
    blocks = TrainingBlocks(prepared.set("train"), length, recipe.data.passes, train.batch_sequences, train.seed)
    steps = min(blocks.steps, train.max_steps or blocks.steps)
    if train.warmup_steps >= steps:
        what = f"{train.warmup_steps} of {steps} steps would all be warm-up"
        raise Refused(f"train.warmup_steps: {what}; lower it, or train longer")


def check_tokenizer(prepared: Prepared, reference: Reference) -> None:
    """Shards are of this reference's tokenizer, if it has one."""
    if reference.tokenizer is None:
        return
    own, theirs = corpus.tokenizer_fingerprint(str(reference.path)), prepared.manifest["tokenizer"]["fingerprint"]
    if own != theirs:
        raise Refused(
            f"{prepared.directory}: prepared with another tokenizer than {reference.source}'s "
            f"({theirs[:12]} there, {own[:12]} here); prepare the data again"
        )


def check_directory(directory: Path, recipe: Recipe) -> None:
    """The run directory is new, empty, or holds this very recipe."""
    if directory.exists() and not directory.is_dir():
        raise Refused(f"{directory}: a file, not a directory; choose another --out")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    path = directory / "recipe.yaml"
    if not path.exists():
        if {entry.name for entry in directory.iterdir()} <= {".lock"}:
            return
        raise Refused(f"{directory}: not empty and no run directory (it holds no recipe.yaml); choose another --out")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        held = None
    if not isinstance(held, dict) or not isinstance(held.get("data"), dict):
        raise Refused(f"{path}: damaged, so what this run is cannot be told; restore it, or choose another --out")
    mine = recipes.as_dict(recipe)
    for values in (held, mine):
        for section, key in _FREE:
            values.get(section, {}).pop(key, None)
    difference = recipes.first_difference(held, mine)
    if difference is not None:
        key, old, new = difference
        what = f"{key}: {old!r} there, {new!r} here"
        raise Refused(f"{directory}: holds a run of another recipe ({what}); choose another --out")


def check_can_be_made(out: Path) -> None:
    """Refuse a directory that the file system does not allow, before a reference is read for it."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        raise Refused(f"{out}: cannot be made ({error.strerror}); choose another --out") from error


@contextlib.contextmanager
def no_empty_parents(out: Path) -> Iterator[None]:
    """Take directories away again that were made for one that was then refused."""
    absent = [path for path in out.absolute().parents if not path.exists()]
    try:
        yield
    except BaseException:
        for path in absent:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def resolved_data(recipe: Recipe, reference: Reference | None) -> DataConfig:
    """The data section with its words resolved."""
    data = recipe.data
    if data.exclude_seen != "reference":
        return data
    seen = reference.seen_hashes if reference is not None else None
    if seen is None:
        raise Refused("data.exclude_seen: the reference ships no seen.txt; give a file of content hashes, or null")
    return dataclasses.replace(data, exclude_seen=str(seen))


def architecture_config(recipe: Recipe, vocabulary: int, end_of_text: int) -> PretrainedConfig:
    """The config of a recipe that starts from an architecture."""
    assert recipe.architecture is not None
    config = scratch.architecture_config(recipe.architecture, vocabulary, end_of_text)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and recipe.data.sequence_length > positions:
        length = recipe.data.sequence_length
        raise Refused(f"data.sequence_length: {length} is too long: the architecture has {positions} positions")
    return config
