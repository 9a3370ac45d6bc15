"""What a document's content alone decides: its hash, the set it falls into, and its place in a seeded sample."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DOCUMENT = np.dtype(
    [
        ("high", "<u8"),  # content hash, first 8 bytes as a big-endian number
        ("low", "<u8"),  # content hash, last 8 bytes
        ("place", "<u8"),  # which set; order within the held-out sets
        ("rank", "<u8"),  # order within the sample
        ("file", "<u4"),  # number in the plan
        ("position", "<u8"),  # where in the file: bytes or rows
        ("length", "<u8"),  # raw bytes there
        ("bytes", "<u8"),  # UTF-8 bytes of text
    ]
)
Documents = npt.NDArray[Any]

_WORDS = 2**64


class Placement(NamedTuple):
    """The numbers of one document that its content (and, for `rank`, the seed) decides."""

    high: int
    low: int
    place: int
    rank: int


def place_document(text: bytes, seed: int) -> Placement:
    """Hash a document's UTF-8 text. The set does not depend on the seed: all seeds are judged by the same documents."""
    content = hashlib.blake2b(text, digest_size=16).digest()
    place = hashlib.blake2b(content, digest_size=8, person=b"inheritune set").digest()
    return Placement(
        int.from_bytes(content[:8], "big"),
        int.from_bytes(content[8:], "big"),
        int.from_bytes(place, "big"),
        rank_of(content, seed, 0),
    )


def content_hash(text: bytes) -> tuple[int, int]:
    """The two numbers of `place_document` that tell whether a document is the same."""
    content = hashlib.blake2b(text, digest_size=16).digest()
    return int.from_bytes(content[:8], "big"), int.from_bytes(content[8:], "big")


def rank_of(content: bytes, seed: int, copy: int) -> int:
    """The place of a document's copy in the sample of `seed`: uniform in 64 bits."""
    word = hashlib.blake2b(content + copy.to_bytes(8, "big"), digest_size=8, key=_key(seed))
    return int.from_bytes(word.digest(), "big")


@functools.lru_cache
def _key(seed: int) -> bytes:
    return hashlib.blake2b(str(seed).encode("ascii"), digest_size=32).digest()


def thresholds(validation_share: float, development_share: float) -> tuple[int, int]:
    """Places below the first are held out, below the second for development, the others for training."""
    first = int(validation_share * _WORDS)
    return first, first + int(development_share * _WORDS)


def number_copies(documents: Documents, seed: int) -> npt.NDArray[np.int64]:
    """How many documents with the same content stand before each one; ranks of copies are set anew, in place."""
    order = np.lexsort((documents["low"], documents["high"]))
    high, low = documents["high"][order], documents["low"][order]
    new = np.ones(len(order), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    places = np.arange(len(order))
    copies = np.zeros(len(order), np.int64)
    copies[order] = places - np.maximum.accumulate(np.where(new, places, 0))
    for index in np.flatnonzero(copies).tolist():
        content = content_of(documents[index])
        documents["rank"][index] = rank_of(content, seed, int(copies[index]))
    return copies


def content_of(document: Any) -> bytes:
    """A document's content hash, 16 bytes."""
    return int(document["high"]).to_bytes(8, "big") + int(document["low"]).to_bytes(8, "big")


def among(documents: Documents, others: Documents) -> npt.NDArray[np.bool_]:
    """Which documents have the content of one of the others."""
    likely = np.isin(documents["high"], others["high"])
    known = {content_of(document) for document in others[np.isin(others["high"], documents["high"])]}
    for index in np.flatnonzero(likely).tolist():
        likely[index] = content_of(documents[index]) in known
    return likely


def seen(documents: Documents, hashes: list[bytes]) -> npt.NDArray[np.bool_]:
    """Which documents' content hashes begin with one of `hashes` (all of one length, 8 to 16 bytes)."""
    if not hashes:
        return np.zeros(len(documents), bool)
    width, known = len(hashes[0]), set(hashes)
    likely = np.isin(documents["high"], np.array([int.from_bytes(value[:8], "big") for value in hashes], np.uint64))
    if width > 8:
        for index in np.flatnonzero(likely).tolist():
            likely[index] = content_of(documents[index])[:width] in known
    return likely
