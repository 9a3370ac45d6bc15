"""How far blocks turn the hidden state, one by one and stretch by stretch, and which layers that chooses.

Two published measures, from one pass:

- Block influence (ShortGPT, Men et al. 2024, arXiv 2403.03853, equation 1): one minus the cosine of a block's input and
  output. The blocks of the least influence are dropped, wherever they stand.
- The angular distance of a stretch of k blocks (Gromov et al. 2024, arXiv 2403.17887, equation 7): the angle between
  what enters its first block and what leaves its last, as a part of a half turn. The one stretch of the smallest
  distance is dropped.

Both are means over all tokens. Gromov et al. measure at each sequence's last token instead, the only one that depends
on all of it. Here sequences are cut from one stream at equal lengths: what their last tokens have is the longest
context, and they are few. All tokens make of one pass as many times more readings as a sequence has tokens, and let
both measures be of the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from inheritune.errors import Failed, Refused
from inheritune.layerwise.passes import Pass, caught
from inheritune.objective import Objective
from inheritune.reference import block_list, eval_mode
from inheritune.tokens import Tokens, TokenSet

_CHUNK_NUMBERS = 1 << 20
"""Numbers of hidden states in float64 that exist at a time: 8 MiB."""
_DIGITS = 7
"""Of a distance: the arc cosine of 1 is off by 1e-8 where the cosine's last bit is. So equal states have distance 0."""


@dataclass(frozen=True)
class Turning:
    """How far a model's N blocks turn the hidden state, in the mean over tokens."""

    influence: tuple[float, ...]
    """Of each block, 0 to 2: 0 where it leaves every hidden state's direction as it is, 2 where it reverses it."""
    distances: npt.NDArray[np.float64]
    """(N + 1, N + 1), symmetric, 0 to 1: entry (a, b) is the angle, as a part of a half turn, between the hidden states
    in front of block a and in front of block b; N stands for the state behind the last block."""
    tokens: int
    """How many it is the mean of."""

    def stretches(self) -> list[list[float]]:
        """The distances by stretch: entry (k - 1, a) is that of the k blocks from block a on."""
        blocks = len(self.influence)
        return [[float(self.distances[a, a + k]) for a in range(blocks - k + 1)] for k in range(1, blocks + 1)]


def first_batches(
    tokens: TokenSet, *, sequence_length: int, batch_sequences: int, most_tokens: int
) -> Iterator[Tokens]:
    """The beginning of a set as inputs for `measure_turning`: arrays of (B, sequence_length), without padding.

    Layers are chosen by what these tokens show, so take them from training or development text, never from the text
    that the outcome is judged by.

    Args:
        tokens: the set.
        sequence_length: tokens of a sequence; a set that is shorter makes one sequence of all it has.
        batch_sequences: sequences a batch; the last one may hold fewer.
        most_tokens: how far to read; at least one sequence is.
    """
    length = min(sequence_length, tokens.tokens)
    sequences = max(1, min(most_tokens, tokens.tokens) // max(1, length))
    for first in range(0, sequences, batch_sequences):
        stop = min(first + batch_sequences, sequences)
        yield tokens.read(first * length, stop * length).reshape(stop - first, length)


@torch.inference_mode()
def measure_turning(model: PreTrainedModel, batches: Iterable[Tokens | torch.Tensor], *, dtype: torch.dtype) -> Turning:
    """How far blocks turn the hidden state; the head is not applied.

    Whatever the model's dtype, influence is computed in float32, angles in float64, means in float64. A zero vector has
    cosine 0 with any other and 1 with itself. The model is left as it was. Beside a pass's own memory a batch holds its
    N + 1 hidden states: (N + 1, B, T, D), in the model's dtype.

    Args:
        model: on the device that it is to be run on, not compiled.
        batches: token ids, (B, T), int64, every token of which counts: no padding.
        dtype: of matrix products.

    Raises:
        Refused: there is no token; the model's passes do not run each block once, in order, on a hidden state.
        Failed: a hidden state is not finite.
    """
    blocks = block_list(model)[1]
    sums, objective = TurningSums(len(blocks), model.device), Objective(model, dtype)
    nowhere = torch.empty(0, dtype=torch.int64, device=model.device)
    with eval_mode(model):
        for batch in batches:
            ids = torch.as_tensor(batch).to(model.device)
            if not ids.numel():
                continue
            with caught(blocks) as found:
                objective(ids, ids, scored=True, places=nowhere)
            found.check(model)
            sums.add(found)
    if not sums.tokens:
        raise Refused("layers: no tokens to measure them on; give at least one sequence")
    turning = sums.means()
    if turning is None:
        raise Failed("layers: a hidden state is not finite, so blocks cannot be compared; try another dtype")
    return turning


class TurningSums:
    """Influences and angles, summed pass by pass; no hidden state outlives its pass.

    Args:
        blocks: how many the model has.
        device: the model's.
    """

    def __init__(self, blocks: int, device: torch.device) -> None:
        self._influence = np.zeros(blocks)
        self._angles = torch.zeros(blocks + 1, blocks + 1, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, found: Pass, counted: torch.Tensor | None = None) -> None:
        """Add a pass's tokens.

        Args:
            found: the pass.
            counted: (B, T), bool: which of them; without it all.
        """
        turns = found.turns
        if counted is not None:
            turns = [turn[counted.expand(turn.shape)] for turn in turns]
        self._influence += [float(turn.double().sum()) for turn in turns]
        self.tokens += turns[0].numel()
        states = [state.flatten(0, -2) for state in found.states]
        places = torch.arange(len(states[0]), device=states[0].device)
        if counted is not None:
            places = places[counted.expand(found.turns[0].shape).flatten()]
        for chunk in places.split(max(1, _CHUNK_NUMBERS // (len(states) * states[0].shape[-1]))):
            self._angles += _angles(torch.stack([state[chunk] for state in states], 1)).sum(0)

    def means(self) -> Turning | None:
        """The means over the tokens; None where a hidden state was not finite."""
        angles = self._angles.cpu().numpy()
        if not self.tokens or not (np.isfinite(self._influence).all() and np.isfinite(angles).all()):
            return None
        above = np.triu(np.round(angles / self.tokens, _DIGITS), 1)
        return Turning(tuple((self._influence / self.tokens).tolist()), above + above.T, self.tokens)


def _angles(states: torch.Tensor) -> torch.Tensor:
    """The angle between any two of M vectors, as a part of a half turn: (tokens, M, D) to (tokens, M, M), float64."""
    exact = states.double()
    # the products first, then the lengths from their diagonal: unit vectors would take six times as long to make
    products = exact @ exact.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    zero = squares == 0
    lengths = squares.masked_fill(zero, 1.0).sqrt()
    cosines = products / (lengths[:, :, None] * lengths[:, None, :])
    cosines = cosines.masked_fill(zero[:, :, None] & zero[:, None, :], 1.0)
    return cosines.clamp(-1, 1).acos() / math.pi


def choose(turning: Turning, measure: str, count: int) -> tuple[int, ...]:
    """The indices of the `count` layers that `measure`, `influence` or `angular`, keeps, ascending.

    Raises:
        Refused: there are not so many layers.
    """
    if measure == "influence":
        return most_influential(turning.influence, count)
    assert measure == "angular", measure
    return outside_closest_stretch(turning.distances, count)


def most_influential(influence: Sequence[float], count: int) -> tuple[int, ...]:
    """The indices of the `count` blocks of the greatest influence, ascending; of equals the lower index.

    Raises:
        Refused: there are not so many blocks.
    """
    _check_count("influence", count, len(influence))
    return tuple(sorted(sorted(range(len(influence)), key=lambda index: -influence[index])[:count]))


def outside_closest_stretch(distances: npt.NDArray[np.float64], count: int) -> tuple[int, ...]:
    """The indices of the `count` blocks that are left when the one stretch that turns least is dropped, ascending.

    The algorithm of Gromov et al. 2024 (arXiv 2403.17887, section 3.2) without its healing. Of stretches of equal
    distance the last is dropped.

    Args:
        distances: between hidden states, (N + 1, N + 1), as `Turning.distances`.
        count: how many blocks are kept.

    Raises:
        Refused: there are not so many blocks.
    """
    blocks = len(distances) - 1
    _check_count("angular", count, blocks)
    dropped = blocks - count
    first = min(range(count, -1, -1), key=lambda start: distances[start, start + dropped])
    return (*range(first), *range(first + dropped, blocks))


def _check_count(measure: str, count: int, blocks: int) -> None:
    if not 1 <= count <= blocks:
        raise Refused(f"{measure}:{count}: the reference has {blocks} layers; ask for 1 to {blocks}")
