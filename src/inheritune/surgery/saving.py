"""Saving: a target becomes a standard Hugging Face directory, and is read back before the directory gets its name."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from inheritune.errors import Failed
from inheritune.reference import LINEAGE_KEY, Reference, eval_mode, one_line, quiet
from inheritune.run_directory import write_json
from inheritune.surgery.bits import same_bits, sha256_of_all, ties
from inheritune.surgery.card import model_card
from inheritune.surgery.cut import Cut, account, lineage_for_config
from inheritune.surgery.proof import difference
from inheritune.surgery.writing import write_weights

Record = dict[str, Any]

_TAKEN_ALONG = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""Files beside a reference's weights that belong to its target as they are."""


def save_cut(
    cut: Cut,
    reference: Reference,
    out: Path,
    lineage: Record,
    prove: Callable[[Path], Record],
    *,
    extra: Record | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Write a cut as a Hugging Face directory that is whole and proven, or absent.

    Args:
        cut: what `plan_cut` decided.
        reference: what it is cut from; tokenizer, generation settings and licence files are taken along as they are.
        out: the directory; it must be absent or empty.
        lineage: where the target comes from (see `lineage`).
        prove: is given the directory before it gets its name, and returns the proof.
        extra: further entries of `inheritance.json`.
        progress: told bytes written and bytes in all.

    Returns:
        What `inheritance.json` in `out` holds.

    Raises:
        Failed: the file system refused, or the proof failed; `out` is then not written.
    """
    with _directory(out) as temporary:
        tensors = write_weights(cut, temporary, progress)
        setattr(cut.config, LINEAGE_KEY, lineage_for_config(lineage))
        cut.config.architectures = [type(cut.model).__name__]
        cut.config.save_pretrained(temporary)
        take_along(reference, temporary)
        (temporary / "README.md").write_text(model_card(cut.model, out.name, lineage), encoding="utf-8")
        record = account(cut.indices, reference, tensors, cut.ignored, cut.parameters)
        record = {"lineage": lineage, **(extra or {}), **record, "proof": prove(temporary)}
        write_json(temporary / "inheritance.json", record)
    return record


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    out: Path,
    lineage: Record,
    *,
    reference: Reference | None = None,
    inheritance: Record | None = None,
) -> Record:
    """Write a model in memory as a Hugging Face directory that is whole and proven by reloading, or absent.

    Args:
        model: what is saved.
        tokenizer: saved with it, if any.
        out: the directory; it must be absent or empty.
        lineage: where the model comes from (see `lineage`); without `recipe` and `license` it goes into the config, and
            all of it into the model card.
        reference: if given, its tokenizer, generation settings, licence files and code are taken along as they are.
        inheritance: if given, written to `inheritance.json` in the directory, with what `verify_saved` returned.

    Returns:
        What `verify_saved` returned.

    Raises:
        Failed: the file system refused, or the directory does not load as the same model; `out` is then not written.
    """
    setattr(model.config, LINEAGE_KEY, lineage_for_config(lineage))
    with _directory(out) as temporary:
        with quiet():
            model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if reference is not None:
            take_along(reference, temporary)
        (temporary / "README.md").write_text(model_card(model, out.name, lineage), encoding="utf-8")
        trusted = reference is not None and reference.trust_remote_code
        saved = verify_saved(temporary, model, trust_remote_code=trusted)
        if inheritance is not None:
            write_json(temporary / "inheritance.json", {**inheritance, "saved": saved})
    return saved


def take_along(reference: Reference, directory: Path) -> None:
    """Copy what belongs to a reference's target as it is: tokenizer, generation settings, licence; code, if trusted."""
    patterns = (*_TAKEN_ALONG, *(["*.py"] if reference.trust_remote_code else []))
    for pattern in patterns:
        for file in reference.path.glob(pattern):
            if file.is_file() and file not in reference.weight_files:
                shutil.copyfile(file, directory / file.name)


def verify_saved(out: Path, model: PreTrainedModel, *, trust_remote_code: bool = False) -> Record:
    """Reload a saved directory by transformers alone and compare it with the model: tensors, ties, logits.

    Returns:
        How many tensors, and the SHA-256 over all of them as they were reloaded.

    Raises:
        Failed: it does not load, lacks a tensor, or anything differs by a bit.
    """
    attention = model.config._attn_implementation
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                out, attn_implementation=attention, output_loading_info=True, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Failed(f"{out}: what was saved does not load: {one_line(error)}") from error
    again, info = loaded[0].to(model.device), loaded[1]
    theirs, ours = again.state_dict(), model.state_dict()
    differing = {*info["missing_keys"], *info["unexpected_keys"], *(theirs.keys() ^ ours.keys())}
    differing |= {name for name in theirs.keys() & ours.keys() if not same_bits(theirs[name], ours[name])}
    if differing:
        raise Failed(
            f"{out}: {min(differing)} differs after saving and loading ({len(differing)} of {len(ours)} tensors do)"
        )
    if ties(again) != ties(model):
        raise Failed(f"{out}: tied after saving and loading: {ties(again) or 'none'}; before: {ties(model) or 'none'}")
    rows = next(model.get_input_embeddings().parameters()).shape[0]
    ids = torch.arange(min(16, rows), device=model.device)[None]  # (1, at most 16)
    with torch.no_grad(), eval_mode(model, again):
        after = again(input_ids=ids, use_cache=False).logits
        model(input_ids=ids, use_cache=False)  # a short sequence brings rotary frequencies that depend on length back
        with _derived_buffers_of(again, model):
            difference("what the saved model gives", model(input_ids=ids, use_cache=False).logits, after)
    return {"tensors": len(ours), "equal": True, "sha256": sha256_of_all(theirs)}


@contextlib.contextmanager
def _directory(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` if all goes well, and goes away if not."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _settle(temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise Failed(
            f"{out}: cannot be written: {one_line(error)}; mend that and give the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _derived_buffers_of(again: PreTrainedModel, model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute with the reloaded one's rotary frequencies and the like where its own are those, cast.

    `model.to(bfloat16)` casts these buffers too; they are not saved, and transformers 5.24 makes them in float32.
    """
    theirs, held = dict(again.named_buffers()), {}
    for name, buffer in model.named_buffers():
        value = theirs.get(name)
        if value is not None and value.dtype != buffer.dtype and same_bits(value.to(buffer.dtype), buffer):
            held[name] = buffer.data
            buffer.data = value.clone()
    try:
        yield
    finally:
        for name, data in held.items():
            model.get_buffer(name).data = data


def _settle(directory: Path) -> None:
    """Give every file the mode that the umask asks for, and put it on the disk before the directory gets its name.

    With transformers 5.24 the weights file has been seen readable by its owner alone (mode 600), whatever the umask.
    """
    mode = (directory / "README.md").stat().st_mode
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
