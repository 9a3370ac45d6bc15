"""Which set each document falls into, and what is taken out of which: the selections that are then tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.config import DataConfig, SourceConfig
from inheritune.corpus.placement import Documents, among, number_copies, seen, thresholds
from inheritune.corpus.selection import Selection, split_budget
from inheritune.errors import Refused

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Assignment:
    """The sets' documents in order, and what was counted on the way."""

    selections: list[Selection]
    duplicates: int
    """Documents of the training sources whose content occurred before."""
    seen_removed: dict[str, int]
    """Documents taken out of each held-out set because `exclude_seen` lists them."""
    removed_from_train: int
    """Documents taken out of the training set because a set of `validation_sets` holds the same content."""


def assign(
    data: DataConfig,
    sources: list[SourceConfig],
    documents: Documents,
    source_of: npt.NDArray[np.int64],
    hashes: list[bytes],
) -> Assignment:
    """Share the documents out. `source_of` gives each file's source; the ranks of copies are set in `documents`.

    Raises:
        Refused: a source without documents, or a set that would be empty.
    """
    source = source_of[documents["file"]]
    for number, named in enumerate(sources):
        if not (source == number).any():
            raise Refused(f"{named.path}: no documents in it; a source must hold text")
    mixed = np.flatnonzero(source < len(data.sources))
    own = documents[mixed]
    copies = number_copies(own, data.seed)
    documents["rank"][mixed] = own["rank"]
    kept = np.zeros(len(documents), bool)
    kept[mixed] = (copies == 0) if data.exact_duplicates == "drop" else True

    first_development, first_train = thresholds(data.validation_share, data.development_share)
    place = documents["place"]
    known = seen(documents, hashes)
    groups: dict[str, tuple[Mask, int]] = {}
    if data.validation_share > 0:
        groups["held-out"] = (kept & (place < np.uint64(first_development)), data.validation_tokens)
    if data.development_share > 0:
        inside = (place >= np.uint64(first_development)) & (place < np.uint64(first_train))
        groups["development"] = (kept & inside, data.development_tokens)
    for number, name in enumerate(data.validation_sets, len(data.sources)):
        groups[name] = (source == number, data.validation_tokens)

    further = documents[source >= len(data.sources)]
    train = kept & (place >= np.uint64(first_train))
    twice = among(documents, further) & train if len(further) else np.zeros(len(documents), bool)
    selections = _training(data, documents, source, train & ~twice, twice)
    for name, (mask, budget) in groups.items():
        selections.append(_held_out(data, documents, name, mask, mask & ~known, budget))
    removed = {name: int((mask & known).sum()) for name, (mask, _) in groups.items()}
    return Assignment(selections, int((copies > 0).sum()), removed, int(twice.sum()))


def _training(data: DataConfig, documents: Documents, source: Any, train: Mask, twice: Mask) -> list[Selection]:
    """What is trained on, by source; `twice` are documents left out for standing in `validation_sets`, too."""
    budgets: list[int | None] = [None]
    if data.tokens is not None:
        budgets = [*split_budget(data.tokens, [source.weight for source in data.sources])]
    selections = []
    for number, budget in enumerate(budgets):
        ids = np.flatnonzero(train & (source == number))
        if not len(ids) and (twice & (source == number)).any():
            raise Refused(
                f"{data.sources[number].path}: all that would be trained on stands in data.validation_sets, too, and "
                "is left out for that; name other text there"
            )
        if not len(ids):
            raise Refused(
                f"{data.sources[number].path}: all its documents fall into the held-out sets; add text, lower "
                "data.validation_share and data.development_share, or set document_separator"
            )
        ordered = ids[np.argsort(documents["rank"][ids], kind="stable")]
        limit = data.document_tokens or 0
        repeat = data.sources[number].repeat
        selections.append(Selection("train", number, ordered, budget, document_limit=limit, repeat=repeat))
    return selections


def _held_out(data: DataConfig, documents: Documents, name: str, before: Mask, after: Mask, budget: int) -> Selection:
    ids = np.flatnonzero(after)
    if not len(ids):
        raise Refused(_empty_set(name, before))
    ordered = ids[np.argsort(documents["place"][ids], kind="stable")]
    return Selection(name, None, ordered, budget, document_limit=data.held_out_document_tokens or 0)


def _empty_set(name: str, before: Mask) -> str:
    if before.any():
        count = int(before.sum())
        return (
            f"{name}: all its {count} documents are listed in data.exclude_seen; give text the reference has not seen"
        )
    key = "development" if name == "development" else "validation"
    return (
        f"{name}: the {key} set is empty, for no document of so few falls into it; raise data.{key}_share, "
        "add text, or (plain text) set document_separator so that a file is many documents"
    )
