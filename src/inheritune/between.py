"""What is measured between a training's steps: on a copy of its model, so that the training takes no notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from inheritune.errors import Interrupted
from inheritune.parallel import place
from inheritune.scores import Line, Reading, Score

_SHARES = ("acc", "exact")
"""How the names of metrics begin that are shares of rows, told in percent."""


@dataclass(frozen=True)
class Between:
    """A measurement between steps, on a model of its own that has the weights of the moment.

    Rank 0 makes that model and measures it while the others wait. It takes memory beside the training's: in the host's
    what the copy takes while it is made (4 bytes a parameter, and 4 more for the gathered weights where these are not
    the training's own), then on rank 0's device what it takes in the dtype of the export.
    """

    copy: Callable[[dict[str, torch.Tensor]], PreTrainedModel]
    """Makes the model on the CPU, as the run would export it, from weights by name, each whole and in float32. It must
    not change them: they may be the training's own."""
    measure: Callable[[PreTrainedModel, int, int], Reading]
    """Told the model (on the device, in eval mode, without gradients), steps and tokens trained; what it scores."""
    every_tokens: int | None = None
    """Due after each step that brings the tokens trained to a multiple of so many, and after the last; None: after
    the last alone."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """By name what no measurement will have, as known beforehand: why, and how to mend it."""

    def is_due(self, before: int, now: int, *, last: bool) -> bool:
        """Whether it is due after a step.

        Args:
            before: tokens trained before the step.
            now: tokens trained with it.
            last: whether it is the last step.
        """
        return last or (self.every_tokens is not None and before // self.every_tokens < now // self.every_tokens)

    def measured(
        self,
        weights: dict[str, torch.Tensor],
        device: torch.device,
        step: int,
        tokens: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Reading | str | None:
        """Make the model and measure it; no random state is moved, and no error but `Interrupted` comes through.

        Args:
            weights: by name, each whole, in float32, on the CPU.
            device: where it is measured.
            step: steps trained.
            tokens: tokens trained.
            stopped: asked before each of the model's forward passes whether to leave the measurement there.

        Returns:
            What it scores; or what went wrong, in a line; or None: it was left.
        """

        def leave(*_: Any) -> None:
            if stopped():
                raise _Left("left")

        try:
            with _random_states_kept(device), torch.no_grad():
                model = place(self.copy(weights), device).eval()
                # asked by the model itself: whatever measures it, generation included, goes through here
                model.register_forward_pre_hook(leave)
                return self.measure(model, step, tokens)
        except _Left:
            return None
        except Exception as error:  # libraries raise their own, out of memory among them; a training outlives them all
            return " ".join(f"{type(error).__name__}: {error}".split())[:200]

    def in_words(self, reading: Reading) -> str:
        """What was measured, on a line: `piqa 52.0% ±3.5 ~chance (200 of 1,838 rows, drawn)`, apart by semicolons.

        Behind ± one standard error; `~chance` and `~majority` as tables have it: within two of that, or below. Gaps
        that were known beforehand are not told again.
        """
        scored = [_said(line, reading.scores[line.name]) for line in reading.lines if line.name in reading.scores]
        return "; ".join([*scored, *(why for name, why in reading.gaps.items() if self.gaps.get(name) != why)])


class _Left(Interrupted):
    """Ends a measurement from within."""


def _said(line: Line, score: Score) -> str:
    """One line's score with what it must not be shown without."""
    share, error = line.metric.startswith(_SHARES), score.standard_error
    words = [line.title + (f", {line.shots}-shot" if line.shots else "")]
    words += [line.metric] if line.metric != "acc" else []
    words += [f"{100 * score.value:.1f}%" if share else f"{score.value:,.4g}"]
    if error is not None:
        words += [f"±{100 * error:.1f}" if share else f"±{error:,.2g}"]
    words += [f"~{level}" for level in score.near]
    cut = f"{score.cut_rows:,} of {line.rows:,} rows cut to the context" if score.cut_rows else None
    notes = ", ".join(note for note in (line.selection, cut) if note is not None)
    return " ".join(words) + (f" ({notes})" if notes else "")


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Leave the random states of Python, numpy and torch (those of the CPU and of this device) as they were before."""
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)
