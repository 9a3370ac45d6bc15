"""`layers: probe:N` in a run: which candidates there are, and their training before the target's."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from inheritune import layerwise, reference as references, surgery
from inheritune.config import InheritConfig, Recipe, TokenCount
from inheritune.consumption import Consumption, summed
from inheritune.errors import Failed, Refused
from inheritune.pipeline import layer_choice
from inheritune.pipeline.models import Models
from inheritune.pipeline.shared import Run
from inheritune.probing import MOST_OF_A_COUNT, Candidate, Probe, candidates, folder, in_words, least_tokens, rungs
from inheritune.reference import Reference
from inheritune.run_directory import read_json, write_json
from inheritune.tokens import Prepared, TrainingBlocks

Record = dict[str, Any]

_FOLDER = "probe"
_SHARE = 2
"""The target's tokens divided by this are what candidates are trained on together, if the recipe does not say."""


def check(recipe: Recipe, reference: Reference) -> None:
    """Refuse a probe of which nothing can come, before anything is prepared.

    Raises:
        Refused: no such number of layers, no candidate that can be cut, a budget that is too small.
    """
    count = layers_asked(recipe.inherit, reference)
    if not possible(reference, candidates(reference.layers, [count]), most_parameters(recipe.inherit)):
        surgery.plan_cut(reference, tuple(range(count)))  # says why
        raise Refused(f"inherit.layers: {recipe.inherit.layers}: no choice of {count} layers can be cut")
    asked, least = recipe.inherit.probe_tokens, least_tokens(MOST_OF_A_COUNT, _step_tokens(recipe))
    if asked is not None and asked < least:
        what = f"{asked:,} tokens are not enough for {MOST_OF_A_COUNT} candidates to take a step in every rung"
        raise Refused(f"inherit.probe_tokens: {what}; give {least:,} or more")


def layers_asked(inherit: InheritConfig, reference: Reference) -> int:
    """The N of `probe:N`; of `probe:90M` the most layers that leave no more parameters than that.

    Raises:
        Refused: there is no such N.
    """
    word = str(inherit.layers)
    try:
        most = most_parameters(inherit)
    except ValueError:
        forms = f"probe:N with 1 to {reference.layers} layers, or with the most parameters, such as probe:1.5B"
        raise Refused(f"layers: {word!r} is not possible; give {forms}") from None
    if most is None:
        return surgery.measured(word, reference.layers)[1]
    sizes = references.prefix_parameters(reference.skeleton)
    if sizes[0] > most:
        raise Refused(f"layers: {word!r} is not possible: one layer of {reference.source} has {sizes[0]:,} parameters")
    return sum(size <= most for size in sizes)


def most_parameters(inherit: InheritConfig) -> int | None:
    """The size of `probe:90M`; None of `probe:N`.

    Raises:
        ValueError: it is neither.
    """
    size = str(inherit.layers).partition(":")[2].strip()
    return None if size.isdigit() else int(TokenCount(size))


def budget(recipe: Recipe, steps: int, count: int) -> int:
    """Tokens that so many candidates are trained on together, where the target takes so many steps."""
    step_tokens = _step_tokens(recipe)
    return recipe.inherit.probe_tokens or max(steps * step_tokens // _SHARE, least_tokens(count, step_tokens))


def possible(reference: Reference, among: Iterable[Candidate], most: int | None = None) -> list[Candidate]:
    """Those that can be cut from the reference.

    Args:
        reference: its weights are not read.
        among: choices of its layers.
        most: parameters that they may have, if there is a bound: blocks may differ in size.
    """
    found = []
    for one in among:
        try:
            cut = surgery.plan_cut(reference, one.layers)
        except Refused:
            continue
        if most is None or cut.parameters <= most:
            found.append(one)
    return found


def probed(run: Run, models: Models, reference: Reference, prepared: Prepared) -> tuple[int, ...]:
    """The layers that a probe chooses, as recorded or found now; with several ranks a collective call."""
    record = run.world.on_main(lambda: layer_choice.read(run.directory))
    if record is None:
        run.console.stage("Probing which layers to inherit")
        probe = _probe(run, models, reference, prepared)
        found = probe.run()
        run.console.line(f"  {in_words(found)}")
        record = run.world.on_main(lambda: _record(run, found))
    run.world.on_main(lambda: shutil.rmtree(run.directory / _FOLDER / "starts", ignore_errors=True))
    return tuple(record["layers"])


def _record(run: Run, found: Record) -> Record:
    """Note what was chosen and what it cost."""
    costs = {name: found[name] for name in ("seconds", "tokens", "flops")}
    run.note("probe", {**costs, "candidates": len(found["candidates"]), **_consumption(found["candidates"])})
    record = {"measure": surgery.PROBE, "layers": found["layers"], "tokens": found["tokens"], "set": "train"}
    record = {**record, **_measured(run), "probe": found}
    layer_choice.write(run.directory, record)
    return record


def _consumption(candidates: list[Record]) -> Record:
    """What the candidates' trainings took together: a rung begun is no start anew."""
    trained = [one for one in candidates if one["losses"]]
    taken = [Consumption.of(one.get("consumption")) or Consumption(whole=False) for one in trained]
    rungs_after_the_first = sum(len(one["losses"]) - 1 for one in trained)
    together = summed(taken)
    together = dataclasses.replace(together, starts=max(0, together.starts - rungs_after_the_first))
    return {"trainings": len(trained), "steps": sum(one["steps"] for one in trained), "consumption": together.record()}


def _measured(run: Run) -> Record:
    """What the blocks do to the hidden state, as the candidates of that kind were chosen by."""
    held = _turning(run)
    return {name: held[name] for name in ("influence", "angular")} if held is not None else {}


def _turning(run: Run) -> Record | None:
    """What the blocks do to the hidden state and which were chosen by that; None where it was not measured yet.

    Raises:
        Failed: it is no such record.
    """
    path = run.directory / _FOLDER / "turning.json"
    record: Any = read_json(path)
    if record is None:
        return None
    chosen = record.get("chosen") if isinstance(record, dict) else None
    whole = isinstance(chosen, dict) and all(map(layer_choice.are_layers, chosen.values()))
    if not whole or not all(isinstance(record.get(name), list) for name in ("influence", "angular")):
        raise Failed(f"{path}: damaged, no record of what blocks do; delete it and give the same command again")
    found: Record = record
    return found


def _probe(run: Run, models: Models, reference: Reference, prepared: Prepared) -> Probe:
    recipe = run.recipe
    training = TrainingBlocks(
        prepared.set("train"), recipe.data.sequence_length, recipe.data.passes, recipe.train.batch_sequences, 0
    )
    steps = min(training.steps, recipe.train.max_steps or training.steps)
    step_tokens = _step_tokens(recipe)
    found = run.world.on_main(lambda: _cut(run, reference, _candidates(run, reference, prepared)))
    tokens = budget(recipe, steps, len(found))
    longest = max((rung.steps for rung in rungs(len(found), tokens, step_tokens)), default=0)
    if longest > steps:
        what = f"with {tokens:,} tokens the last candidates are trained for {longest} steps, the target for {steps}"
        fewer = "give fewer, or " if tokens > least_tokens(len(found), step_tokens) else ""
        raise Failed(f"inherit.probe_tokens: {what}; {fewer}train the target longer")
    run.console.line(f"  {len(found)} candidates, {tokens:,} tokens of training in all")

    def start(candidate: Candidate) -> PreTrainedModel:
        return models.loaded(_start(run, candidate))

    return Probe(
        candidates=found,
        prepared=prepared,
        config=recipe.train,
        tokens=tokens,
        directory=run.directory / _FOLDER,
        sequence_length=recipe.data.sequence_length,
        passes=recipe.data.passes,
        start=start,
        report=run.console.line,
        progress=run.console.progress,
        world=run.world,
        document_mask=recipe.data.document_mask,
        teacher=lambda: models.teacher(recipe.train),
    )


def _start(run: Run, candidate: Candidate) -> Path:
    """What a candidate's training begins from."""
    return run.directory / _FOLDER / "starts" / folder(candidate)


def _cut(run: Run, reference: Reference, among: Iterable[Candidate]) -> list[Candidate]:
    """Those whose starts could be cut and proven: that blocks depend on each other only running the target shows."""
    found, refused = [], ""
    for one in among:
        try:
            if not _start(run, one).exists():
                surgery.inherit(reference, one.layers, _start(run, one))
        except Refused as error:
            refused = str(error)
            run.console.line(f"  {one.name} is left out: {error}")
            continue
        found.append(one)
    if not found:
        raise Failed(f"{refused}; the prepared data is kept, name it as data.prepared")
    return found


def _candidates(run: Run, reference: Reference, prepared: Prepared) -> list[Candidate]:
    """The choices that can be cut, with those that are measured on tokens of the training set."""
    count = layers_asked(run.recipe.inherit, reference)
    path = run.directory / _FOLDER / "turning.json"
    held = _turning(run)
    if held is None:
        run.console.line("  measuring what the blocks do to the hidden state")
        with layer_choice.kept_data():
            turning = layer_choice.measured_turning(
                reference,
                prepared.set("train"),
                sequence_length=run.recipe.data.sequence_length,
                batch_sequences=run.measured_at_once,
                compute=run.recipe.train.compute_dtype,
                device=run.world.device,
            )
        chosen = {f"{name}:{count}": layerwise.choose(turning, name, count) for name in surgery.MEASURES}
        held = {"chosen": chosen, "influence": list(turning.influence), "angular": turning.stretches()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, held)
    among = candidates(reference.layers, [count], held["chosen"])
    return possible(reference, among, most_parameters(run.recipe.inherit))


def _step_tokens(recipe: Recipe) -> int:
    return recipe.train.batch_sequences * recipe.data.sequence_length
