"""What `run` refuses before it writes anything: what cannot be done, and inputs that do not fit each other."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from transformers import PretrainedConfig

from inheritune import corpus, recipe as recipes, reference as references, scratch, surgery
from inheritune.arms import CUT, WHOLE_INITS, Arm, chosen_layers, control_arm
from inheritune.config import DataConfig, Recipe
from inheritune.errors import Failed, Refused
from inheritune.growth import layers_in_words, planned_depths
from inheritune.objective import keeps_documents_apart
from inheritune.optimizer import check_optimizer
from inheritune.reference import Reference
from inheritune.run_directory import read_object
from inheritune.tokens import Prepared, TrainingBlocks, open_prepared

FREE = (
    *(("data", key) for key in ("workers", "executor", "slurm", "relation")),
    *(("train", key) for key in ("micro_batch_sequences", "parallel", "fsdp_ranks", "tracker")),
    *(("train", key) for key in ("activation_checkpointing", "offload_optimizer")),
)
"""What a run may go on with otherwise than it began: it changes speed, where things run, how sums round at most, or
what is said of the data."""
_FREE_SECTIONS = ("evaluate",)
"""What may be asked for besides, or no more: it is measured on copies of the model, and changes none."""
_BOUND = ("compute_dtype", "seed")
"""Settings of `train` that records made before any training depend on: the reference's losses, a start's account."""
_TRAINED = (
    "metrics.jsonl",
    "learning_rates",
    "reference/metrics.jsonl",
    "reference/model",
    "rounds",
    "controls",
)
"""What a run directory holds once a training began."""


def check_recipe(recipe: Recipe) -> None:
    """What a recipe says of itself must be possible here."""
    if (recipe.reference is None) == (recipe.architecture is None):
        raise Refused(
            "recipe: give a reference (a directory, a hub id or packaged:demo), or an architecture to start from"
        )
    if recipe.reference is None and recipe.controls and recipe.grow is None:
        raise Refused("recipe: controls compare a target with its reference; this recipe starts from an architecture")
    check_optimizer(recipe.train)
    if recipe.data.prepared is None:
        if not recipe.data.sources:
            raise Refused("recipe: data.sources is empty; name files, a directory, hub:ORG/NAME or python-source")
        judged = recipe.data.validation_share > 0 or bool(recipe.data.validation_sets)
        _check_sets(recipe, judged=judged, developed=recipe.data.development_share > 0)


def _check_sets(recipe: Recipe, *, judged: bool, developed: bool) -> None:
    """There is text to judge by, and to choose by where something is chosen."""
    best, several = recipe.train.export == "best", len(recipe.train.learning_rates) > 1
    probed = surgery.is_probe(recipe.inherit.layers)
    if not judged:
        raise Refused("recipe: nothing to judge by: data.validation_share is 0; raise it, or name data.validation_sets")
    if (best or several or probed) and not developed:
        key = "train.export: best" if best else "train.learning_rate: the best of several"
        key = f"inherit.layers: {recipe.inherit.layers}" if probed else key
        raise Refused(f"{key} is chosen on a development set; raise data.development_share")


def arm_indices(arm: Arm, indices: tuple[int, ...], total: int) -> tuple[int, ...]:
    """The layers of the reference that an arm has, where the target has these.

    Raises:
        Refused: the reference has not so many.
    """
    count = len(indices) if arm.layers is None else arm.layers
    if count > total:
        raise Refused(f"controls: {arm.name} is not possible, the reference has {layers_in_words(total)}")
    if arm.choice is None:
        return indices if arm.layers is None else tuple(range(count))
    return chosen_layers(arm.choice, count, total)


def _training_of(arm: Arm, indices: tuple[int, ...], total: int) -> tuple[object, ...]:
    """What tells one training from another where the target has these layers: what it starts from, and how it goes."""
    if arm.half_width:
        return "half-width", arm.times
    kept, init = arm_indices(arm, indices, total), arm.init
    if arm.whole_init is not None:  # of one layer `stack` is what `inherit` is
        kept, init = surgery.kept(kept, init), "inherit"
    return init, kept, arm.times, arm.distilled


def is_the_target(arm: Arm, indices: tuple[int, ...], target: Arm, total: int) -> bool:
    """Whether a control would only be the target again: the same start, trained in the same way."""
    return _training_of(arm, indices, total) == _training_of(target, indices, total)


def same_control(arm: Arm, controls: Iterable[Arm], indices: tuple[int, ...], total: int) -> Arm | None:
    """The control that another would only repeat, if there is one.

    Of two that are the same training the first stays; but one without layers of its own stays before one with them,
    since the share of the gap is about `random` by that name.
    """
    own = _training_of(arm, indices, total)
    ordered = sorted(controls, key=lambda one: one.layers is not None)
    first = next(one for one in ordered if _training_of(one, indices, total) == own)
    return first if first != arm else None


def check_arms(
    reference: Reference,
    chosen: Iterable[tuple[int, ...]],
    target: Arm,
    controls: Iterable[Arm],
    *,
    found: bool = False,
) -> None:
    """Plan what target and controls start from: what cannot be made is refused before anything is prepared or written.

    Args:
        reference: what `find` found.
        chosen: the layers of each target that there may be.
        target: what it starts from.
        controls: what stands beside it.
        found: whether the layers were found by measuring; a control that takes the same is then left out, not refused.
    """
    chosen, controls = list(chosen), list(controls)
    if any(arm.half_width for arm in controls):
        surgery.half_width_config(reference)
    wanted: dict[tuple[int, ...], set[str]] = {}
    for indices in chosen:
        for arm in (target, *(arm for arm in controls if not arm.half_width)):
            wanted.setdefault(arm_indices(arm, indices, reference.layers), set()).add(arm.init)
        same = [arm for arm in controls if is_the_target(arm, indices, target, reference.layers)]
        if same and len(chosen) == 1 and not found:
            what = f"{same[0].name} takes layers {surgery.spelled(indices)}, as the target does"
            raise Refused(f"controls: {what}; leave it out")
    for indices, inits in wanted.items():
        check_cut(reference, indices, sorted(inits))


def check_growth(recipe: Recipe, reference_layers: int) -> tuple[int, ...]:
    """The layers of the planned rounds.

    Raises:
        Refused: there are none, or a control cannot be made at any depth.
    """
    assert recipe.grow is not None
    depths = planned_depths(recipe.grow, reference_layers)
    for word in recipe.controls:
        if word != CUT and (control_arm(word).layers or 1) > reference_layers:
            has = layers_in_words(reference_layers)
            raise Refused(f"controls: {word} is not possible, the reference has {has}")
    return depths


def check_cut(reference: Reference, indices: tuple[int, ...], inits: Iterable[str]) -> None:
    """Plan what models start from: what cannot be cut is refused before anything is prepared or written.

    Args:
        reference: what `find` found.
        indices: the layers to keep.
        inits: the canonical words for what they start from.
    """
    words = list(inits)
    for kept in dict.fromkeys(surgery.kept(indices, word) for word in words):
        cut = surgery.plan_cut(reference, kept)
    if any(word not in WHOLE_INITS for word in words):
        surgery.parts(cut.model)


def check_sources(recipe: Recipe, reference: Reference | None) -> None:
    """The text to be prepared is there: missing or empty sources, wrong kinds of file.

    Args:
        recipe: the experiment.
        reference: what `find` found; None before it was looked for. What it says of what it saw is then left for later.
    """
    later = recipe.data.exclude_seen == "reference"
    if recipe.data.prepared is None and later == (reference is not None):
        corpus.check_sources(resolved_data(recipe.data, reference))


def check_data(recipe: Recipe, reference: Reference | None, directory: Path) -> None:
    """Shards prepared before are of this reference and this run, and hold text to judge by."""
    data = recipe.data
    if data.prepared is None:
        return
    try:
        prepared = open_prepared(Path(data.prepared))
    except (Failed, OSError) as error:
        raise Refused(f"data.prepared: {error}") from None
    check_prepared(prepared, reference, directory)
    if recipe.compare is not None and recipe.compare.prepared is not None:
        try:
            check_other(prepared, open_prepared(Path(recipe.compare.prepared)))
        except (Failed, OSError) as error:
            raise Refused(f"compare.prepared: {error}") from None
    judged = len(prepared.measured_names) > prepared.developed
    _check_sets(recipe, judged=judged, developed=bool(prepared.developed))


def check_prepared(prepared: Prepared, reference: Reference | None, directory: Path) -> None:
    """Shards are of this reference's tokenizer, and those that this run began with."""
    if reference is not None:
        check_tokenizer(prepared, reference)
    made = prepared.manifest
    began_with = read_object(directory / "data.json", "fingerprint")
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


def round_indices(recipe: Recipe, count: int, total: int) -> tuple[int, ...]:
    """The layers of the reference that a round of so many has."""
    assert recipe.grow is not None
    choice = recipe.grow.choice
    return tuple(range(count)) if choice == "first" else chosen_layers(choice, count, total)


def round_word(recipe: Recipe, count: int) -> str:
    """What tells a round's start from those of others, in its name."""
    assert recipe.grow is not None
    return layers_word(recipe.grow.choice, count)


def layers_word(choice: str, count: int) -> str:
    """So many layers of a choice, as a start's name has them."""
    return str(count) if choice == "first" else f"{choice}-{count}"


def planned_steps(recipe: Recipe, prepared: Prepared) -> int:
    """The target's steps: T."""
    train = recipe.train
    blocks = TrainingBlocks(
        prepared.set("train"), recipe.data.sequence_length, recipe.data.passes, train.batch_sequences, train.seed
    )
    return min(blocks.steps, train.max_steps or blocks.steps)


_STEPS_SHORT = 0.01
"""Share of the steps by which repeated and fresh tokens may differ: each pass leaves a tail that fills no block."""


def shared_steps(recipe: Recipe, prepared: Prepared, other: Prepared) -> int:
    """The steps that both the run's data and the other data of `compare` last for.

    Raises:
        Refused: the other data is short of the target's steps by more than a hundredth.
    """
    assert recipe.compare is not None
    wanted = planned_steps(recipe, prepared)
    data = dataclasses.replace(recipe.data, passes=recipe.compare.passes)
    found = planned_steps(dataclasses.replace(recipe, data=data), other)
    check_lasts(found, wanted, other.manifest["sets"]["train"]["tokens"], recipe.compare.passes)
    return min(found, wanted)


def check_lasts(found: int, wanted: int, tokens: int, passes: int) -> None:
    """Refuse other data of `compare` that is short of the target's steps by more than a hundredth.

    Args:
        found: steps that it lasts for.
        wanted: the target's.
        tokens: unique ones that it has.
        passes: over them.

    Raises:
        Refused: it is.
    """
    if found < (1 - _STEPS_SHORT) * wanted:
        what = f"{tokens:,} tokens in {passes} passes"
        raise Refused(f"compare: {what} are {found} steps, the target takes {wanted}; give more tokens or passes")


def check_other(prepared: Prepared, other: Prepared) -> None:
    """Both data of `compare` are judged by the same documents.

    Raises:
        Refused: they are not.
    """
    mine, theirs = (
        {name: [file["sha256"] for file in one.manifest["sets"][name]["files"]] for name in one.measured_names}
        for one in (prepared, other)
    )
    if mine != theirs:
        raise Refused(
            f"{other.directory}: its held-out sets are not those of {prepared.directory}; prepare both from the same "
            f"sources with the same shares and limits"
        )


_MOST_SHARED = 0.1
"""Share of a held-out set's documents that may begin as training documents do: licences, generated files, other
versions of the same text. `prepare` keeps whole documents apart by their content."""


def check_apart(trained: Prepared, judged: Prepared) -> dict[str, tuple[int, int]]:
    """What models are judged by is not what they are trained on.

    Returns:
        For each set that is measured the documents that it shares with the training set, and how many it has.

    Raises:
        Refused: a set that is measured shares more than a tenth of its documents with the training set.
    """
    train, found = trained.set("train"), {}
    for name in judged.measured_names:
        held_out = judged.set(name)
        shared, documents = held_out.shared_documents(train), len(held_out.document_ends)
        if shared > _MOST_SHARED * documents:
            what = f"{shared} of the {documents} documents of {name} are also in its training set"
            raise Refused(f"{trained.directory}: {what}; models would be judged by what they are trained on")
        found[name] = (shared, documents)
    return found


def check_blocks(recipe: Recipe, prepared: Prepared) -> None:
    """The training set fills blocks, and not all of the steps over them are warm-up."""
    length, train = recipe.data.sequence_length, recipe.train
    tokens = prepared.manifest["sets"]["train"]["tokens"]
    if tokens <= length:
        raise Refused(f"data: {tokens} training tokens fill no block of {length}; lower data.sequence_length")
    steps = planned_steps(recipe, prepared)
    if train.warmup_steps >= steps:
        what = f"{train.warmup_steps} of {steps} steps would all be warm-up"
        raise Refused(f"train.warmup_steps: {what}; lower it, or train longer")
    if recipe.grow is not None and recipe.grow.growth == "warm":
        warm = recipe.grow.warm_steps or max(1, steps // 2)
        if not train.warmup_steps < warm <= steps:
            why = "" if recipe.grow.warm_steps else ", half of the first round's where none is given,"
            raise Refused(
                f"grow.warm_steps: {warm}{why} is not possible; give more than train.warmup_steps "
                f"({train.warmup_steps}), at most the {steps} of the first round"
            )


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
    another = "choose another --out"
    if directory.exists() and not directory.is_dir():
        raise Refused(f"{directory}: a file, not a directory; {another}")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    path = directory / "recipe.yaml"
    if not path.exists():
        if {entry.name for entry in directory.iterdir()} <= {".lock"}:
            return
        raise Refused(f"{directory}: not empty and no run directory (it holds no recipe.yaml); {another}")
    held = _held(path)
    if held is None:
        raise Refused(f"{path}: damaged, so what this run is cannot be told; restore it, or {another}")
    mine = recipes.as_dict(recipe)
    if bool(held.get("grow")) != bool(mine["grow"]):
        raise Refused(f"{directory}: holds a run {'that grows' if held.get('grow') else 'without growth'}; {another}")
    # before the first round is over nothing depends on how it will be judged
    unplayed = ("grow", "controls") if mine["grow"] and not (directory / "growth.jsonl").exists() else ()
    free = list(FREE)
    probed = any(directory.glob("probe/*/metrics.jsonl"))
    if not probed:
        free.append(("inherit", "probe_tokens"))
    if not probed and not any((directory / name).exists() for name in _TRAINED):
        free += [("data", "passes"), *(("train", key) for key in mine["train"] if key not in _BOUND)]
    _check_choice(directory, held, mine)
    for values in (held, mine):
        for section, key in free:
            values.get(section, {}).pop(key, None)
        for key in (*unplayed, *_FREE_SECTIONS):
            values.pop(key, None)
    difference = recipes.first_difference(held, mine)
    if difference is not None:
        key, old, new = difference
        what = f"{key}: {old!r} there, {new!r} here"
        raise Refused(f"{directory}: holds a run of another recipe ({what}); {another}")


def _check_choice(directory: Path, held: dict[str, Any], mine: dict[str, Any]) -> None:
    """The layers of a round that is under way stay what they are: its folder says no more than how many there are."""
    there, here = ((one.get("grow") or {}).get("choice") for one in (held, mine))
    if there != here and any(directory.glob("rounds/*/metrics.jsonl")):
        what = f"grow.choice: {there!r} there, {here!r} here, and a round is under way"
        raise Refused(f"{directory}: holds a run of another recipe ({what}); choose another --out")


def check_reference_is_there(directory: Path, recipe: Recipe) -> None:
    """The directory that a run began with is still there: otherwise its name might be taken for one on the hub."""
    began_with = (_held(directory / "recipe.yaml") or {}).get("reference")
    if not isinstance(began_with, str) or not os.path.isabs(began_with) or os.path.exists(began_with):
        return
    if recipe.reference is not None and os.path.abspath(recipe.reference) == os.path.normpath(began_with):
        raise Refused(f"{directory}: began with the reference {began_with}, which is gone; put it back")


def _held(path: Path) -> dict[str, Any] | None:
    """The recipe that a run directory holds; None where it is none."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return None
    sections = ("data", "train")
    whole = isinstance(held, dict) and all(isinstance(held.get(name, {}), dict) for name in sections)
    return held if whole and "data" in held else None


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


def resolved_data(data: DataConfig, reference: Reference | None) -> DataConfig:
    """The data section with its words resolved.

    Raises:
        Refused: `exclude_seen: reference` of one that says nothing of what it saw.
    """
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
