"""`inheritune inherit`: from a reference to a saved, proven target directory, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inheritune.errors import Failed, Refused
from inheritune.reference import Reference, find, load
from inheritune.surgery.cut import inherit, lineage, parse_layers
from inheritune.surgery.proof import prove
from inheritune.surgery.saving import save

Record = dict[str, Any]

_PROOF_TOKENS = 128
_PROOF_TEXT = """\
The harbour lay quiet at that hour. Two boats had come in with the tide, and their crews were carrying baskets of
herring up the stone steps, counting aloud as they went: eleven, twelve, thirteen. A girl of about nine sat on the
wall with a notebook on her knees. She wrote down every number she heard, added them up, and shook her head. "That
makes three hundred and forty-two," she said, "and you told my father it was only three hundred." Nobody answered. The
gulls wheeled above the roofs, the church clock struck seven, and the first cart of the morning came rattling down the
hill towards the market.
"""


def inherit_directory(
    reference: str,
    layers: int | str,
    out: Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token_text: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Record:
    """Find a reference, cut it, prove the target, save it, read it back.

    Args:
        reference: a directory, a hub id, or `packaged:NAME`.
        layers: how many of the first layers to keep, or "half".
        out: the directory that is written; absent or empty.
        revision: of a hub id.
        trust_remote_code: whether code of the reference may be run.
        token_text: the text that the proof runs on; None: a paragraph of English.
        report: gets a line for each step done.

    Returns:
        What `inheritance.json` in `out` holds: the lineage, the account, the proof, and how the saved files compare.

    Raises:
        Refused: bad input; nothing was written.
        Failed: the target could not be proven, or not be written.
    """
    say = report or (lambda _line: None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out}: exists and is not an empty directory; choose another --out")
    found = find(reference, revision, trust_remote_code)
    indices = parse_layers(layers, found.layers)
    try:
        model = load(found)
    except Failed as error:
        raise Refused(str(error)) from error  # nothing is written yet: the input is at fault
    say(f"{reference}: {found.layers} layers, {found.parameters:,} parameters, {found.dtype}")
    target, account = inherit(model, indices)
    counts = ", ".join(f"{count} {status}" for status, count in account.counts.items())
    say(f"{len(indices)} layers kept: {account.parameters_after:,} parameters; tensors: {counts}")
    ids, origin = _proof_tokens(found, token_text)
    proof = {**prove(model, target, indices, ids), "tokens_from": origin}
    say(f"hidden states agree bit for bit on {ids.numel()} tokens of {origin}")
    descent = lineage(found, indices)
    record = {"lineage": descent, **account.record(), "proof": proof}
    saved = save(target, found.tokenizer, out, descent, inheritance=record)
    say(f"{out}: written, read back by transformers, equal")
    return {**record, "saved": saved}


def _proof_tokens(reference: Reference, text: str | None) -> tuple[torch.Tensor, str]:
    """Token ids (1, at most 128) for the proof, and where they come from."""
    limit = min(_PROOF_TOKENS, reference.max_positions or _PROOF_TOKENS)
    if reference.tokenizer is not None:
        ids = reference.tokenizer(text or _PROOF_TEXT, truncation=True, max_length=limit)["input_ids"]
        if ids:
            return torch.tensor([ids]), "the given text" if text else "a paragraph of English"
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(reference.embedding_rows, (1, limit), generator=generator)
    return random, "a seeded random generator (no tokenizer)"
