"""Learning rate as a pure function of the step: nothing to save, nothing to restore. No torch."""

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
