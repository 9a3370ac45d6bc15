"""Saving: a model becomes a standard Hugging Face directory, and is read back before the directory gets its name."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from inheritune.errors import Failed
from inheritune.reference import LINEAGE_KEY, one_line
from inheritune.run_directory import write_json
from inheritune.surgery.bits import same_bits, sha256_of_all, ties
from inheritune.surgery.card import model_card
from inheritune.surgery.cut import lineage_for_config
from inheritune.surgery.proof import difference, eval_mode

Record = dict[str, Any]


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    out: Path,
    lineage: Record,
    *,
    inheritance: Record | None = None,
) -> Record:
    """Write a model as a Hugging Face directory that is whole and proven by reloading, or absent.

    Args:
        model: what is saved.
        tokenizer: saved with it, if any.
        out: the directory; it must be absent or empty.
        lineage: where the model comes from (see `lineage`); without `recipe` and `license` it goes into the config, and
            all of it into the model card.
        inheritance: if given, written to `inheritance.json` in the directory, with what `verify_saved` returned.

    Returns:
        What `verify_saved` returned.

    Raises:
        Failed: the file system refused, or the directory does not load as the same model; `out` is then not written.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    setattr(model.config, LINEAGE_KEY, lineage_for_config(lineage))
    try:
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card(model, out.name, lineage), encoding="utf-8")
        saved = verify_saved(temporary, model)
        if inheritance is not None:
            write_json(temporary / "inheritance.json", {**inheritance, "saved": saved})
        _settle(temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise Failed(
            f"{out}: cannot be written: {one_line(error)}; mend that and give the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return saved


def verify_saved(out: Path, model: PreTrainedModel) -> Record:
    """Reload a saved directory by transformers alone and compare it with the model: tensors, ties, logits.

    Returns:
        How many tensors, and the SHA-256 over all of them as they were reloaded.

    Raises:
        Failed: it does not load, lacks a tensor, or anything differs by a bit.
    """
    attention = model.config._attn_implementation
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, attn_implementation=attention, output_loading_info=True)
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
