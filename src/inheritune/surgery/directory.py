"""From a reference to a saved, proven target directory, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from inheritune.errors import Refused
from inheritune.reference import Reference, cast_as_loaded
from inheritune.surgery.cut import account, lineage, plan_cut
from inheritune.surgery.initial import start, tensor_records
from inheritune.surgery.layers import Indices, kept, spelled
from inheritune.surgery.proof import prove
from inheritune.surgery.saving import save, save_cut

Record = dict[str, Any]
Report = Callable[[str], None]
Progress = Callable[[int, int], None]

_PROOF_TOKENS = 128
_PROOF_TEXT = """\
The harbour lay quiet at that hour. Two boats had come in with the tide, and their crews were carrying baskets of
herring up the stone steps, counting aloud as they went: eleven, twelve, thirteen. A girl of about nine sat on the
wall with a notebook on her knees. She wrote down every number she heard, added them up, and shook her head. "That
makes three hundred and forty-two," she said, "and you told my father it was only three hundred." Nobody answered. The
gulls wheeled above the roofs, the church clock struck seven, and the first cart of the morning came rattling down the
hill towards the market.
"""


def inherit(
    reference: Reference,
    indices: Indices,
    out: Path,
    *,
    init: str = "inherit",
    parts: frozenset[str] = frozenset(),
    seed: int = 0,
    extra: Record | None = None,
    token_ids: torch.Tensor | None = None,
    tokens_from: str = "the given text",
    report: Report | None = None,
    progress: Progress | None = None,
) -> Record:
    """Make a target of a reference's layers, prove it, and save it as a Hugging Face directory.

    Args:
        reference: what `find` found.
        indices: the blocks to keep, in the target's order.
        out: the directory that is written; absent or empty.
        init: `inherit`; `stack` (the first half of these layers, repeated); otherwise what the words of `parts` say.
        parts: which parts are inherited, if `init` is neither; the others are drawn at random.
        seed: of what is drawn.
        extra: further entries of `inheritance.json`.
        token_ids: (sequences, tokens), int64: what the proof runs on; None: a paragraph of English.
        tokens_from: what these tokens are, in words.
        report: gets a line for each step done.
        progress: told bytes written, then blocks proven, and how many there are in all.

    Returns:
        What `inheritance.json` in `out` holds: the lineage, the account of every tensor, and the proof.

    Raises:
        Refused: such a target cannot be made of this reference; nothing was written.
        Failed: the target could not be proven, or not be written.
    """
    say = report or (lambda _line: None)
    check_free(out)
    if init not in ("inherit", "stack"):
        descent = {**lineage(reference, indices, init), "seed": seed}
        return _inherit_parts(reference, indices, out, descent, parts, extra=extra or {}, say=say)
    kept_layers = kept(indices, init)
    started = time.monotonic()
    cut = plan_cut(reference, kept_layers)
    ids, origin = proof_tokens(reference) if token_ids is None else (token_ids, tokens_from)
    took = [started]

    def proof(directory: Path) -> Record:
        took.append(time.monotonic())
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        say(f"cut, written, checksums taken: {size / 1e9:.2f} GB in {took[1] - took[0]:.1f} s")
        return {**prove(reference, directory, kept_layers, ids, progress), "tokens_from": origin}

    descent = lineage(reference, kept_layers, init)
    record = save_cut(cut, reference, out, descent, proof, extra={"init": init, **(extra or {})}, progress=progress)
    counts = ", ".join(f"{count} {status}" for status, count in record["counts"].items() if count)
    say(f"layers kept: {spelled(kept_layers)}; {cut.parameters:,} parameters; tensors: {counts}")
    if record["proof"]["generation"] != "works":
        say(f"note: generation with a cache {record['proof']['generation']}; use_cache=False works")
    shown = f"bit for bit on {ids.numel()} tokens of {origin}"
    say(f"proven in {time.monotonic() - took[1]:.1f} s: loaded by transformers, equal to the reference {shown}")
    return record


def _inherit_parts(
    reference: Reference,
    indices: Indices,
    out: Path,
    descent: Record,
    parts: frozenset[str],
    *,
    extra: Record,
    say: Report,
) -> Record:
    """A target of which only some parts come from the reference: cut whole, then the rest drawn at random."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        whole = inherit(reference, indices, Path(scratch) / "whole")
        model, taken = start(Path(scratch) / "whole", reference, parts, descent["seed"])
    cast_as_loaded(model, reference.torch_dtype, trust_remote_code=reference.trust_remote_code)
    tensors = tensor_records(model, taken, whole)
    record = account(indices, reference, tensors, tuple(whole["ignored"]), whole["parameters_after"])
    record = {"lineage": descent, "init": descent["init"], **extra, **record, "proof": None}
    saved = save(model, None, out, descent, reference=reference, inheritance=record)
    counts = ", ".join(f"{count} {status}" for status, count in record["counts"].items() if count)
    size = record["parameters_after"]
    say(f"init {descent['init']}: {size:,} parameters; tensors: {counts}; read back by transformers, equal")
    return {**record, "saved": saved}


def check_free(out: Path) -> None:
    """Refuse a directory that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out}: exists and is not an empty directory; choose another --out")


def proof_tokens(reference: Reference, text: str | None = None) -> tuple[torch.Tensor, str]:
    """Token ids (1, at most 128) for the proof, and where they come from."""
    limit = min(_PROOF_TOKENS, reference.max_positions or _PROOF_TOKENS)
    if reference.tokenizer is not None:
        ids = reference.tokenizer(text or _PROOF_TEXT, truncation=True, max_length=limit)["input_ids"]
        if ids:
            return torch.tensor([ids]), "the given text" if text else "a paragraph of English"
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(reference.embedding_rows, (1, limit), generator=generator)
    return random, "a seeded random generator (no tokenizer)"
