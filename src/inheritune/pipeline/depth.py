"""`inheritune depth`: what each layer is worth, choices of layers trained a little, and which of them to inherit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inheritune import reference as references, surgery
from inheritune.config import TrainConfig
from inheritune.console import Console
from inheritune.depth import Budget, Contender, Recommendation, recommend, runs
from inheritune.distributed import World, single
from inheritune.errors import Failed, Refused
from inheritune.parallel import compute_dtype
from inheritune.pipeline.checks import check_can_be_made
from inheritune.pipeline.depth_asked import BATCH_SEQUENCES, Asked, Choice, check_numbers, developed_shards, taken
from inheritune.pipeline.depth_layers import measured_layers, show_layers
from inheritune.pipeline.depth_trials import Trials
from inheritune.probing import Candidate
from inheritune.report import candidates_table, degeneracy_svg, depth_svg, scan_svg
from inheritune.run_directory import read_json, write_atomic, write_json

Record = dict[str, Any]

PROBE_TOKENS = 2_000_000
"""What the probe may cost where nothing else is said: as much as training the deepest candidate on so many tokens."""
_SEQUENCE_LENGTH = 512
_LEARNING_RATE = 3e-4
_LAYERS, _OUTCOME = "layers.json", "depth.json"


def choose_depth(
    reference: str,
    data: Path,
    *,
    out: Path | None = None,
    max_parameters: int | None = None,
    max_memory: int | None = None,
    probe_tokens: int = PROBE_TOKENS,
    sequence_length: int | None = None,
    batch_sequences: int = BATCH_SEQUENCES,
    learning_rate: float = _LEARNING_RATE,
    seed: int = 0,
    revision: str | None = None,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """How many layers of a reference to inherit, and which: measures of its layers, short probes, a recommendation.

    Everything is measured on the development set, by which one may choose. Killed, the same call goes on.

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`.
        data: a directory that `prepare` wrote, with a development set.
        out: the directory that is written; `runs/depth-NAME` by the reference's name if not given.
        max_parameters: of the target.
        max_memory: bytes at the peak of its training step with one sequence, as `memory.predicted` has it.
        probe_tokens: what the probe may cost, in tokens of training the deepest candidate; 0: no training.
        sequence_length: tokens of a sequence; by default 512, or the reference's positions where they are fewer.
        batch_sequences: sequences a step of the probe.
        learning_rate: of the probe, constant after the warm-up.
        seed: of the order of the blocks, and of the untrained network beside the reference.
        revision: of a hub id.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is dequantised to, "float32" (None) or "bfloat16".
        trust_remote_code: whether code of the reference may be run.
        console: where progress is shown.

    Returns:
        What `depth.json` in `out` holds (see docs/depth.md).

    Raises:
        Refused: bad input; nothing was written.
        Failed: every candidate diverged, or something could not be written.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    world, console = single(), console or Console()
    name = re.sub(r"[^\w.-]+", "-", reference.rstrip("/").rpartition("/")[2].rpartition(":")[2])
    directory = out if out is not None else Path("runs") / f"depth-{name}"
    check_numbers(
        learning_rate,
        max_parameters=max_parameters,
        max_memory=max_memory,
        probe_tokens=probe_tokens,
        sequence_length=sequence_length,
        batch_sequences=batch_sequences,
    )
    if directory.exists() and not directory.is_dir():
        raise Refused(f"{directory}: a file, not a directory; choose another --out")
    check_can_be_made(directory)
    found = references.find(reference, revision, trust_remote_code, reference_file, reference_dtype)
    if found.layers < 2:
        raise Refused(f"{reference}: has 1 layer, so there is no number of layers to choose")
    prepared = developed_shards(data, found)
    length = min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH)
    length = length if sequence_length is None else sequence_length
    references.check_sequence_length(found, length)
    train = TrainConfig(
        batch_sequences=batch_sequences,
        micro_batch_sequences="auto",
        learning_rate=learning_rate,
        seed=seed,
    )
    dtype = str(compute_dtype(train.compute_dtype, world.device)).removeprefix("torch.")
    device = f"{world.device.type}, {dtype}"
    asked = Asked(found, prepared, train, Budget(max_parameters, max_memory), probe_tokens, length, device)
    most = asked.most_layers(world)
    asked.check_tokens(most)
    with taken(directory, asked.record()):
        return _Study(asked, most, directory, console, world)()


_AGAIN = "delete it and give the same command again"


def _whole(path: Path, keys: Sequence[str]) -> Record | None:
    """A record that has these keys; None where there is none yet.

    Raises:
        Failed: it is damaged.
    """
    held = read_json(path)
    if held is not None and (not isinstance(held, dict) or any(key not in held for key in keys)):
        raise Failed(f"{path}: damaged; {_AGAIN}")
    return held


class _Study:
    """The stages of an answer, each skipped as far as it is recorded."""

    def __init__(self, asked: Asked, most: int, directory: Path, console: Console, world: World) -> None:
        self._asked = asked
        self._most = most
        self._directory = directory
        self._console = console
        self._world = world
        self._trials = Trials(asked, directory, console, world)

    def __call__(self) -> Record:
        """Measure, probe, recommend, write, show."""
        asked, directory, trials = self._asked, self._directory, self._trials
        held: Record | None = _whole(directory / _OUTCOME, ("layers", "candidates", "probe", "recommended"))
        if held is not None:
            self._check_layers(directory / _OUTCOME, held["layers"])
            show_layers(held["layers"], self._console)
            self._show_answer(held)
            return held
        layers = self._layers()
        show_layers(layers, self._console)
        choices = trials.cut(trials.within_budget(self._most, layers["chosen"]))
        probe = trials.probed(choices) if asked.probe_tokens and len(choices) > 1 else None
        entries = probe["candidates"] if probe is not None else trials.untrained(choices)
        rungs = len(probe["rungs"]) if probe is not None else 0
        sizes = np.diff(asked.development.document_ends, prepend=0).astype(np.float64)
        found = recommend(
            [self._contender(one, rungs) for one in entries],
            document_tokens=sizes,
            rungs=rungs,
            most=self._most,
            of_layers=asked.reference.layers,
        )
        record = self._outcome(layers, choices, entries, probe, found)
        write_atomic(directory / "depth.svg", depth_svg(record))
        write_atomic(directory / "scan.svg", scan_svg(layers))
        if layers["degeneracy"] is not None:
            write_atomic(directory / "degeneracy.svg", degeneracy_svg(layers["degeneracy"], layers["untrained"]))
        trials.remove_starts()
        write_json(directory / _OUTCOME, record)
        self._show_answer(record)
        return record

    def _show_answer(self, record: Record) -> None:
        self._console.table(candidates_table(record, width=self._console.width))
        for line in _answer(record):
            self._console.line(line)
        self._console.line(f"{self._directory}: depth.json, depth.svg and its other figures")

    def _layers(self) -> Record:
        """What each layer is worth, as recorded or measured now."""
        held = _whole(self._directory / _LAYERS, ())
        if held is None:
            held = measured_layers(self._asked, self._most, self._console, self._world)
            write_json(self._directory / _LAYERS, held)
        self._check_layers(self._directory / _LAYERS, held)
        return held

    def _check_layers(self, path: Path, held: Any) -> None:
        """Refuse a record of another number of layers, or without what is made of it."""
        keys = {"prefixes", "influence", "chosen", "degeneracy", "untrained"}
        count = self._asked.reference.layers
        if (
            not isinstance(held, dict)
            or not keys <= held.keys()
            or any(held[name] is not None and len(held[name]) != count for name in ("prefixes", "influence"))
        ):
            raise Failed(f"{path}: damaged; {_AGAIN}")

    def _contender(self, entry: Record, rungs: int) -> Contender:
        candidate = Candidate(entry["name"], tuple(entry["layers"]))
        last = rungs and len(entry["losses"]) == rungs and entry["losses"][-1] is not None
        if last and not self._trials.are_noted(candidate):
            raise Failed(
                f"{self._directory}: losses/ lacks those of {candidate.name}, and its weights are gone; delete "
                f"{self._directory / 'probe'}, and the same command probes again"
            )
        return Contender(
            name=candidate.name,
            layers=candidate.layers,
            untrained=entry["untrained"],
            losses=tuple(entry["losses"]),
            equal_tokens=tuple(entry.get("equal_tokens", ())),
            nats=self._trials.losses(candidate).nats if last else None,
        )

    def _outcome(
        self,
        layers: Record,
        choices: Sequence[Choice],
        entries: Sequence[Record],
        probe: Record | None,
        found: Recommendation,
    ) -> Record:
        asked = self._asked
        known = {one.candidate.name: one for one in choices}
        rows = [
            {
                "name": entry["name"],
                "layers": entry["layers"],
                "parameters": known[entry["name"]].parameters,
                "memory_bytes": known[entry["name"]].memory_bytes,
                "flops_per_token": known[entry["name"]].flops_per_token,
                "untrained": entry["untrained"],
                "losses": entry["losses"],
                "equal_tokens": entry.get("equal_tokens", []),
                "tokens": entry["tokens"],
            }
            for entry in entries
        ]
        kept = {"rungs": [], "tokens": 0, "flops": 0.0, "seconds": 0.0}
        if probe is not None:
            kept = {name: probe[name] for name in kept}
        return {
            **asked.record(),
            "of_layers": asked.reference.layers,
            "most_layers": self._most,
            "set": asked.development.name,
            "documents": len(asked.development.document_ends),
            "development_tokens": asked.development.tokens,
            "layers": layers,
            "candidates": rows,
            "probe": kept,
            "recommended": {
                "name": found.contender.name,
                "layers": list(found.contender.layers),
                "lowest_loss": found.best.name,
                "reasons": list(found.reasons),
                "recipe": f"inherit: {{layers: {_quoted(runs(found.contender.layers))}}}",
            },
        }


def _quoted(word: str) -> str:
    return word if word.isdigit() else f'"{word}"'


def _answer(record: Record) -> Iterator[str]:
    """The recommendation in lines."""
    found = record["recommended"]
    yield f"Recommended: {found['name']}, layers {surgery.spelled(tuple(found['layers']))}"
    yield from (f"  {reason}" for reason in found["reasons"])
    yield "In a recipe:"
    yield f"  {found['recipe']}"
