"""What values make sense: the rules that a recipe of the right keys and types still has to keep. No torch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inheritune.config import PARTS, DataConfig, Recipe

WHOLE_INITS = ("inherit", "random", "stack")
"""The init words that are no sum of parts."""
RESERVED = ("train", "development", "held-out", "manifest.json", "train.hashes")
"""What further validation sets may not be called: names in a prepared directory."""
MOST_JOBS = 1000
"""Elements of a job array that Slurm allows unless a cluster's MaxArraySize says otherwise."""
SMALLEST_VOCABULARY = 257
"""The 256 bytes and end-of-text."""

Rule = tuple[str, Callable[[Any], bool], str]


def _finite(value: float) -> bool:
    return math.isfinite(value)


_DATA_RULES: list[Rule] = [
    ("tokens", lambda x: x is None or x > 0, "a token count above 0"),
    ("passes", lambda x: x >= 1, "1 or more"),
    ("sequence_length", lambda x: x >= 2, "2 or more"),
    ("validation_share", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("development_share", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("validation_tokens", lambda x: x > 0, "a token count above 0"),
    ("development_tokens", lambda x: x > 0, "a token count above 0"),
    ("held_out_document_tokens", lambda x: x is None or x >= 2, "2 or more, or null"),
    ("workers", lambda x: x >= 0, "0 (one a core) or more"),
    ("seed", lambda x: 0 <= x < 2**63, "0 or more, below 2**63"),
]
_TRAIN_RULES: list[Rule] = [
    ("batch_sequences", lambda x: x >= 1, "1 or more"),
    ("micro_batch_sequences", lambda x: x == "auto" or x >= 1, "1 or more, or auto"),
    ("learning_rate", lambda x: _finite(x) and x > 0, "a number above 0"),
    ("final_learning_rate", lambda x: _finite(x) and x >= 0, "0 or more"),
    ("warmup_steps", lambda x: x >= 0, "0 or more"),
    ("weight_decay", lambda x: _finite(x) and x >= 0, "0 or more"),
    ("beta1", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("beta2", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("epsilon", lambda x: _finite(x) and x > 0, "a number above 0"),
    ("gradient_clip", lambda x: _finite(x) and x >= 0, "a number above 0, or 0 for no clipping"),
    ("spike_factor", lambda x: _finite(x) and (x == 0 or x > 1), "a number above 1, or 0 for no limit"),
    ("skipped_in_a_row", lambda x: x >= 1, "1 or more"),
    ("fsdp_ranks", lambda x: x is None or x >= 2, "2 or more, or null"),
    ("max_steps", lambda x: x is None or x >= 1, "1 or more, or null"),
    ("validate_every_steps", lambda x: x == "auto" or x >= 1, "1 or more, or auto"),
    ("checkpoint_every_steps", lambda x: x >= 1, "1 or more"),
    ("keep_checkpoints", lambda x: x >= 1, "1 or more"),
    ("seed", lambda x: 0 <= x < 2**63, "0 or more, below 2**63"),
]
_SLURM_RULES: list[Rule] = [
    ("partition", lambda x: re.fullmatch(r"[\w.,-]+", x) is not None, "a partition's name, or several with commas"),
    ("time_limit_minutes", lambda x: x >= 1, "1 or more"),
    ("memory_gigabytes", lambda x: x >= 1, "1 or more"),
]
_SOURCE_RULES: list[Rule] = [
    ("weight", lambda x: _finite(x) and x > 0, "a number above 0"),
    ("document_separator", lambda x: x is None or x != "", "text that separates documents, or null"),
]


def impossible(config: Any) -> Iterator[tuple[str, Any, str]]:
    """Values of the right type that make no sense, as (dotted key, value, what is allowed)."""
    if isinstance(config, Recipe):
        yield from _by_rules(config.data, _DATA_RULES, "data.")
        yield from _sources(config.data, "data.")
        yield from _executor(config.data, "data.")
        yield from _by_rules(config.train, _TRAIN_RULES, "train.")
        yield from _optimizer(config)
        if config.architecture is not None and config.architecture.vocabulary < SMALLEST_VOCABULARY:
            yield "architecture.vocabulary", config.architecture.vocabulary, "257 (every byte and end-of-text) or more"
        yield from _distillation(config)
        if config.train.fsdp_ranks is not None and config.train.parallel == "ddp":
            yield "train.fsdp_ranks", config.train.fsdp_ranks, "null where train.parallel is ddp"
        if config.train.learning_rate < config.train.final_learning_rate:
            yield "train.final_learning_rate", config.train.final_learning_rate, "at most train.learning_rate"
        yield from _inits(config)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
            yield "name", config.name, "letters, digits, '.', '_' and '-': it names a directory"
    elif isinstance(config, DataConfig):
        yield from _by_rules(config, _DATA_RULES, "")
        yield from _sources(config, "")
        yield from _executor(config, "")


def _by_rules(config: Any, rules: list[Rule], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, holds, allowed in rules:
        value = getattr(config, name)
        if not holds(value):
            yield f"{prefix}{name}", value, allowed


def _sources(data: DataConfig, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for index, source in enumerate(data.sources):
        yield from _by_rules(source, _SOURCE_RULES, f"{prefix}sources[{index}].")
    if data.validation_share + data.development_share >= 1:
        yield f"{prefix}validation_share", data.validation_share, "together with development_share below 1"
    for name, source in data.validation_sets.items():
        if name in RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            allowed = f"names of letters, digits, '.', '_', '-' other than {', '.join(RESERVED)}"
            yield f"{prefix}validation_sets", name, allowed
        yield from _by_rules(source, _SOURCE_RULES, f"{prefix}validation_sets.{name}.")


def _executor(data: DataConfig, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the settings of Slurm."""
    if data.executor != "slurm":
        if data.slurm is not None:
            yield f"{prefix}slurm", f"partition {data.slurm.partition}", f"null, since {prefix}executor is no slurm"
        return
    if data.slurm is None:
        yield f"{prefix}slurm", None, f"{{partition: NAME}}, since {prefix}executor is slurm"
        return
    yield from _by_rules(data.slurm, _SLURM_RULES, f"{prefix}slurm.")
    if not 1 <= data.workers <= MOST_JOBS:
        yield f"{prefix}workers", data.workers, f"with {prefix}executor slurm the number of its jobs, 1 to {MOST_JOBS}"


def init_parts(word: str) -> frozenset[str]:
    """The parts of the reference that an init word inherits; what is not among them comes from random init.

    A word is `inherit` or `stack` (all parts; they differ in the layers that these are taken from), `random` (none), or
    distinct parts joined by `+`.

    Raises:
        ValueError: not such a word; the message says what is allowed.
    """
    if word in WHOLE_INITS:
        return frozenset() if word == "random" else frozenset(PARTS)
    parts = word.split("+")
    if not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise ValueError(_init_words(WHOLE_INITS, word))
    return frozenset(parts)


def canonical_init(word: str) -> str:
    """An init word as runs name it: its parts in the order of `PARTS`, all of them together as `inherit`.

    Raises:
        ValueError: no init word.
    """
    parts = init_parts(word)
    if word in WHOLE_INITS:
        return word
    return "inherit" if len(parts) == len(PARTS) else "+".join(part for part in PARTS if part in parts)


def _distillation(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with learning from the reference's predictions."""
    distill = recipe.train.objective.distill
    if distill is None:
        return
    if not 0.01 <= distill.temperature <= 100:  # beyond, float32 cannot hold the scores
        yield "train.objective.distill.temperature", distill.temperature, "0.01 to 100"
    if not 0 < distill.weight <= 1:
        yield "train.objective.distill.weight", distill.weight, "a number above 0, at most 1"
    if recipe.reference is None:
        yield "train.objective.distill", "given", "null where there is no reference to learn from"


def _optimizer(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the choice of the optimiser."""
    train = recipe.train
    if train.optimizer == "adamw_8bit" and train.offload_optimizer:
        yield "train.offload_optimizer", True, "false with optimizer adamw_8bit; each by itself makes room"
    if train.optimizer == "adamw_8bit" and train.parallel == "fsdp":
        yield "train.parallel", "fsdp", "ddp with optimizer adamw_8bit, whose moments cannot be shared by ranks"


def _inits(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the target's init and with the controls."""
    try:
        own = canonical_init(recipe.inherit.init)
    except ValueError as error:
        yield "inherit.init", recipe.inherit.init, str(error)
        return
    has_cut = own in ("inherit", "stack")
    others = [word for word in WHOLE_INITS if word != own]
    words = ["cut", *others] if has_cut else others
    found: dict[str, str] = {}
    for word in recipe.controls:
        try:
            name = word if word == "cut" else canonical_init(word)
        except ValueError:
            yield "controls", word, _init_words(words, word)
            continue
        if name == "cut" and not has_cut:
            reason = f"inherit.init is {own}, and cut is what the init inherit or stack gives before training"
            yield "controls", word, f"{_init_words(words)}; {reason}"
        elif name == own:
            yield "controls", word, f"{_init_words(words)}; {own} is what the target itself starts from"
        elif name in found:
            yield "controls", word, f"each control once; {found[name]!r} is the same and stands before it"
        found[name] = word


def _init_words(words: Sequence[str], wrong: str = "") -> str:
    """What an init may be: these words or a sum of parts; with a hint at what a wrong one was to be."""
    allowed = f"{', '.join(words)}, or distinct parts joined by '+': {', '.join(PARTS)}"
    if "+" not in wrong:
        return allowed + nearest(wrong, [*words, *PARTS])
    matches = [difflib.get_close_matches(part, PARTS, n=1, cutoff=0.5) for part in wrong.split("+")]
    mended = "+".join(dict.fromkeys(match[0] for match in matches if match))
    return f"{allowed}; did you mean {mended!r}?" if all(matches) else allowed


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the name most like a wrong one, to append to a complaint; empty if none is near."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
