"""The trainings that a recipe asks for, known before there is text or a weight: of which model, for how many steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from inheritune import reference as references, surgery
from inheritune.arms import CUT, Arm, canonical_init, control_arm, target_arm
from inheritune.config import Recipe, TrainConfig
from inheritune.costs import Data
from inheritune.errors import Refused
from inheritune.pipeline import checks, probing
from inheritune.pipeline.models import for_arm
from inheritune.planning import training_flops_per_token
from inheritune.probing import MOST_OF_A_COUNT
from inheritune.reference import LOADING_ERRORS, Reference, block_list, one_line, parameters, weightless
from inheritune.schedule import validation_interval
from inheritune.tokens import Prepared, open_prepared

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Planned:
    """A model of a plan; what it is made of, and how it is trained."""

    name: str
    model: PreTrainedModel = field(repr=False)
    """On the meta device."""
    steps: int = 0
    """0: it is not trained."""
    tokens: int = 0
    """That these steps train on."""
    repeats: int = 1
    """How often it is trained: with how many learning rates."""
    distilled: bool = False

    @property
    def layers(self) -> int:
        """Of its text decoder."""
        return len(block_list(self.model)[1])

    @cached_property
    def parameters(self) -> int:
        """All of them, a tied one once."""
        return parameters(self.model)

    @cached_property
    def parts(self) -> dict[str, int]:
        """Parameters by part; a tied head counts as embeddings."""
        return parameters_by_part(self.model)


def parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of embeddings, attention, MLP, norms and head, a tied one once; `other` where that cannot be told."""
    counted = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head"), 0)
    own = {name: parameter.numel() for name, parameter in model.named_parameters()}
    try:
        belongs = surgery.parts(model)
    except Refused:
        return {"other": sum(own.values())}
    for name, count in own.items():
        part = belongs[name]
        counted["norms" if part in ("block_norms", "final_norm") else part] += count
    return counted


@dataclass
class Models:
    """The models of a recipe, each built once, without memory."""

    recipe: Recipe
    reference: Reference | None
    """None where the recipe trains an architecture."""
    data: Data
    _cut: dict[Indices, PreTrainedModel] = field(default_factory=dict)
    _half_width: PreTrainedModel | None = None

    @property
    def train(self) -> TrainConfig:
        """The recipe's settings."""
        return self.recipe.train

    @property
    def steps(self) -> int:
        """The target's: T."""
        return self.data.steps(self.recipe.data.passes, self.train.max_steps)

    @property
    def target(self) -> Arm:
        """The target, by what it starts from."""
        return target_arm(canonical_init(self.recipe.inherit.init))

    @property
    def controls(self) -> list[Arm]:
        """Those that are trained."""
        return [control_arm(word) for word in self.recipe.controls if word != CUT]

    def cut(self, indices: Indices) -> PreTrainedModel:
        """A model of these layers of the reference.

        Raises:
            Refused: they cannot be cut.
        """
        assert self.reference is not None
        if indices not in self._cut:
            self._cut[indices] = surgery.fitting_config(self.reference, indices)[1]
        return self._cut[indices]

    def probe(self, indices: Indices) -> Planned:
        """The candidates of a probe, trained together: they are of one size, and not all of the budget may be used."""
        one = self.of(self.target, indices, name="probe")
        tokens = probing.budget(self.recipe, self.steps, MOST_OF_A_COUNT)
        return dataclasses.replace(one, steps=tokens // (one.tokens // one.steps), tokens=tokens, repeats=1)

    def of(self, arm: Arm, indices: Indices, *, name: str = "", steps: int | None = None) -> Planned:
        """An arm's training, where the target has these layers.

        Args:
            arm: the target or a control.
            indices: the target's layers.
            name: what it is called; empty: as the arm.
            steps: of the target, if not the recipe's.
        """
        assert self.reference is not None
        if arm.half_width:
            if self._half_width is None:
                self._half_width = weightless(
                    surgery.half_width_config(self.reference), trust_remote_code=self.recipe.trust_remote_code
                )
            model = self._half_width
        else:
            model = self.cut(checks.arm_indices(arm, indices, self.reference.layers))
        train, passes = for_arm(arm, self.train, self.steps, self.recipe.data.passes)
        taken = min(self.data.steps(passes, train.max_steps), steps or 2**62)
        distilled = train.objective.distill is not None
        return self._planned(name or arm.name, model, taken, passes, distilled=distilled)

    def whole(self, name: str, model: PreTrainedModel, *, trained: bool) -> Planned:
        """A model as the recipe or the reference's config has it."""
        if not trained:
            return Planned(name, model)
        return self._planned(name, model, self.steps, self.recipe.data.passes)

    def _planned(
        self, name: str, model: PreTrainedModel, steps: int, passes: int, *, distilled: bool = False
    ) -> Planned:
        tokens, rates = self.data.seen(steps, passes), len(self.train.learning_rates)
        return Planned(name, model, steps, tokens, rates, distilled)

    def controls_beside(self, indices: Indices) -> list[Planned]:
        """The controls that are trained beside a target of these layers; none of them twice."""
        if self.reference is None:
            return []
        total, found = self.reference.layers, []
        for arm in self.controls:
            repeated = checks.is_the_target(arm, indices, self.target, total)
            if not repeated and checks.same_control(arm, self.controls, indices, total) is None:
                found.append(self.of(arm, indices))
        return found


@dataclass(frozen=True)
class HeldOut:
    """What models are measured on."""

    tokens: int
    """Of all sets, at most."""
    every_steps: int
    """Steps between two measurements of a training."""

    def measured_tokens(self, steps: int) -> int:
        """That a training of so many steps measures: before it, on its way, at its end, and once it is exported."""
        return self.tokens * (3 + max(0, steps - 1) // self.every_steps)


@dataclass
class Arithmetic:
    """FLOPs of a recipe's trainings."""

    sequence_length: int
    held_out: HeldOut
    reference: PreTrainedModel | None
    """The teacher of those that are distilled."""
    recomputed: bool
    """Whether blocks compute their activations twice."""
    _per_token: dict[int, float] = field(default_factory=dict)

    def per_token(self, model: PreTrainedModel) -> float:
        """FLOPs of training, a token, attention included (see `planning.training_flops_per_token`)."""
        if id(model) not in self._per_token:
            self._per_token[id(model)] = training_flops_per_token(model, self.sequence_length)
        return self._per_token[id(model)]

    def training(self, planned: Planned) -> float:
        """Of all its trainings."""
        return planned.repeats * planned.tokens * self.per_token(planned.model) if planned.steps else 0.0

    def extra(self, planned: Planned) -> dict[str, float]:
        """Of what else is computed; a forward pass takes a third of training's."""
        if not planned.steps:
            return {}
        forward = planned.repeats * self.per_token(planned.model) / 3
        found = {"validation": forward * self.held_out.measured_tokens(planned.steps)}
        if planned.distilled and self.reference is not None:
            found["teacher"] = planned.repeats * planned.tokens * self.per_token(self.reference) / 3
        if self.recomputed:
            head = planned.model.get_output_embeddings()
            of_head = 2.0 * head.weight.numel() if head is not None else 0.0
            found["recomputation"] = planned.tokens * (forward - planned.repeats * of_head)
        return found


def data_of(recipe: Recipe) -> tuple[Data, HeldOut, Prepared | None]:
    """How much there is to train on and to measure.

    Raises:
        Refused: no key says how many tokens, or prepared shards cannot be read.
    """
    data, train, prepared = recipe.data, recipe.train, None
    if data.prepared is not None:
        prepared = open_prepared(Path(data.prepared))
        tokens: int | None = prepared.manifest["sets"]["train"]["tokens"]
        measured = sum(prepared.manifest["sets"][name]["tokens"] for name in prepared.measured_names)
    else:
        tokens = int(data.tokens) if data.tokens is not None else None
        measured = int(data.validation_tokens) * ((data.validation_share > 0) + len(data.validation_sets))
        measured += int(data.development_tokens) * (data.development_share > 0)
    if tokens is None and train.max_steps is None:
        raise Refused(
            "recipe: data.tokens is not set, and how many there are is not known before the text is read; set it, or "
            "train.max_steps, or data.prepared"
        )
    if tokens is not None and tokens <= data.sequence_length:
        raise Refused(f"data.tokens: {tokens} fill no block of data.sequence_length {data.sequence_length}; give more")
    step_tokens = train.batch_sequences * data.sequence_length
    every = train.validate_every_steps
    interval = validation_interval(measured, step_tokens) if every == "auto" else every
    return Data(tokens, data.sequence_length, train.batch_sequences), HeldOut(measured, interval), prepared


def reference_of(recipe: Recipe, prepared: Prepared | None, *, fetch: bool) -> tuple[Reference, str]:
    """The reference, or the model of the recipe's architecture, by its config; and where that comes from.

    Raises:
        Refused: no config is to be had, or sequences are too long for it.
    """
    if recipe.reference is not None:
        found, origin = references.outline(
            recipe.reference,
            recipe.revision,
            recipe.trust_remote_code,
            recipe.reference_file,
            recipe.reference_dtype,
            fetch=fetch,
        )
        references.check_sequence_length(found, recipe.data.sequence_length)
        return found, origin
    config = checks.architecture_config(recipe, vocabulary=_vocabulary(recipe, prepared), end_of_text=0)
    return references.outlined("architecture", Path(), config, recipe.trust_remote_code), "the recipe"


def _vocabulary(recipe: Recipe, prepared: Prepared | None) -> int:
    """Entries of the tokenizer of a recipe that trains an architecture."""
    assert recipe.architecture is not None
    if prepared is not None:
        return int(prepared.manifest["tokenizer"]["vocabulary"])
    made = recipe.architecture.tokenizer
    if made is None or "vocab_size" in recipe.architecture.config:
        return recipe.architecture.vocabulary
    try:
        return len(AutoTokenizer.from_pretrained(made))
    except LOADING_ERRORS as error:
        raise Refused(f"architecture.tokenizer: {made} cannot be read: {one_line(error)}") from error


def indices_of(recipe: Recipe, reference: Reference) -> tuple[Indices, str | None]:
    """The target's layers, and a note where they stand for as many that are yet to be chosen on text."""
    word = recipe.inherit.layers
    indices = surgery.parse_layers(word, reference.layers)
    if indices is not None:
        return indices, None
    if surgery.is_probe(word):
        count = probing.layers_asked(recipe.inherit, reference)
    else:
        count = surgery.measured(word, reference.layers)[1]
    return tuple(
        range(count)
    ), f"which {count} layers {word} chooses is measured on text; the first {count} stand for them"


def largest(planned: Iterable[Planned]) -> Planned:
    """The model with most parameters of those that are trained."""
    return max((one for one in planned if one.steps), key=lambda one: one.parameters)
