"""What is measured between a training's steps: on a copy of its model, so that the training takes no notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from inheritune.errors import Interrupted
from inheritune.parallel import place


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
    measure: Callable[[PreTrainedModel, int, int], dict[str, float]]
    """Told the model (on the device, in eval mode, without gradients), steps and tokens trained; its scores by name."""
    every_tokens: int | None = None
    """Due after each step that brings the tokens trained to a multiple of so many, and after the last; None: after
    the last alone."""

    def is_due(self, before: int, now: int, *, last: bool) -> bool:
        """Whether it is due after a step.

        Args:
            before: tokens trained before the step.
            now: tokens trained with it.
            last: whether it is the last step.
        """
        return last or (self.every_tokens is not None and before // self.every_tokens < now // self.every_tokens)

    def measured(
        self, weights: dict[str, torch.Tensor], device: torch.device, step: int, tokens: int
    ) -> tuple[dict[str, float], str | None]:
        """Make the model and measure it; no random state is moved, and no error but `Interrupted` comes through.

        Args:
            weights: by name, each whole, in float32, on the CPU.
            device: where it is measured.
            step: steps trained.
            tokens: tokens trained.

        Returns:
            Scores by name; and what went wrong, in a line, or None.
        """
        try:
            with _random_states_kept(device), torch.no_grad():
                model = place(self.copy(weights), device).eval()
                return self.measure(model, step, tokens), None
        except Interrupted:
            raise
        except Exception as error:  # libraries raise their own, out of memory among them; a training outlives them all
            return {}, " ".join(f"{type(error).__name__}: {error}".split())[:200]


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
