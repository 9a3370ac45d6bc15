"""Token shards to batches, as a pure function of the step: resuming is exact and costs nothing.

A block is `sequence_length` inputs with their next-token labels, cut from the set's one stream of tokens: block i holds
the tokens from i * sequence_length to (i + 1) * sequence_length, both included, so neighbours share one token and every
token but the first is a label exactly once. The tail that fills no block is not trained on, and counted.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json

Tokens = npt.NDArray[np.int64]


class TokenSet:
    """One set of a prepared directory (train, held-out, …): a stream of tokens over memory-mapped shards."""

    def __init__(self, directory: Path, files: list[dict[str, Any]], token_bytes: int) -> None:
        """Map the shards; nothing is read yet.

        Raises:
            Failed: a file is missing or has another length than the manifest says.
        """
        self._shards: list[npt.NDArray[Any]] = []
        ends: list[npt.NDArray[np.uint64]] = []
        sizes: list[npt.NDArray[np.uint64]] = []
        offset = 0
        for file in files:
            path = directory / file["name"]
            _check_size(path, file["tokens"] * token_bytes)
            for ending in (".index", ".bytes"):
                _check_size(path.with_name(f"{path.name}{ending}"), file["documents"] * 8)
            self._shards.append(np.memmap(path, dtype=f"<u{token_bytes}", mode="r"))
            ends.append(np.fromfile(f"{path}.index", dtype="<u8") + np.uint64(offset))
            sizes.append(np.fromfile(f"{path}.bytes", dtype="<u8"))
            offset += file["tokens"]
        self.name = directory.name
        self.tokens = offset
        self.starts = np.cumsum([0, *(len(shard) for shard in self._shards)])  # (shards + 1,) in tokens
        self.document_ends = (
            np.concatenate(ends).astype(np.int64) if ends else np.zeros(0, np.int64)
        )  # (documents,) in tokens
        self.document_bytes = np.concatenate(sizes).astype(np.int64) if sizes else np.zeros(0, np.int64)  # (documents,)

    def shortened(self, tokens: int) -> TokenSet:
        """Its first documents, as many as hold at most so many tokens together, but one at least; nothing is copied."""
        documents = max(1, int(np.searchsorted(self.document_ends, tokens, side="right")))
        short = copy.copy(self)
        short.document_ends = self.document_ends[:documents]
        short.document_bytes = self.document_bytes[:documents]
        short.tokens = int(short.document_ends[-1]) if len(short.document_ends) else 0
        return short

    def expect_random_reads(self) -> None:
        """Tell the system that what lies beside a block is not needed next: it would read far more than the block."""
        for shard in self._shards:
            mapped = getattr(shard, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop) of the stream, as far as it goes, across shards: (stop - start,) at most, int64."""
        parts, stop = [], min(stop, self.tokens)
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            base, end = int(self.starts[shard]), min(stop, int(self.starts[shard + 1]))
            parts.append(np.asarray(self._shards[shard][start - base : end - base], dtype=np.int64))
            start, shard = end, shard + 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def positions(self, start: int, stop: int) -> Tokens:
        """Each token's place in its document, for the sequence [start, stop) of the stream: (stop - start,), int64.

        A document's end-of-text begins the next one, which is predicted from it: so every token is a label once, and
        each document reads as one does that is measured alone. A document cut by the sequence's start begins there.
        """
        return _places(self.document_ends, start + 1, stop + 1)  # each by the place behind it

    def last_tokens(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which tokens of [start, stop) are their document's last: (stop - start,)."""
        ends = self.document_ends
        found = np.zeros(stop - start, np.bool_)
        found[ends[np.searchsorted(ends, start + 1) : np.searchsorted(ends, stop + 1)] - 1 - start] = True
        return found

    def beginnings(self, length: int) -> npt.NDArray[np.uint64]:
        """A hash of each document's first `length` tokens, (documents,); 0 for documents that have fewer."""
        sizes = np.diff(self.document_ends, prepend=0)
        starts = self.document_ends - sizes
        found = np.zeros(len(sizes), np.uint64)
        shards = np.searchsorted(self.starts, starts, side="right") - 1  # no document spans two
        for index, shard in enumerate(self._shards):
            inside = np.flatnonzero((shards == index) & (sizes >= length))
            for chunk in np.array_split(inside, 1 + len(inside) // 100_000):
                rows = starts[chunk, None] - self.starts[index] + np.arange(length)  # (documents, length)
                found[chunk] = _hashes(shard[rows].astype(np.uint64))
        return found

    def shared_documents(self, other: TokenSet) -> int:
        """How many of this set's documents stand, as far as they are kept here, at the beginning of one of another's.

        Documents of fewer than eight tokens are not looked for; one that begins as thousands do is compared with the
        first of them alone.
        """
        sizes = np.diff(self.document_ends, prepend=0)
        count = 0
        for least, most in itertools.pairwise((*_BEGINNINGS, np.iinfo(np.int64).max)):
            inside = (sizes >= least) & (sizes < most)
            if inside.any():
                count += self._shared(other, np.flatnonzero(inside), int(least))
        return count

    def _shared(self, other: TokenSet, numbers: npt.NDArray[np.int64], length: int) -> int:
        """How many of some documents stand at the beginning of one of another set's; found by so many first tokens."""
        own, theirs = self.beginnings(length)[numbers], other.beginnings(length)
        order = np.argsort(theirs, kind="stable")
        low, high = (np.searchsorted(theirs, own, side=side, sorter=order) for side in ("left", "right"))
        count = 0
        for place in np.flatnonzero(high > low):
            document = self._document(int(numbers[place]), None)
            alike = order[low[place] : min(high[place], low[place] + _MOST_ALIKE)]
            count += any(np.array_equal(other._document(int(one), len(document)), document) for one in alike)
        return count

    def _document(self, number: int, length: int | None) -> Tokens:
        """A document's tokens, or its first `length`."""
        start = int(self.document_ends[number - 1]) if number else 0
        end = int(self.document_ends[number])
        return self.read(start, end if length is None else min(end, start + length))


_BEGINNINGS = (8, 64)
"""Tokens by which documents that may be the same are found: the more, the fewer that only begin alike."""
_MOST_ALIKE = 1000
"""Documents that one is compared with in full."""


def _hashes(rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of each row, never 0: (rows,)."""
    words = np.zeros(len(rows), np.uint64)
    with np.errstate(over="ignore"):
        for column in rows.T:
            words = _mixed(words * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1))
    return words | np.uint64(1)


def _places(begins: Tokens, start: int, stop: int) -> Tokens:
    """How far each index of [start, stop) is from the last of `begins`, ascending, or from `start`."""
    indices = np.arange(start, stop)
    last = np.full(stop - start, start)
    inside = begins[np.searchsorted(begins, start) : np.searchsorted(begins, stop)]
    last[inside - start] = inside
    return indices - np.maximum.accumulate(last)


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file() or path.stat().st_size != expected:
        stated = f"missing, or not the {expected} bytes that the manifest states"
        raise Failed(f"{path}: {stated}; delete {path.parent.parent} and prepare the data again")


@dataclass(frozen=True)
class Prepared:
    """A directory that `inheritune prepare` wrote."""

    directory: Path
    manifest: dict[str, Any]
    most_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sets of which the first documents alone are looked at, and how many tokens these may hold together."""

    def set(self, name: str) -> TokenSet:
        """The set of that name."""
        whole = TokenSet(
            self.directory / name, self.manifest["sets"][name]["files"], self.manifest["tokenizer"]["token_bytes"]
        )
        return whole.shortened(self.most_tokens[name]) if name in self.most_tokens else whole

    def verify(self) -> None:
        """Compare the checksum of every shard, and of the files of its documents, with the manifest's.

        Raises:
            Failed: one differs.
        """
        for name, entry in self.manifest["sets"].items():
            for file in entry["files"]:
                for suffix, key in (("", "sha256"), (".index", "index_sha256"), (".bytes", "bytes_sha256")):
                    path = self.directory / name / f"{file['name']}{suffix}"
                    with path.open("rb") as content:
                        found = hashlib.file_digest(content, "sha256").hexdigest()
                    if found != file.get(key, found):
                        mend = f"delete {self.directory} and prepare again"
                        raise Failed(f"{path}: damaged (its checksum differs); {mend}")

    @property
    def unique_training_tokens(self) -> int | None:
        """Tokens of the training set without what was repeated; None where no source repeated to fill its share."""
        unique: int | None = self.manifest["sets"]["train"].get("unique_tokens")
        return unique

    @property
    def main_set(self) -> str:
        """The validation set that verdicts are about: `held-out`, or the first that the recipe names."""
        return next(name for name in self.measured_names if name != "development")

    @property
    def developed(self) -> bool:
        """Whether there is a development set to choose by."""
        return "development" in self.manifest["sets"]

    @property
    def measured_names(self) -> list[str]:
        """Every set that models are measured on: development and validation sets."""
        return [name for name in self.manifest["sets"] if name != "train"]

    def only(self, *names: str) -> Prepared:
        """The same with these sets alone: what is not there can be neither measured nor waited for."""
        sets = {name: entry for name, entry in self.manifest["sets"].items() if name in names}
        return dataclasses.replace(self, manifest={**self.manifest, "sets": sets})

    def shortened(self, name: str, tokens: int) -> Prepared:
        """The same with only the first documents of a set, as `TokenSet.shortened` takes them."""
        return dataclasses.replace(self, most_tokens={**self.most_tokens, name: tokens})

    @property
    def context_token(self) -> int:
        """What stands before a stream's first token, so that this one too is predicted: end-of-text."""
        return int(self.manifest["tokenizer"]["end_of_text"])


def open_prepared(directory: Path) -> Prepared:
    """Open a prepared directory.

    Raises:
        Refused: it holds no manifest, so preparation has not finished.
    """
    try:
        manifest = read_json(directory / "manifest.json")
    except Failed as error:
        raise Refused(f"{directory}: its manifest.json is damaged; run `inheritune prepare` again") from error
    if not isinstance(manifest, dict) or not {"sets", "tokenizer"} <= manifest.keys():
        raise Refused(
            f"{directory}: no manifest.json, so this is no finished output of `inheritune prepare`; run it (again)"
        )
    return Prepared(directory, manifest)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea & Flood 2014), element by element: a bijection of 64-bit words."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=2)
def pass_order(blocks: int, seed: int, pass_index: int) -> npt.NDArray[np.int64]:
    """The order of the blocks in one pass: a permutation of range(blocks), another in each pass.

    Made of our own integer arithmetic, since numpy does not promise that its generators' permutations stay the same
    from one release to the next, and an order that changes under an upgrade would break every resumed run.
    """
    base = _mixed(_mixed(np.array([seed], np.uint64)) + np.array([pass_index], np.uint64))
    with np.errstate(over="ignore"):
        # The multiplier is odd, so words differ between blocks before the bijection and hence after it: no ties.
        words = _mixed(base + np.arange(1, blocks + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class TrainingBlocks:
    """The training set's blocks over all passes, and which of them make up each step."""

    tokens: TokenSet
    sequence_length: int
    passes: int
    batch_sequences: int
    seed: int

    def __post_init__(self) -> None:
        self.tokens.expect_random_reads()

    @property
    def blocks(self) -> int:
        """Blocks in one pass."""
        return max(0, (self.tokens.tokens - 1) // self.sequence_length)

    @property
    def tail_tokens(self) -> int:
        """Tokens at the stream's end that fill no block and are never a label."""
        return self.tokens.tokens - 1 - self.blocks * self.sequence_length

    @property
    def steps(self) -> int:
        """Steps that see every block once a pass; the last one may hold fewer sequences than the others."""
        return -(-self.blocks * self.passes // self.batch_sequences)

    def indices(self, step: int) -> list[int]:
        """The blocks of one step, in order. A step may span the border of two passes."""
        first = step * self.batch_sequences
        places = range(first, min(first + self.batch_sequences, self.blocks * self.passes))
        return [int(pass_order(self.blocks, self.seed, place // self.blocks)[place % self.blocks]) for place in places]

    def tokens_of(self, steps: int) -> int:
        """Tokens that the first so many steps see."""
        return min(steps * self.batch_sequences, self.blocks * self.passes) * self.sequence_length

    def place(self, steps: int) -> dict[str, int]:
        """Where a training stands after so many steps: tokens seen, and the last sequence's pass and place in it."""
        tokens = self.tokens_of(steps)
        done, block = divmod(max(0, tokens // self.sequence_length - 1), self.blocks)
        return {"tokens": tokens, "pass": done, "block": block}

    def rows(self, indices: list[int]) -> tuple[Tokens, Tokens]:
        """Inputs and labels of some blocks: two arrays of (blocks, sequence_length)."""
        length = self.sequence_length
        rows = np.stack([self.tokens.read(i * length, (i + 1) * length + 1) for i in indices])
        return rows[:, :-1], rows[:, 1:]

    def rows_apart(self, indices: list[int], context_token: int) -> tuple[Tokens, Tokens, Tokens]:
        """Inputs, labels and the inputs' places in their documents, each (blocks, sequence_length).

        A document's last token begins the next one; where the document was cut short, so that this is no end-of-text,
        `context_token` takes its place.
        """
        length = self.sequence_length
        inputs, labels = self.rows(indices)
        places = np.stack([self.tokens.positions(i * length, (i + 1) * length) for i in indices])
        last = np.stack([self.tokens.last_tokens(i * length, (i + 1) * length) for i in indices])
        return np.where(last, context_token, inputs), labels, places

    def micro_batches(self, step: int, sequences: int, rank: int, ranks: int) -> list[list[int]]:
        """A step's blocks in micro-batches of `sequences`, dealt to the ranks in turns: those of one rank.

        Every rank gets as many micro-batches as any other; the last may be short or empty.
        """
        blocks = self.indices(step)
        parts = [blocks[start : start + sequences] for start in range(0, len(blocks), sequences)]
        rounds = -(-len(parts) // ranks)
        return [parts[i] if i < len(parts) else [] for i in range(rank, rounds * ranks, ranks)]


def whole_set(
    tokens: TokenSet, sequence_length: int, context_token: int, ignored_label: int, *, apart: bool = False
) -> tuple[Tokens, Tokens]:
    """Every token of a set as a label exactly once: inputs and labels, two arrays of (blocks, sequence_length).

    The first token is predicted from `context_token`, and with `apart` each document's first token is; the last block
    is padded with `ignored_label`.
    """
    stream = np.concatenate([[context_token], tokens.read(0, tokens.tokens)])
    labelled = stream.copy()
    if apart:
        stream[tokens.document_ends] = context_token
    blocks = -(-tokens.tokens // sequence_length)
    inputs = np.full(blocks * sequence_length, context_token, np.int64)
    labels = np.full(blocks * sequence_length, ignored_label, np.int64)
    inputs[: tokens.tokens] = stream[:-1]
    labels[: tokens.tokens] = labelled[1:]
    return inputs.reshape(blocks, sequence_length), labels.reshape(blocks, sequence_length)


def whole_set_positions(tokens: TokenSet, sequence_length: int) -> Tokens:
    """The place of `whole_set`'s inputs in their documents: (blocks, sequence_length); see `TokenSet.positions`."""
    blocks = -(-tokens.tokens // sequence_length)
    # the stream is one longer than the set's: the token before the first stands in front
    places = [_places(tokens.document_ends, i * sequence_length, (i + 1) * sequence_length) for i in range(blocks)]
    return np.stack(places)
