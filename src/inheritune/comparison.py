"""Differences between models, with the uncertainty that the validation documents leave. No torch.

Sequences of one document resemble each other, so a document is the unit that is resampled: a bootstrap over documents
(Efron & Tibshirani 1993, chapter 8), paired, since every model is measured on the same documents.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Documents = npt.NDArray[np.float64]
RESAMPLES = 2000
_CELLS = 2**23
"""Counts at a time: 128 MiB with what they are drawn as, however many documents there are."""


@dataclass(frozen=True)
class Share:
    """What part of the gap the target closes: (control - target) / (control - reference)."""

    value: float | None
    low: float | None
    high: float | None
    shown: bool
    text: str


def resampled_means(losses: list[Documents], tokens: Documents, seed: int = 0) -> list[Documents]:
    """Mean loss a token in each of `RESAMPLES` draws of documents, the same draws for every model.

    Args:
        losses: for each model its documents' total loss in nats, (documents,).
        tokens: the documents' tokens, (documents,).
        seed: of the draws.

    Returns:
        For each model an array of (RESAMPLES,), nats a token.
    """
    generator = np.random.default_rng(seed)
    documents = len(tokens)
    sums = [np.empty(RESAMPLES) for _ in (tokens, *losses)]
    rows = max(1, _CELLS // max(1, documents))
    for first in range(0, RESAMPLES, rows):
        # How often each document was drawn stands for the draw itself: a product of matrices then gives all the sums.
        part = slice(first, min(first + rows, RESAMPLES))
        drawn = generator.multinomial(documents, np.full(documents, 1 / documents), size=part.stop - first)
        counts = drawn.astype(np.float64)
        for total, values in zip(sums, (tokens, *losses), strict=True):
            total[part] = counts @ values
    drawn_tokens, *drawn_losses = sums
    return [loss / drawn_tokens for loss in drawn_losses]


def share_of_gap(
    control: Documents, target: Documents, reference: Documents, tokens: Documents, seed: int = 0
) -> Share:
    """The share with its 95% bootstrap interval, or the reason why it says nothing.

    It is shown only if control - reference exceeds twice its standard error: otherwise the denominator may well be
    zero.

    Args:
        control: the control's total loss of each document, nats, (documents,).
        target: the target's.
        reference: the reference's.
        tokens: the documents' tokens, (documents,).
        seed: of the draws.
    """
    total = tokens.sum()
    c, t, r = (float(losses.sum() / total) for losses in (control, target, reference))
    if len(tokens) < 2:
        return Share(
            None,
            None,
            None,
            False,
            "one validation document leaves no spread to judge by",
        )
    drawn_c, drawn_t, drawn_r = resampled_means([control, target, reference], tokens, seed)
    error = float(np.std(drawn_c - drawn_r, ddof=1))
    if c - r <= 2 * error:
        text = (
            f"the control is as good as the reference: this comparison shows nothing "
            f"(control - reference = {c - r:.3f}, standard error {error:.3f} nats a token)"
        )
        return Share(None, None, None, False, text)
    low, high = (float(x) for x in np.percentile((drawn_c - drawn_t) / (drawn_c - drawn_r), [2.5, 97.5]))
    value = (c - t) / (c - r)
    interval = f"95% interval {low:.2f} to {high:.2f}, over {len(tokens)} documents"
    text = f"{value:.2f} of the gap between control and reference closed ({interval})"
    return Share(value, low, high, True, text)


def tokens_to_reach(loss: float, curve: list[tuple[int, float]]) -> int | None:
    """Tokens after which a recorded validation curve first reaches `loss`; None if it never does.

    Between its points the curve is taken as linear.

    Args:
        loss: nats a token.
        curve: (tokens trained, validation loss) in order of tokens.
    """
    for (tokens_before, before), (tokens_after, after) in itertools.pairwise(curve):
        if after <= loss:
            fraction = 0.0 if before <= loss else (before - loss) / (before - after)
            return round(tokens_before + fraction * (tokens_after - tokens_before))
    return None
