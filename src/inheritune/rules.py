"""What values make sense: the rules that a recipe of the right keys and types still has to keep. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from inheritune.arms import CUT, canonical_init, control_arm, control_names, init_words
from inheritune.config import DataConfig, Recipe

RESERVED = ("train", "development", "held-out", "manifest.json", "train.hashes")
"""What further validation sets may not be called: names in a prepared directory."""
MOST_JOBS = 1000
"""Elements of a job array that Slurm allows unless a cluster's MaxArraySize says otherwise."""
SMALLEST_VOCABULARY = 257
"""The 256 bytes and end-of-text."""

Rule = tuple[str, Callable[[Any], bool], str]


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _all_rates(value: float | list[float]) -> bool:
    rates = value if isinstance(value, list) else [value]
    return bool(rates) and len(set(rates)) == len(rates) and all(_finite(rate) and rate > 0 for rate in rates)


_DATA_RULES: list[Rule] = [
    ("tokens", lambda x: x is None or x > 0, "a token count above 0"),
    ("passes", lambda x: x >= 1, "1 or more"),
    ("sequence_length", lambda x: x >= 2, "2 or more"),
    ("validation_share", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("development_share", lambda x: 0 <= x < 1, "0 or more, below 1"),
    ("validation_tokens", lambda x: x > 0, "a token count above 0"),
    ("development_tokens", lambda x: x > 0, "a token count above 0"),
    ("document_tokens", lambda x: x is None or x >= 2, "2 or more, or null"),
    ("held_out_document_tokens", lambda x: x is None or x >= 2, "2 or more, or null"),
    ("workers", lambda x: x >= 0, "0 (one a core) or more"),
    ("seed", lambda x: 0 <= x < 2**63, "0 or more, below 2**63"),
]
_TRAIN_RULES: list[Rule] = [
    ("batch_sequences", lambda x: x >= 1, "1 or more"),
    ("micro_batch_sequences", lambda x: x == "auto" or x >= 1, "1 or more, or auto"),
    ("learning_rate", _all_rates, "a number above 0, or a list of such numbers, none of them twice"),
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
    ("keep_checkpoints", lambda x: x == "all" or x >= 1, "1 or more, or all"),
    ("seed", lambda x: 0 <= x < 2**63, "0 or more, below 2**63"),
]
_SLURM_RULES: list[Rule] = [
    ("partition", lambda x: re.fullmatch(r"[\w.,-]+", x) is not None, "a partition's name, or several with commas"),
    ("time_limit_minutes", lambda x: x >= 1, "1 or more"),
    ("memory_gigabytes", lambda x: x >= 1, "1 or more"),
]
_GROW_RULES: list[Rule] = [
    ("start", lambda x: x == "half" or x >= 1, "1 or more, or half"),
    ("step", lambda x: x >= 1, "1 or more"),
    ("most", lambda x: x is None or x >= 1, "1 or more, or null"),
    ("tolerance_nats", lambda x: _finite(x) and x > 0, "a number above 0"),
    ("alpha", lambda x: 0.001 <= x < 0.5, "0.001 or more, below 0.5"),
    ("decision_seeds", lambda x: 1 <= x <= 100, "1 to 100"),
    ("pilot_steps", lambda x: x >= 0, "0 (nothing is foreseen) or more"),
    ("warm_steps", lambda x: x is None or x >= 1, "1 or more, or null"),
]
_EVALUATE_RULES: list[Rule] = [
    ("every_tokens", lambda x: x is None or x > 0, "a token count above 0, or null"),
    ("suite", lambda x: bool(x.strip()), "a suite's name, or names of tasks with commas"),
    ("limit", lambda x: x is None or x >= 1, "1 or more, or null"),
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
        yield from _warmup(config)
        yield from _optimizer(config)
        if config.architecture is not None and config.architecture.vocabulary < SMALLEST_VOCABULARY:
            yield "architecture.vocabulary", config.architecture.vocabulary, "257 (every byte and end-of-text) or more"
        yield from _distillation(config)
        if config.train.fsdp_ranks is not None and config.train.parallel == "ddp":
            yield "train.fsdp_ranks", config.train.fsdp_ranks, "null where train.parallel is ddp"
        if min(config.train.learning_rates, default=math.inf) < config.train.final_learning_rate:
            yield "train.final_learning_rate", config.train.final_learning_rate, "at most train.learning_rate"
        yield from _growth(config)
        yield from _comparison(config)
        if config.evaluate is not None:
            yield from _by_rules(config.evaluate, _EVALUATE_RULES, "evaluate.")
        yield from _inits(config)
        yield from _probe(config)
        if config.reference_file is not None and config.reference is None:
            yield "reference_file", config.reference_file, "null where there is no reference that it is a file of"
        if config.reference_dtype is not None and config.reference is None:
            yield "reference_dtype", config.reference_dtype, "null where there is no reference that is a GGUF file"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
            yield "name", config.name, "letters, digits, '.', '_' and '-': it names a directory"
    elif isinstance(config, DataConfig):
        yield from _by_rules(config, _DATA_RULES, "")
        yield from _sources(config, "")
        yield from _executor(config, "")


def _as_given(section: Any) -> dict[str, Any]:
    """A section as a recipe would have it, but for what is null."""
    return {name: value for name, value in vars(section).items() if value is not None}


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


def _warmup(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Steps that would all be warm-up, as far as they are known before there is data."""
    train, grow = recipe.train, recipe.grow
    warmup, most, whose = train.warmup_steps, train.max_steps, "train.max_steps"
    lasting = _steps_of_data(recipe)
    if lasting is not None and lasting < (most or lasting + 1):
        most, whose = lasting, "the steps that data.tokens last for"
    if most is not None and warmup >= most:
        yield "train.warmup_steps", warmup, f"fewer than {whose} ({most})"
    if grow is None or grow.growth != "warm":
        return
    allowed = f"more than train.warmup_steps ({warmup})"
    if most is not None:
        allowed += f", at most {whose} ({most})"
        half = max(1, most // 2)
        if grow.warm_steps is None and half <= warmup:
            yield "grow.warm_steps", None, f"{allowed}; left out it is half of {whose}, {half}"
    if grow.warm_steps is not None and not warmup < grow.warm_steps <= (most or grow.warm_steps):
        yield "grow.warm_steps", grow.warm_steps, allowed


def _steps_of_data(recipe: Recipe) -> int | None:
    """Steps of all passes over `data.tokens`; None where these fill no block, or are not known."""
    data, batch = recipe.data, recipe.train.batch_sequences
    if data.tokens is None or data.prepared is not None or data.sequence_length < 1 or batch < 1:
        return None
    blocks = (data.tokens - 1) // data.sequence_length * data.passes
    return -(-blocks // batch) if blocks > 0 else None


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
        yield "train.objective.distill", _as_given(distill), "null where there is no reference to learn from"


def _growth(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the full-data recipe, as far as the reference need not be known."""
    grow = recipe.grow
    if grow is None:
        return
    yield from _by_rules(grow, _GROW_RULES, "grow.")
    if grow.growth == "warm" and grow.choice != "first":
        yield "grow.growth", "warm", f"cold with grow.choice {grow.choice}; a target grows by layers above those it has"
    if grow.growth == "warm" and recipe.inherit.init != "inherit":
        yield "grow.growth", "warm", f"cold with inherit.init {recipe.inherit.init}"
    if grow.growth == "cold" and grow.warm_steps is not None:
        yield "grow.warm_steps", grow.warm_steps, "null where grow.growth is cold"
    if recipe.inherit.layers != "half":
        yield "inherit.layers", recipe.inherit.layers, "left out with grow, whose start, step and choice say the layers"
    if recipe.compare is not None:
        yield "compare", _as_given(recipe.compare), "null with grow, whose target is no single training"


def _comparison(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the other data to train the target on."""
    other = recipe.compare
    if other is None:
        return
    if other.passes < 1:
        yield "compare.passes", other.passes, "1 or more"
    if other.tokens is not None and other.tokens <= 0:
        yield "compare.tokens", other.tokens, "a token count above 0"
    if (recipe.data.prepared is None) != (other.prepared is None):
        allowed = "null, as data.prepared is" if recipe.data.prepared is None else "a directory, as data.prepared is"
        yield "compare.prepared", other.prepared, allowed
    if other.prepared is not None and other.tokens is not None:
        yield "compare.tokens", int(other.tokens), "null with compare.prepared, which holds as many as it holds"
    if recipe.reference is None:
        yield "compare", _as_given(other), "null where there is no reference to inherit from"


def _optimizer(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the choice of the optimiser."""
    train = recipe.train
    if train.optimizer == "adamw_8bit" and train.offload_optimizer:
        yield "train.offload_optimizer", True, "false with optimizer adamw_8bit; each by itself makes room"
    if train.optimizer == "adamw_8bit" and train.parallel == "fsdp":
        yield "train.parallel", "fsdp", "ddp with optimizer adamw_8bit, whose moments cannot be shared by ranks"


def _probe(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with choosing the layers by training."""
    inherit = recipe.inherit
    probed = str(inherit.layers).strip().startswith("probe:")
    if inherit.probe_tokens is not None and (not probed or inherit.probe_tokens <= 0):
        allowed = "a token count above 0, or null" if probed else "null where inherit.layers is no probe:N"
        yield "inherit.probe_tokens", int(inherit.probe_tokens), allowed
    if probed and inherit.init != "inherit":
        yield "inherit.layers", inherit.layers, "no probe:N with inherit.init other than inherit"
    if probed and recipe.reference is None:
        yield "inherit.layers", inherit.layers, "no probe:N where there is no reference to inherit from"


def _inits(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with the target's init and with the controls."""
    try:
        own = canonical_init(recipe.inherit.init)
    except ValueError as error:
        yield "inherit.init", recipe.inherit.init, str(error)
        return
    has_cut = own in ("inherit", "stack")
    words = [word for word in control_names() if word != own and (has_cut or word != CUT)]
    found: dict[str, str] = {}
    for word in recipe.controls:
        try:
            name = word if word == CUT else control_arm(word).name
        except ValueError as error:
            yield "controls", word, str(error) if ":" in word or "@" in word else init_words(words, word)
            continue
        if name == CUT and not has_cut:
            reason = f"inherit.init is {own}, and cut is what the init inherit or stack gives before training"
            yield "controls", word, f"{init_words(words)}; {reason}"
        elif name == own:
            yield "controls", word, f"{init_words(words)}; {own} is what the target itself starts from"
        elif name in found:
            yield "controls", word, f"each control once; {found[name]!r} is the same and stands before it"
        elif name.startswith("distill") and recipe.train.objective.distill is not None:
            yield "controls", word, "without train.objective.distill, by which every model learns from the reference"
        found[name] = word
