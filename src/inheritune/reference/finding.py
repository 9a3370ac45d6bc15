"""Finding: from a user's word to a reference whose files can be trusted; and loading it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from inheritune.errors import Failed, Refused, is_text
from inheritune.reference.dequantising import Dequantised, dequantised
from inheritune.reference.fitting import check_fit
from inheritune.reference.gguf_header import is_gguf
from inheritune.reference.internals import quiet, weightless
from inheritune.reference.structure import block_list, dimensions
from inheritune.reference.weights import (
    StoredTensor,
    fingerprint,
    one_line,
    stored_dtype,
    stored_tensors,
    weight_files,
)
from inheritune.run_directory import read_json

_LOG = logging.getLogger(__name__)

PACKAGED = "packaged:"
LINEAGE_KEY = "inheritune"
"""Where a target's config holds its lineage; transformers keeps keys that it does not know."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises for a config, tokenizer or model that it cannot make sense of."""


@dataclass(frozen=True)
class Reference:
    """A model that layers can be inherited from, found and checked, not yet loaded."""

    source: str
    """As the user gave it: a directory, a GGUF file, a hub id, or `packaged:NAME`."""
    path: Path
    """The directory that holds its files (of a hub id: the snapshot in the hub's cache; of a GGUF file: what it was
    dequantised into)."""
    revision: str | None
    """The hub's commit; None for a directory."""
    trust_remote_code: bool
    """Whether code that comes with it may be run."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    skeleton: PreTrainedModel = field(repr=False, compare=False)
    """The model without values, on the meta device: what it is made of, at no cost."""
    layers: int
    parameters: int
    """All of them, a tied one once."""
    parameters_without_embeddings: int
    """Without embeddings (token, position) and head."""
    embedding_rows: int
    """Rows of the token embedding: token ids must be smaller."""
    tied: bool
    """Whether the head is the token embedding."""
    dtype: str
    """What the weights are loaded in, such as bfloat16: the config's word, else the files'."""
    max_positions: int | None
    """The longest sequence in tokens that it was made for; None where the config states none."""
    weight_files: tuple[Path, ...]
    tokens_trained: int | None
    """How many tokens it was trained on: `tokens_trained` of `inheritune.json` beside the weights, else of the config's
    `inheritune`, else None."""
    seen_hashes: Path | None
    """`seen.txt` beside the weights: content hashes of the documents that it was trained on."""
    license: str | None
    """The licence that its model card names."""
    file: str | None = None
    """Of a hub id: the GGUF file that it is."""
    gguf: Dequantised | None = None
    """Where it is a GGUF file: what of it became `path`."""

    @property
    def dequantised_from(self) -> str | None:
        """The type that its weights were quantised in, such as Q4_1; None where they never were."""
        return self.gguf.dequantised_from if self.gguf is not None else None

    @property
    def precision(self) -> str:
        """Its dtype and where that comes from, in words: bfloat16, or float32, dequantised from Q4_1."""
        return f"{self.dtype}, dequantised from {self.dequantised_from}" if self.dequantised_from else self.dtype

    @property
    def hub_id(self) -> str | None:
        """Its name on the hub, if it came from there."""
        return self.source if self.revision is not None else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files' names, sizes and sampled content (see `weights.fingerprint`)."""
        return fingerprint(self.weight_files)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """The tensors of its weight files, by name; not read yet."""
        return stored_tensors(self.weight_files)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def find(
    reference: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    reference_file: str | None = None,
    reference_dtype: str | None = None,
) -> Reference:
    """Find a reference and check it, without loading its weights.

    A hub id's files are downloaded; a GGUF file is dequantised, once, into a cache (see `dequantising`).

    Args:
        reference: a directory, a GGUF file, a hub id, or `packaged:NAME`.
        revision: of a hub id: branch, tag or commit.
        trust_remote_code: whether code that comes with it may be run.
        reference_file: of a hub id or a directory: the GGUF file in it that is the reference.
        reference_dtype: of a GGUF file: what it is dequantised to, `float32` (None) or `bfloat16`.

    Raises:
        Refused: there is no such model; it has no weights, truncated, incomplete or quantised ones (but for GGUF), or
            pickles that ask for code; it is no decoder-only language model that transformers knows; its tokenizer does
            not fit it.
    """
    found = _locate(reference, revision, trust_remote_code, reference_file)
    reference, path, commit = found.source, found.path, found.commit
    check_dtype(reference, path, reference_dtype)
    gguf = dequantised(reference, path, getattr(torch, reference_dtype or "float32")) if path.is_file() else None
    if gguf is not None:
        path = gguf.path
        for line in gguf.lost:
            _LOG.warning("%s: %s", reference, line)
    config = checked_config(reference, path, trust_remote_code)
    files = weight_files(reference, path)
    skeleton = skeleton_of(reference, config, trust_remote_code)
    tokenizer = _tokenizer(reference, path, trust_remote_code)
    licence = _licence(reference, path)
    if licence is None and found.file is not None:  # the repository's, which names the file by a path
        licence = _licence(reference, found.path.parents[found.file.count("/")])
    seen = path / "seen.txt"
    described = Reference(
        source=reference,
        path=path,
        revision=commit,
        trust_remote_code=trust_remote_code,
        config=config,
        tokenizer=tokenizer,
        skeleton=skeleton,
        dtype=str(config.dtype or stored_dtype(stored_tensors(files[:1]).values())).removeprefix("torch."),
        **dimensions(skeleton),
        weight_files=files,
        tokens_trained=_tokens_trained(path, config),
        seen_hashes=seen if seen.exists() else None,
        license=licence,
        file=found.file,
        gguf=gguf,
    )
    check_fit(reference, skeleton, described.stored)
    if tokenizer is not None:
        check_vocabulary(described, max(tokenizer.get_vocab().values(), default=-1) + 1)
    return described


def check_dtype(reference: str, path: Path | None, reference_dtype: str | None) -> None:
    """Refuse a dtype to dequantise to, where there is nothing quantised.

    Args:
        reference: what errors call it.
        path: where it is; None for a hub id that names no file.
        reference_dtype: the recipe's.
    """
    if reference_dtype is not None and not (path is not None and path.is_file()):
        raise Refused(f"{reference}: reference_dtype: no GGUF file; its weights stay as they are, so leave this out")


def load(reference: Reference, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a reference in eval mode, on the CPU.

    Args:
        reference: what `find` found.
        dtype: of the weights; None: `reference.dtype`.

    Raises:
        Failed: the files lack a tensor that the model has, or hold one of another shape, so that transformers would put
            random values in its place.
    """
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                reference.path,
                dtype=dtype if dtype is not None else reference.torch_dtype,
                trust_remote_code=reference.trust_remote_code,
                output_loading_info=True,
                # Otherwise transformers 5.24 raises for a wrong shape without saying which tensor has it.
                ignore_mismatched_sizes=True,
            )
        model, info = loaded
    except LOADING_ERRORS as error:
        raise Failed(f"{reference.source}: transformers cannot load it: {one_line(error)}") from error
    # transformers 5.24 only logs these, and puts random values in their place; a mismatched one comes with its shapes.
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    wrong = [*sorted(info["missing_keys"]), *sorted(mismatched)]
    if wrong:
        what = f"{wrong[0]} is missing or of another shape ({len(wrong)} such tensors)"
        raise Failed(f"{reference.source}: its weights do not fit its config: {what}; give a complete model")
    if info["unexpected_keys"]:
        first, count = min(info["unexpected_keys"]), len(info["unexpected_keys"])
        _LOG.warning("%s: the model has no place for %s (%d such tensors of its files)", reference.source, first, count)
    assert isinstance(model, PreTrainedModel)
    model.eval()
    return model


def check_sequence_length(reference: Reference, tokens: int) -> None:
    """Refuse sequences longer than the reference's positions."""
    if reference.max_positions is not None and tokens > reference.max_positions:
        raise Refused(
            f"data.sequence_length: {tokens} is too long: {reference.source} has {reference.max_positions} positions"
        )


def check_vocabulary(reference: Reference, vocabulary: int) -> None:
    """Refuse token ids that the reference has no embedding for; `vocabulary` is the largest id plus one."""
    if vocabulary > reference.embedding_rows:
        raise Refused(
            f"{reference.source}: its tokenizer does not fit: largest token id {vocabulary - 1}, but the embedding has "
            f"{reference.embedding_rows} rows; give the tokenizer that the model was trained with"
        )


def describe(reference: Reference) -> dict[str, Any]:
    """A reference as `reference.json` records it."""
    config = json.loads(reference.config.to_json_string(use_diff=False))
    gguf = reference.gguf
    origin = (
        {
            "gguf": {
                "file": reference.file or Path(reference.source).name,
                "sha256": gguf.sha256,
                "read_by": gguf.read_by,
                "dtype": reference.dtype,
                "tensors": gguf.tensors,
                "lost": list(gguf.lost),
            },
            "dequantised_from": gguf.dequantised_from,
        }
        if gguf is not None
        else {}
    )
    return {
        "source": reference.source,
        "revision": reference.revision,
        **({"reference_file": reference.file} if reference.file is not None else {}),
        **origin,
        "fingerprint": reference.fingerprint,
        "model_type": reference.config.model_type,
        "layers": reference.layers,
        "parameters": reference.parameters,
        "parameters_without_embeddings": reference.parameters_without_embeddings,
        "embedding_rows": reference.embedding_rows,
        "tied": reference.tied,
        "dtype": reference.dtype,
        "max_positions": reference.max_positions,
        "tokenizer": type(reference.tokenizer).__name__ if reference.tokenizer is not None else None,
        "weight_files": {file.name: file.stat().st_size for file in reference.weight_files},
        "tokens_trained": reference.tokens_trained,
        "license": reference.license,
        "config": {key: value for key, value in config.items() if key != "_name_or_path"},
    }


@dataclass(frozen=True)
class Place:
    """Where a reference lies."""

    source: str
    """What it is called from here on: as the user gave it; of a directory's GGUF file the file's own path."""
    path: Path
    """A directory, or a GGUF file."""
    commit: str | None = None
    """Of the hub."""
    file: str | None = None
    """Of a hub id: the GGUF file in it."""


def _locate(reference: str, revision: str | None, trust_remote_code: bool, file: str | None) -> Place:
    """The directory or GGUF file of a reference, and its commit if it is from the hub."""
    place = local_place(reference, revision, file)
    if place is not None:
        return place
    if file is None:
        path, commit = _download(reference, revision, trust_remote_code)
        return Place(reference, path, commit)
    path, commit = _download_file(reference, revision, file)
    return Place(reference, path, commit, file)


def local_place(reference: str, revision: str | None, file: str | None) -> Place | None:
    """The directory or GGUF file of a reference that is on this machine; None for one of the hub.

    Raises:
        Refused: it is neither, or not what its name says.
    """
    if not is_text(reference):
        raise Refused(f"reference {reference!r}: its name is not UTF-8, which the records are; rename it")
    packaged = reference.startswith(PACKAGED)
    directory = Path(reference).expanduser()
    if packaged:
        name = reference.removeprefix(PACKAGED)
        directory = Path(str(resources.files("inheritune"))) / "packaged" / name
        if not name or "/" in name or not directory.is_dir():
            raise Refused(f"{reference}: this installation of inheritune brings no such reference")
    if file is not None and not _is_plain_file_name(file):
        raise Refused(f"{reference}: reference_file {file!r} names no file in it; give a name such as model.Q4_1.gguf")
    if reference and os.path.isdir(directory):  # pathlib's raises for a name that is too long
        if revision is not None:
            raise Refused(f"{reference}: a directory has no revision; leave revision out, or give a hub id")
        if file is None:
            return Place(reference, directory)
        return Place(str(Path(reference) / file), checked_file(reference, directory, file))
    if reference and os.path.exists(directory):
        return Place(reference, _lone_file(reference, directory, revision, file))
    if reference.lower().endswith(".gguf"):
        raise Refused(f"{reference}: no such file; of a hub's file the model is named, and reference_file says which")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", reference, re.ASCII):
        raise Refused(f"{reference}: no such directory, and no hub id (ORG/NAME)")
    return None


def _lone_file(reference: str, path: Path, revision: str | None, file: str | None) -> Path:
    """A file that is a reference by itself."""
    if not path.is_file() or not is_gguf(path):
        raise Refused(f"{reference}: a file, not a model directory; give the directory that holds config.json")
    if revision is not None or file is not None:
        what = "revision" if revision is not None else "reference_file"
        raise Refused(f"{reference}: a file has no {what}; leave {what} out, or give a hub id")
    return path


def _is_plain_file_name(file: str) -> bool:
    """Whether a word names a file inside of a repository, by itself and not by a pattern."""
    return re.fullmatch(r"[^*?\[\]\\/\0]+(/[^*?\[\]\\/\0]+)*", file) is not None and ".." not in file.split("/")


def checked_file(reference: str, directory: Path, file: str) -> Path:
    """A GGUF file of a directory.

    Raises:
        Refused: it holds no such file.
    """
    path = directory / file
    if not os.path.isfile(path):
        held = sorted(one.name for one in directory.glob("*.gguf"))
        has = f"; there are {', '.join(held)}" if held else ""  # of a hub id only what was downloaded before
        raise Refused(f"{reference}: reference_file: holds no {file}{has}; name one that it holds")
    if not is_gguf(path):
        raise Refused(f"{reference}: {file} is no GGUF file; leave reference_file out for other formats")
    return path


def _download(name: str, revision: str | None, trust_remote_code: bool) -> tuple[Path, str]:
    """A hub model's snapshot in the cache; small files first: what is no model is refused before gigabytes come."""

    def fetch(*patterns: str) -> Path:
        # folders inside a repository hold copies in other formats
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    with _from_hub(name):
        path = fetch("*.json", "*.txt", "*.model", "*.jinja", "README.md", *(["*.py"] if trust_remote_code else []))
        checked_config(name, path, trust_remote_code)
        fetch("model*.safetensors")
        if not any(path.glob("*.safetensors")):
            fetch("pytorch_model*.bin")
    return path, path.name


def _download_file(name: str, revision: str | None, file: str) -> tuple[Path, str]:
    """A GGUF file of a hub repository, in the cache, and the commit."""
    with _from_hub(name):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[file, "README.md"]))
    return checked_file(name, folder, file), folder.name


@contextlib.contextmanager
def _from_hub(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # the hub's errors (no such model, offline, no network) are kinds of both
        why = "misspelled, private, or no network"
        raise Refused(
            f"{name}: no such directory, and not to be had from the hub ({why}): {one_line(error)}"
        ) from error


def checked_config(source: str, path: Path, trust_remote_code: bool) -> PretrainedConfig:
    """The config, of a model that transformers can generate text with and whose weights are not quantised.

    Raises:
        Refused: there is none, or it is of another kind.
    """
    if not (path / "config.json").exists():
        held = sorted(one.name for one in path.glob("*.gguf"))
        hint = f"; it holds GGUF files: give reference_file, such as {held[0]}" if held else ""
        raise Refused(f"{source}: no model: {path} holds no config.json{hint}")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            what = "brings code of its own, which runs only on your word"
            raise Refused(f"{source}: {what}; read it, then set trust_remote_code") from error
        raise Refused(f"{source}: transformers cannot read its config.json: {one_line(error)}") from error
    if getattr(config, "quantization_config", None):
        mend = "give the model in bfloat16, float16 or float32, or a GGUF file"
        raise Refused(f"{source}: its weights are quantised; {mend}")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        raise Refused(f"{source}: reads in both directions ({config.model_type}); give a decoder-only language model")
    if config.is_encoder_decoder:
        raise Refused(f"{source}: an encoder-decoder ({config.model_type}); give a decoder-only language model")
    assert isinstance(config, PretrainedConfig)
    return config


_MOST_LAYERS = 10_000
"""More, and building a model without values takes minutes; the deepest there are have some hundred."""


def skeleton_of(source: str, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without values, on the meta device: what it is made of can be counted at no cost.

    Raises:
        Refused: transformers cannot build it, or which list holds its blocks cannot be told.
    """
    text = config.get_text_config()
    for name, most in (("num_hidden_layers", _MOST_LAYERS), ("vocab_size", None)):
        value = getattr(text, name, 1)
        if type(value) is int and (value < 1 or (most is not None and value > most)):
            raise Refused(f"{source}: its config.json has {name} {value}, which no model has; mend it")
    try:
        model = weightless(config, trust_remote_code=trust_remote_code)
        block_list(model)
    except (AssertionError, *LOADING_ERRORS) as error:
        raise Refused(f"{source}: no decoder-only language model that transformers knows: {one_line(error)}") from error
    return model


def _tokenizer(source: str, path: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights; None where there is none."""
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises Exception itself for a malformed tokenizer.json
        raise Refused(f"{source}: transformers cannot read its tokenizer: {one_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _licence(source: str, path: Path) -> str | None:
    """The licence that the model card names; of a card that cannot be read, a warning and none."""
    try:
        card = metadata_load(path / "README.md") if (path / "README.md").is_file() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        _LOG.warning("%s: its model card cannot be read, so no licence is recorded: %s", source, one_line(error))
        return None
    licence = card.get("license") if isinstance(card, dict) else None
    return licence if isinstance(licence, str) else None


def _tokens_trained(path: Path, config: PretrainedConfig) -> int | None:
    try:
        own = read_json(path / "inheritune.json")
    except Failed as error:
        raise Refused(f"{path / 'inheritune.json'}: not JSON; mend it, or take it away") from error
    for record in (own, getattr(config, LINEAGE_KEY, None)):
        tokens = record.get("tokens_trained") if isinstance(record, dict) else None
        if isinstance(tokens, int):
            return tokens
    return None
