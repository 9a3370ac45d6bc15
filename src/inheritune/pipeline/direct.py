"""Single commands without a recipe: `prepare`, `inherit`, and what a cut would cost (`inherit --scan`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from inheritune import corpus, layerwise, reference as references, surgery
from inheritune.arms import WHOLE_INITS, canonical_init, init_parts
from inheritune.config import DataConfig
from inheritune.console import Console
from inheritune.distributed import single
from inheritune.errors import Failed, Refused
from inheritune.pipeline import layer_choice
from inheritune.pipeline.checks import (
    check_can_be_made,
    check_cut,
    check_tokenizer,
    no_empty_parents,
    resolved_data,
)
from inheritune.reference import Reference
from inheritune.report import scan_svg, scan_table
from inheritune.run_directory import write_atomic, write_json
from inheritune.tokens import Prepared, open_prepared

Record = dict[str, Any]

_SEQUENCE_LENGTH = 1024
_BATCH_SEQUENCES = 8
_NO_PROBE = "layers: {0} trains several choices of layers; put it into a recipe, as inherit.layers, and run that"
SCAN_POSITIONS = 16_384
"""Positions that a scan scores where nothing else is said. Losses of single tokens spread by about 3 nats, so this many
say a loss to some 0.02 nats, apart from what documents differ by."""


def prepare(data: DataConfig, tokenizer: str, out: Path, console: Console | None = None) -> Record:
    """Text to token shards with a reference's tokenizer (see `corpus.prepare`)."""
    single()
    console = console or Console()
    if not data.sources:
        raise Refused("prepare: no SOURCE; name files, globs, directories, hub:ORG/NAME or python-source")
    ours = tokenizer.startswith("packaged:") or Path(tokenizer).expanduser().is_file()  # a GGUF file
    found = references.find(tokenizer) if ours else None
    data = resolved_data(data, found)
    corpus.check_sources(data)
    manifest = corpus.prepare(data, tokenizer if found is None else found.path, out, report=console.line)
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
    positions: int | None = SCAN_POSITIONS,
    revision: str | None = None,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """Make a small model of a reference's layers, prove it, save it as a Hugging Face directory.

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`.
        layers: which layers to keep, such as 13, "half", "first:12+last:1", "0-11,25", "influence:13" or "angular:13".
        out: the directory that is written; absent or empty.
        init: `inherit`; for controls `random`, `stack`, or parts such as `attention+block_norms`.
        seed: of what is drawn at random.
        data: a directory that `prepare` wrote. `influence:N` and `angular:N` are measured on its training set, the scan
            on its first validation set: layers are not chosen by the text that they are judged by.
        scan: whether every prefix is measured, too (see `scan`); its record is written beside the model.
        sequence_length: tokens of a sequence of the scan (see `scan`).
        positions: how many positions the scan scores (see `scan`).
        revision: of a hub id.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is dequantised to, "float32" (None) or "bfloat16".
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
    _check_positions(positions)
    found = references.find(reference, revision, trust_remote_code, reference_file, reference_dtype)
    indices = surgery.parse_layers(layers, found.layers)
    if surgery.is_probe(layers):
        raise Refused(_NO_PROBE.format(layers))
    if data is None and (scan or indices is None):
        what = "the scan" if scan else f"layers: {layers}"
        raise Refused(f"{what} is measured on tokens; give --data, a directory that `inheritune prepare` wrote")
    prepared = prepared_shards(data, found) if data is not None else None
    length = _scan_length(found, prepared, sequence_length) if scan and prepared is not None else 0
    if indices is not None:
        check_cut(found, indices, [word])
    console.line(f"{reference}: {found.layers} layers, {found.parameters:,} parameters, {found.precision}")
    if found.tokenizer is None:
        console.line("it has no tokenizer: the target will have none either, and the proof runs on random token ids")
    extra: Record = {"layers_word": str(layers)}
    if indices is None:
        assert prepared is not None
        indices, extra["layer_choice"] = _measured_choice(layers, found, prepared, console)
        check_cut(found, indices, [word])
    console.line(f"layers to keep: {surgery.spelled(indices)} of 0 to {found.layers - 1}; init: {word}")
    scanned = None
    if prepared is not None and scan:
        told = "layer_choice" in extra  # which layers are meant was measured on other text
        scanned = _scan(found, prepared, None if told else layers, console, length=length, positions=positions)
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
    positions: int | None = SCAN_POSITIONS,
    batch_sequences: int = _BATCH_SEQUENCES,
    revision: str | None = None,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Record:
    """What every prefix of a reference scores before any training, in one pass over a validation set.

    The pass also gives how far the blocks turn the hidden state, by both measures that layers can be chosen by.

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`.
        data: a directory that `prepare` wrote; its first validation set is used.
        layers: a prefix to say more about, or `influence:N` or `angular:N`, to be told which layers it means on this
            text (to inherit them, choose them on other text than they are judged by: see `inherit`).
        out: a directory that gets `scan.json` and `scan.svg`.
        sequence_length: tokens of a sequence; by default 1,024, or the reference's positions where they are fewer.
        positions: how many of the set's tokens the head is applied to, a sample; None for all. The blocks see all of
            them. With a large vocabulary the heads of all prefixes outweigh everything else.
        batch_sequences: sequences a forward pass.
        revision: of a hub id.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is dequantised to, "float32" (None) or "bfloat16".
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
    _check_positions(positions)
    found = references.find(reference, revision, trust_remote_code, reference_file, reference_dtype)
    if layers is not None:
        surgery.parse_layers(layers, found.layers)
        if surgery.is_probe(layers):
            raise Refused(_NO_PROBE.format(layers))
    prepared = prepared_shards(data, found)
    length = _scan_length(found, prepared, sequence_length)
    record = _scan(
        found, prepared, layers, console, length=length, positions=positions, batch_sequences=batch_sequences
    )
    if out is not None:
        _write_scan(record, out, console)
    return record


def _scan(
    found: Reference,
    prepared: Prepared,
    layers: int | str | None,
    console: Console,
    *,
    length: int,
    positions: int | None,
    batch_sequences: int = _BATCH_SEQUENCES,
) -> Record:
    """Measure every prefix and show the table, with a line on the layers asked for."""
    model, dtype = layer_choice.loaded(found, "auto", single().device)
    tokens = prepared.set(prepared.main_set)
    name, count = prepared.main_set, tokens.tokens
    console.line(f"{found.source}: every prefix of {found.layers} layers on {name}, {count:,} tokens")
    scan = layerwise.scan_prefixes(
        model,
        tokens,
        sequence_length=length,
        context_token=prepared.context_token,
        batch_sequences=batch_sequences,
        dtype=dtype,
        positions=positions,
        progress=console.work("scanning", "sequences"),
    )
    record = layerwise.scan_record(
        scan, set_name=name, parameters=references.prefix_parameters(model), vocabulary=found.embedding_rows
    )
    record = {"reference": found.source, "fingerprint": found.fingerprint, "sequence_length": length, **record}
    console.table(scan_table(record))
    indices = surgery.parse_layers(layers, found.layers) if layers is not None else ()
    if indices is None and scan.turning is not None:
        choice = layer_choice.record_of(scan.turning, surgery.measured(str(layers), found.layers), name)
        console.line(layer_choice.in_words(choice))
    elif indices and indices == tuple(range(len(indices))):
        loss = record["prefixes"][len(indices) - 1]["loss"]
        said = "not finite" if loss is None else f"{loss:.3f} nats a token"
        console.line(f"the first {len(indices)} layers, untrained: {said}")
    return record


def _write_scan(record: Record, out: Path, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scan.json", record)
    write_atomic(out / "scan.svg", scan_svg(record))
    console.line(f"{out}: scan.json, scan.svg")


def _check_positions(positions: int | None) -> None:
    if positions is not None and positions < 1:
        raise Refused(f"scan: {positions} positions cannot be scored; ask for 1 or more, or for all")


def _scan_length(found: Reference, prepared: Prepared, sequence_length: int | None) -> int:
    """Tokens of a sequence of a scan that is possible."""
    if len(prepared.measured_names) <= prepared.developed:
        where = prepared.directory
        raise Refused(f"{where}: holds no validation set; prepare it again with --validation_share above 0")
    length = sequence_length or min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH)
    references.check_sequence_length(found, length)
    return length


def _measured_choice(
    layers: int | str, found: Reference, prepared: Prepared, console: Console
) -> tuple[tuple[int, ...], Record]:
    """The layers that `influence:N` or `angular:N` means, and how they were found."""
    record = layer_choice.choice_record(
        found,
        prepared.set("train"),
        layers,
        sequence_length=min(_SEQUENCE_LENGTH, found.max_positions or _SEQUENCE_LENGTH),
        batch_sequences=_BATCH_SEQUENCES,
        compute="auto",
        device=single().device,
    )
    console.line(layer_choice.in_words(record))
    return tuple(record["layers"]), record


def prepared_shards(data: Path, reference: Reference) -> Prepared:
    """Prepared shards that are of the reference's tokenizer, or at least within its vocabulary."""
    try:
        prepared = open_prepared(data)
        prepared.verify()
    except (Failed, OSError) as error:
        raise Refused(f"--data: {error}") from None
    check_tokenizer(prepared, reference)
    references.check_vocabulary(reference, prepared.manifest["tokenizer"]["vocabulary"])
    return prepared
