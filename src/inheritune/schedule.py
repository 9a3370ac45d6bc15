"""What depends on the step alone: the learning rate, when to validate. Nothing to save or to restore; no torch."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear warm-up, then a cosine from `peak` to `final`, as the paper trains (arXiv 2404.08634, appendix).

    Args:
        step: the step about to be taken, counted from 0.
        steps: how many steps the run takes; the last one, `steps - 1`, is taken near `final`.
        warmup_steps: steps of warm-up; the step `warmup_steps` is the first at `peak`. Longer than `steps`: the run
            ends in it.
        peak: learning rate after the warm-up.
        final: learning rate that the cosine ends at.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


_VALIDATION_SHARE = 0.04
"""Of the training's time; the first and the last validation, which every run has, come on top."""
_FORWARD_SHARE = 1 / 2
"""What a token costs without its gradient, of what it costs with it: one pass of three of about equal work, and the
token's own loss. Measured on a CPU: 0.48 (benchmarks/overheads.py)."""


def validation_interval(validation_tokens: int, step_tokens: int) -> int:
    """Steps between validations so that they take a twenty-fifth of the training's time.

    Args:
        validation_tokens: what a validation measures, all sets together.
        step_tokens: what a step trains on.
    """
    return max(1, math.ceil(_FORWARD_SHARE * validation_tokens / (_VALIDATION_SHARE * step_tokens)))
