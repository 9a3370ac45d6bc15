"""Outlining: a reference by its config alone, so that what it costs can be told before its weights are fetched."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from inheritune.errors import Refused
from inheritune.reference.dequantising import config_in
from inheritune.reference.finding import (
    Reference,
    check_dtype,
    checked_config,
    checked_file,
    local_place,
    skeleton_of,
)
from inheritune.reference.structure import dimensions
from inheritune.reference.weights import one_line

_CONFIGS = "configs.json"
"""Configs of the packaged recipes' references, as they are on the hub, trimmed to what defines the model."""


def outline(
    reference: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
    *,
    fetch: bool = True,
) -> tuple[Reference, str]:
    """A reference without weights or tokenizer, and where its config comes from, in words.

    A hub id's config is taken from the hub's cache, else from this package, which has those of its own recipes'
    references, else, a few kilobytes, from the hub.

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`, as `find` takes it.
        revision: of a hub id: branch, tag or commit.
        trust_remote_code: whether code that comes with it may be run.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is to be dequantised to, "float32" (None) or "bfloat16".
        fetch: whether the hub may be asked.

    Raises:
        Refused: no config is to be had, or it is of no decoder-only language model.
    """
    place = local_place(reference, revision, reference_file)
    if place is not None:
        source, path, origin = place.source, place.path, str(place.path)
    elif reference_file is not None:
        source, path, origin = reference, _cached_file(reference, revision, reference_file), "the hub's cache"
    else:
        check_dtype(reference, None, reference_dtype)
        path, config, origin = _of_hub(reference, revision, trust_remote_code, fetch)
        return outlined(reference, path, config, trust_remote_code), origin
    check_dtype(source, path, reference_dtype)
    if path.is_file():
        config = config_in(source, path)
        config.dtype = getattr(torch, reference_dtype or "float32")
    else:
        config = checked_config(reference, path, trust_remote_code)
    return outlined(reference, path, config, trust_remote_code), origin


def outlined(reference: str, path: Path, config: PretrainedConfig, trust_remote_code: bool) -> Reference:
    """A reference as far as its config says what it is.

    Args:
        reference: what errors call it.
        path: where its files are, or would be.
        config: the model's.
        trust_remote_code: whether code that comes with it may be run.

    Raises:
        Refused: transformers cannot build it.
    """
    skeleton = skeleton_of(reference, config, trust_remote_code)
    return Reference(
        source=reference,
        path=path,
        revision=None,
        trust_remote_code=trust_remote_code,
        config=config,
        tokenizer=None,
        skeleton=skeleton,
        dtype=str(config.dtype or "float32").removeprefix("torch."),
        **dimensions(skeleton),
        weight_files=(),
        tokens_trained=None,
        seen_hashes=None,
        license=None,
    )


def _of_hub(
    name: str, revision: str | None, trust_remote_code: bool, fetch: bool
) -> tuple[Path, PretrainedConfig, str]:
    """A hub id's config: where its files would lie, the config, and where that comes from."""
    cached = _snapshot(name, revision, trust_remote_code, local=True)
    if cached is not None:
        return cached, checked_config(name, cached, trust_remote_code), "the hub's cache"
    packaged = _packaged(name) if revision is None else None
    if packaged is not None:
        return Path(name), packaged, "this package, as published"
    fetched = _snapshot(name, revision, trust_remote_code, local=False) if fetch else None
    if fetched is None:
        raise Refused(
            f"{name}: its config.json is not in the hub's cache; where there is a network `hf download {name} "
            "config.json` fetches it alone, or give as reference a directory that holds it"
        )
    return fetched, checked_config(name, fetched, trust_remote_code), "the hub"


def _snapshot(name: str, revision: str | None, trust_remote_code: bool, *, local: bool) -> Path | None:
    """The directory in the hub's cache that holds a config.json, and code where that may be run; None without one."""
    patterns = ["config.json", *(["*.py"] if trust_remote_code else [])]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local))
    except (OSError, ValueError) as error:  # the hub's errors are kinds of both
        if local or _is_offline(error):
            return None
        raise Refused(f"{name}: its config.json is not to be had from the hub: {one_line(error)}") from error
    return path if (path / "config.json").exists() else None


def _is_offline(error: Exception) -> bool:
    """Whether the hub was not reached, be it that none was asked for."""
    return isinstance(error, OSError) and getattr(error, "response", None) is None


def _cached_file(name: str, revision: str | None, file: str) -> Path:
    """A GGUF file that was downloaded before: its config is in it."""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[file], local_files_only=True))
    except (OSError, ValueError):
        raise Refused(
            f"{name}: {file} is not in the hub's cache, and a GGUF file's config is in the file; `hf download {name} "
            f"{file}` fetches it, or give a directory with a config.json of the same model"
        ) from None
    return checked_file(name, folder, file)


def _packaged(name: str) -> PretrainedConfig | None:
    """The config that this package has of a hub id, read as if from its file."""
    known = json.loads((resources.files("inheritune") / "packaged" / _CONFIGS).read_text(encoding="utf-8"))
    if name not in known:
        return None
    with TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(known[name]), encoding="utf-8")
        return checked_config(name, Path(directory), trust_remote_code=False)
