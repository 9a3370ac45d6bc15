"""Single commands without a recipe: `prepare`, `inherit`, and what a cut would cost (`inherit --scan`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune import corpus, layerwise, reference as references, surgery
from inheritune.arms import WHOLE_INITS, canonical_init, init_parts
from inheritune.config import DataConfig
from inheritune.console import Console
from inheritune.distributed import single
from inheritune.errors import Failed, Refused
from inheritune.parallel import compute_dtype, place
from inheritune.pipeline.checks import check_can_be_made, check_cut, check_tokenizer, no_empty_parents
from inheritune.reference import Reference, parameters
from inheritune.report import scan_svg, scan_table
from inheritune.run_directory import write_atomic, write_json
from inheritune.tokens import Prepared, TokenSet, open_prepared

Record = dict[str, Any]

_INFLUENCE_TOKENS = 65_536
_SEQUENCE_LENGTH = 1024
_BATCH_SEQUENCES = 8


def prepare(data: DataConfig, tokenizer: str, out: Path, console: Console | None = None) -> Record:
    """Text to token shards with a reference's tokenizer (see `corpus.prepare`)."""
    single()
    console = console or Console()
    if not data.sources:
        raise Refused("prepare: no SOURCE; name files, globs, directories, hub:ORG/NAME or python-source")
    corpus.check_sources(data)
    folder = references.find(tokenizer).path if tokenizer.startswith("packaged:") else tokenizer
    manifest = corpus.prepare(data, folder, out, report=console.line)
    for name, entry in manifest["sets"].items():
        console.line(f"{name}: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
    console.line(f"{out}: fingerprint {manifest['fingerprint']}")
    return manifest


def inherit(
    reference: str,
    layers: int | str,
    out: Path,
    *,
    init: str = "inherit",
    seed: int = 0,
    data: Path | None = None,
    scan: bool = False,
    sequence_length: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """Make a small model of a reference's layers, prove it, save it as a Hugging Face directory.

    Args:
        reference: a directory, a hub id, or `packaged:NAME`.
        layers: which layers to keep, such as 13, "half", "first:12+last:1", "0-11,25" or "influence:13".
        out: the directory that is written; absent or empty.
        init: `inherit`; for controls `random`, `stack`, or parts such as `attention+block_norms`.
        seed: of what is drawn at random.
        data: a directory that `prepare` wrote; `influence:N` and the scan are measured on it.
        scan: whether every prefix is measured, too (see `scan`); its record is written beside the model.
        sequence_length: tokens of a sequence of the scan (see `scan`).
        revision: of a hub id.
        trust_remote_code: whether code of the reference may be run.
        console: where progress is shown.

    Returns:
        What `inheritance.json` in `out` holds: the lineage, the account of every tensor, the proof.

    Raises:
        Refused: bad input; nothing was written.
        Failed: the target could not be proven, or not be written.
    """
    single()
    console = console or Console()
    try:
        word = canonical_init(init)
    except ValueError as error:
        raise Refused(f"init: {init!r} is not possible; it must be {error}") from None
    out = Path(os.path.realpath(out))  # a directory cannot get the name of a link
    surgery.check_free(out)
    check_can_be_made(out)
    found = references.find(reference, revision, trust_remote_code)
    indices = surgery.parse_layers(layers, found.layers)
    if data is None and (scan or indices is None):
        what = "the scan" if scan else f"layers: {layers}"
        raise Refused(f"{what} is measured on tokens; give --data, a directory that `inheritune prepare` wrote")
    prepared = _prepared(data, found) if data is not None else None
    length = _scan_length(found, prepared, sequence_length) if scan and prepared is not None else 0
    if indices is not None:
        check_cut(found, indices, [word])
    console.line(f"{reference}: {found.layers} layers, {found.parameters:,} parameters, {found.dtype}")
    if found.tokenizer is None:
        console.line("it has no tokenizer: the target will have none either, and the proof runs on random token ids")
    extra: Record = {"layers_word": str(layers)}
    if indices is None:
        assert prepared is not None
        indices, extra["influence"] = _by_influence(layers, found, prepared, console)
        check_cut(found, indices, [word])
    console.line(f"layers to keep: {surgery.spelled(indices)} of 0 to {found.layers - 1}; init: {word}")
    scanned = _scan(found, prepared, indices, length, _BATCH_SEQUENCES, console) if prepared and scan else None
    with no_empty_parents(out):
        record = surgery.inherit(
            found,
            indices,
            out,
            init=word,
            parts=frozenset() if word in WHOLE_INITS else init_parts(word),
            seed=seed,
            extra=extra,
            report=console.line,
            progress=console.work("cutting and proving"),
        )
    if scanned is not None:
        _write_scan(scanned, out, console)
    return record


def scan(
    reference: str,
    data: Path,
    *,
    layers: int | str | None = None,
    out: Path | None = None,
    sequence_length: int | None = None,
    batch_sequences: int = _BATCH_SEQUENCES,
    revision: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """What every prefix of a reference scores before any training, in one pass over a validation set.

    Args:
        reference: a directory, a hub id, or `packaged:NAME`.
        data: a directory that `prepare` wrote; its first validation set is used.
        layers: a prefix to say more about.
        out: a directory that gets `scan.json` and `scan.svg`.
        sequence_length: tokens of a sequence; by default 1,024, or the reference's positions where they are fewer.
        batch_sequences: sequences a forward pass.
        revision: of a hub id.
        trust_remote_code: whether code of the reference may be run.
        console: where progress is shown.

    Returns:
        The scan (see `layerwise.scan_record`).

    Raises:
        Refused: bad input; nothing was written.
    """
    single()
    console = console or Console()
    if out is not None:
        if out.exists() and not out.is_dir():
            raise Refused(f"{out}: a file, not a directory; choose another --out")
        check_can_be_made(out)
    found = references.find(reference, revision, trust_remote_code)
    indices = surgery.parse_layers(layers, found.layers) if layers is not None else None
    prepared = _prepared(data, found)
    length = _scan_length(found, prepared, sequence_length)
    record = _scan(found, prepared, indices, length, batch_sequences, console)
    if out is not None:
        _write_scan(record, out, console)
    return record


def _scan(
    found: Reference,
    prepared: Prepared,
    indices: tuple[int, ...] | None,
    length: int,
    batch_sequences: int,
    console: Console,
) -> Record:
    """Measure every prefix and show the table."""
    model, dtype = _loaded(found)
    tokens = prepared.set(prepared.main_set)
    name, count = prepared.main_set, tokens.tokens
    console.line(f"{found.source}: every prefix of {found.layers} layers on {name}, {count:,} tokens")
    losses = layerwise.prefix_losses(
        model,
        tokens,
        sequence_length=length,
        context_token=prepared.context_token,
        batch_sequences=batch_sequences,
        dtype=dtype,
        progress=console.work("scanning", "sequences"),
    )
    record = layerwise.scan_record(
        losses, set_name=name, parameters=_prefix_parameters(model), vocabulary=found.embedding_rows
    )
    record = {"reference": found.source, "fingerprint": found.fingerprint, "sequence_length": length, **record}
    console.table(scan_table(record))
    if indices is not None and indices == tuple(range(len(indices))):
        row = record["prefixes"][len(indices) - 1]
        console.line(f"the first {len(indices)} layers, untrained: {row['loss']:.3f} nats a token")
    return record


def _write_scan(record: Record, out: Path, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scan.json", record)
    write_atomic(out / "scan.svg", scan_svg(record))
    console.line(f"{out}: scan.json, scan.svg")


def _scan_length(found: Reference, prepared: Prepared, sequence_length: int | None) -> int:
    """Tokens of a sequence of a scan that is possible."""
    if len(prepared.measured_names) <= prepared.developed:
        where = prepared.directory
        raise Refused(f"{where}: holds no validation set; prepare it again with --validation_share above 0")
    length = sequence_length or min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH)
    references.check_sequence_length(found, length)
    return length


def _by_influence(
    layers: int | str, found: Reference, prepared: Prepared, console: Console
) -> tuple[tuple[int, ...], Record]:
    """The layers that `influence:N` means, and how they were found."""
    record = influence_record(
        found,
        prepared.set("train"),
        surgery.influence_count(layers, found.layers),
        sequence_length=min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH),
        batch_sequences=_BATCH_SEQUENCES,
        compute="auto",
        device=single().device,
    )
    indices = tuple(record["layers"])
    console.line(f"influence on {record['tokens']:,} tokens: layers {surgery.spelled(indices)} have the greatest")
    return indices, record


def influence_record(
    reference: Reference,
    tokens: TokenSet,
    count: int,
    *,
    sequence_length: int,
    batch_sequences: int,
    compute: str,
    device: torch.device,
) -> Record:
    """The blocks that change the hidden state most on the beginning of a set.

    Returns:
        `layers` (their indices), `influence` (of every block), `tokens`, `set`.
    """
    model, dtype = _loaded(reference, compute, device)
    batches = list(
        layerwise.influence_batches(
            tokens,
            sequence_length=sequence_length,
            batch_sequences=batch_sequences,
            most_tokens=_INFLUENCE_TOKENS,
        )
    )
    values = layerwise.block_influence(model, batches, dtype=dtype)
    return {
        "layers": list(layerwise.most_influential(values, count)),
        "influence": [round(value, 6) for value in values],
        "tokens": sum(batch.size for batch in batches),
        "set": tokens.name,
    }


def _prepared(data: Path, reference: Reference) -> Prepared:
    """Prepared shards that are of the reference's tokenizer, or at least within its vocabulary."""
    try:
        prepared = open_prepared(data)
        prepared.verify()
    except (Failed, OSError) as error:
        raise Refused(f"--data: {error}") from None
    check_tokenizer(prepared, reference)
    references.check_vocabulary(reference, prepared.manifest["tokenizer"]["vocabulary"])
    return prepared


def _loaded(
    reference: Reference, compute: str = "auto", device: torch.device | None = None
) -> tuple[PreTrainedModel, torch.dtype]:
    """The reference in float32 on the device, and the dtype of matrix products, as runs measure it."""
    device = device or single().device
    try:
        model = references.load(reference)
    except Failed as error:
        raise Refused(str(error)) from error  # nothing is written yet: the input is at fault
    return place(model.float(), device), compute_dtype(compute, device)


def _prefix_parameters(model: PreTrainedModel) -> list[int]:
    """Parameters of every prefix, with embeddings and head."""
    blocks = references.block_list(model)[1]
    inside = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    outside = parameters(model) - sum(inside)
    return [outside + sum(inside[: count + 1]) for count in range(len(inside))]
