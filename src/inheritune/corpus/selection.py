"""Which documents make up each set, and how many tokens of each: exact budgets, and weights as shares of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.corpus.placement import Documents

Numbers = npt.NDArray[np.int64]

_PROBE_TOKENS = 250_000
_PROBE_BYTES_A_TOKEN = 2.0
_MARGIN = 1.02


@dataclass
class TokenisedDocuments:
    """What is known of each document's tokens: arrays of (documents,); `tokens` is -1 where it was not tokenised."""

    tokens: Numbers
    bytes: Numbers
    """UTF-8 bytes of text that the tokens cover."""
    cut: npt.NDArray[np.bool_]
    task: Numbers
    """Which task's file holds the tokens."""
    offset: Numbers
    """Where they begin in it, in tokens."""

    @classmethod
    def none(cls, documents: int) -> TokenisedDocuments:
        """Nothing known yet."""
        unknown = np.full(documents, -1, np.int64)
        return cls(unknown, unknown.copy(), np.zeros(documents, bool), unknown.copy(), unknown.copy())


@dataclass
class Selection:
    """Documents in the order in which they are taken for one set, until its budget is full."""

    name: str
    """The set."""
    source: int | None
    """The source that the documents are from; None: any."""
    documents: Numbers
    budget: int | None
    """Tokens; None: all there are."""
    document_limit: int = 0
    """Tokens kept of each document; 0: all."""
    repeat: bool = False
    known: int = 0
    """How many of the first documents are tokenised."""
    known_tokens: int = 0

    def update(self, tokenised: TokenisedDocuments) -> None:
        """Count the documents that became known."""
        known = tokenised.tokens[self.documents] >= 0
        self.known = len(known) if known.all() else int(np.argmin(known))
        self.known_tokens = int(tokenised.tokens[self.documents[: self.known]].sum())

    def next_wave(self, documents: Documents, tokenised: TokenisedDocuments) -> Numbers:
        """The documents to tokenise next: none when the budget is full or nothing is left.

        How many is a guess from the bytes a token took so far; it decides how much is tokenised, not what is chosen.
        """
        rest = self.documents[self.known :]
        if self.budget is None:
            return rest
        missing = self.budget - self.known_tokens
        if missing <= 0 or not len(rest):
            return rest[:0]
        rate, wanted = _PROBE_BYTES_A_TOKEN, float(min(missing, _PROBE_TOKENS))
        if self.known_tokens:
            rate = max(0.1, float(tokenised.bytes[self.documents[: self.known]].sum()) / self.known_tokens)
            wanted = missing * _MARGIN
        guess = documents["bytes"][rest] / rate + 1.0
        if self.document_limit:
            guess = np.minimum(guess, self.document_limit)
        return rest[: int(np.searchsorted(np.cumsum(guess), wanted)) + 1]


@dataclass(frozen=True)
class Chosen:
    """A set's documents in their final order, and what is kept of each: arrays of (documents,)."""

    documents: Numbers
    tokens: Numbers
    bytes: Numbers
    cut: npt.NDArray[np.bool_]

    @property
    def total(self) -> int:
        """Tokens."""
        return int(self.tokens.sum())

    @property
    def unique_tokens(self) -> int:
        """Tokens without what a source that may repeat has repeated."""
        order = np.lexsort((-self.tokens, self.documents))  # a document's whole copy before one that was cut
        _, first = np.unique(self.documents[order], return_index=True)
        return int(self.tokens[order][first].sum())

    def sorted_by(self, order: npt.NDArray[Any]) -> Chosen:
        """The same documents in another order."""
        return Chosen(self.documents[order], self.tokens[order], self.bytes[order], self.cut[order])


def choose(selection: Selection, tokenised: TokenisedDocuments) -> Chosen:
    """Exactly the budget's tokens, or all there are: whole documents in order, the last one cut.

    Bytes of the document that is cut here are -1: they take its text to count.
    """
    documents = selection.documents[: selection.known]
    tokens = tokenised.tokens[documents]
    if selection.budget is not None:
        total = int(tokens.sum())
        if selection.repeat and 0 < total < selection.budget:
            documents = np.tile(documents, -(-selection.budget // total))
            tokens = tokenised.tokens[documents]
        ends = np.cumsum(tokens)
        count = min(len(documents), int(np.searchsorted(ends, selection.budget)) + 1)
        documents, tokens, ends = documents[:count], tokens[:count].copy(), ends[:count]
        cut, sizes = tokenised.cut[documents], tokenised.bytes[documents]
        if count and ends[-1] > selection.budget:
            tokens[-1] -= ends[-1] - selection.budget
            cut[-1], sizes[-1] = True, -1
        return Chosen(documents, tokens, sizes, cut)
    return Chosen(documents, tokens, tokenised.bytes[documents], tokenised.cut[documents])


def split_budget(tokens: int, weights: list[float]) -> list[int]:
    """Each source's share of a budget by largest remainder: whole tokens that sum to it; ties go to the first."""
    exact = [Fraction(weight) for weight in weights]
    shares = [tokens * weight / sum(exact) for weight in exact]
    whole = [int(share) for share in shares]
    largest_first = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for index in largest_first[: tokens - sum(whole)]:
        whole[index] += 1
    return whole


def interleave(parts: list[Chosen]) -> Chosen:
    """Sources' documents as one stream that holds the sources in their shares all along.

    A document stands where its source is at that fraction of its own tokens; with one source, in the sample's order.
    """
    fractions = [(np.cumsum(part.tokens) - part.tokens) / max(1, part.total) for part in parts]
    sources = np.repeat(np.arange(len(parts)), [len(part.tokens) for part in parts])
    joined = Chosen(
        np.concatenate([part.documents for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.bytes for part in parts]),
        np.concatenate([part.cut for part in parts]),
    )
    return joined.sorted_by(np.lexsort((sources, np.concatenate(fractions))))
