"""Settings that contradict each other, refused without looking at any file."""

from __future__ import annotations

import math
import re

from inheritune.config import DataConfig
from inheritune.errors import Refused

SETS = ("train", "development", "held-out")


def check_settings(data: DataConfig) -> None:
    """Refuse settings that contradict each other, without looking at any file.

    Raises:
        Refused: one line saying what and how to mend it.
    """
    if not data.sources:
        raise Refused(
            "data.sources: none given; name at least one file, directory, glob, hub:ORG/NAME or python-source"
        )
    if data.tokens is None and len(data.sources) > 1:
        raise Refused(
            "data.tokens: unset with several sources, but weights are shares of a budget; set it, such as 100M"
        )
    if data.tokens is not None and data.tokens < 1:
        raise Refused(f"data.tokens: {data.tokens} leaves nothing to train on; set at least 1")
    _check_held_out(data)
    for source in [*data.sources, *data.validation_sets.values()]:
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise Refused(
                f"{source.path}: weight {source.weight} is no share; give a number above 0, or leave the source out"
            )
        if source.document_separator == "":
            raise Refused(f"{source.path}: document_separator is empty; leave it unset for one document a file")


def _check_held_out(data: DataConfig) -> None:
    for key, share in (("validation_share", data.validation_share), ("development_share", data.development_share)):
        if not 0 <= share < 1:
            raise Refused(f"data.{key}: {share} is no share; give a number from 0 to below 1")
    if data.validation_share + data.development_share >= 1:
        raise Refused(
            "data.validation_share + data.development_share: 1 or more leaves no training documents; lower them"
        )
    for key, tokens in (("validation", data.validation_tokens), ("development", data.development_tokens)):
        if tokens < 1:
            raise Refused(f"data.{key}_tokens: {tokens} is no size; to have no such set, set data.{key}_share to 0")
    for key in ("document_tokens", "held_out_document_tokens"):
        limit = getattr(data, key)
        if limit is not None and limit < 1:
            raise Refused(f"data.{key}: must be at least 1; leave it unset to keep documents whole")
    for name in data.validation_sets:
        if name in SETS or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise Refused(
                f"data.validation_sets: {name!r} cannot name a set; use letters, digits, - and _, not {', '.join(SETS)}"
            )
