"""References: where a large model comes from, whether its files can be trusted, and where its blocks are.

`find` reads config, tokenizer and the headers of the weight files, and refuses what cannot be inherited from; `load`
reads the model itself. Weights come from safetensors, or from pickles that `torch.load(weights_only=True)` accepts;
nothing else is ever unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickletools
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load, snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json

PACKAGED = "packaged:"
LINEAGE_KEY = "inheritune"
"""Where a target's config holds its lineage; transformers keeps keys that it does not know."""
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
"""What transformers raises for a config, tokenizer or model that it cannot make sense of."""


@dataclass(frozen=True)
class Reference:
    """A model that layers can be inherited from, found and checked, not yet loaded."""

    source: str
    """As the user gave it: a directory, a hub id, or `packaged:NAME`."""
    path: Path
    """The directory that holds its files (of a hub id: the snapshot in the hub's cache)."""
    revision: str | None
    """The hub's commit; None for a directory."""
    trust_remote_code: bool
    """Whether code that comes with it may be run."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
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

    @property
    def hub_id(self) -> str | None:
        """Its name on the hub, if it came from there."""
        return self.source if self.revision is not None else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files in order of name: each file's name, size in bytes, and whole content."""
        digest = hashlib.sha256()
        for file in sorted(self.weight_files, key=lambda file: file.name):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def find(reference: str, revision: str | None = None, trust_remote_code: bool = False) -> Reference:
    """Find a reference and check it, without loading its weights (a hub id's files are downloaded).

    Args:
        reference: a directory, a hub id, or `packaged:NAME`.
        revision: of a hub id: branch, tag or commit.
        trust_remote_code: whether code that comes with it may be run.

    Raises:
        Refused: there is no such model; it has no weights, truncated ones, or pickles that ask for code; it is no
            decoder-only language model that transformers knows; its tokenizer does not fit it.
    """
    path, commit = _locate(reference, revision, trust_remote_code)
    config = _config(reference, path, trust_remote_code)
    files = _weight_files(reference, path)
    skeleton = _skeleton(reference, config, trust_remote_code)
    tokenizer = _tokenizer(reference, path, trust_remote_code)
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    total, inner = _count(skeleton)
    card = metadata_load(path / "README.md") if (path / "README.md").exists() else None
    licence = card.get("license") if isinstance(card, dict) else None
    seen = path / "seen.txt"
    found = Reference(
        source=reference,
        path=path,
        revision=commit,
        trust_remote_code=trust_remote_code,
        config=config,
        tokenizer=tokenizer,
        layers=len(block_list(skeleton)[1]),
        parameters=total,
        parameters_without_embeddings=inner,
        embedding_rows=next(embedding.parameters()).shape[0],
        tied=head is not None and head.weight is embedding.weight,
        dtype=_dtype(config, files),
        max_positions=getattr(config.get_text_config(), "max_position_embeddings", None),
        weight_files=files,
        tokens_trained=_tokens_trained(path, config),
        seen_hashes=seen if seen.exists() else None,
        license=licence if isinstance(licence, str) else None,
    )
    if tokenizer is not None:
        check_vocabulary(found, max(tokenizer.get_vocab().values(), default=-1) + 1)
    return found


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
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            reference.path,
            dtype=dtype if dtype is not None else getattr(torch, reference.dtype),
            trust_remote_code=reference.trust_remote_code,
            output_loading_info=True,
            # Otherwise transformers 5.24 raises for a wrong shape without saying which tensor has it.
            ignore_mismatched_sizes=True,
        )
        model, info = loaded
    except _LOADING_ERRORS as error:
        raise Failed(f"{reference.source}: transformers cannot load it: {one_line(error)}") from error
    # transformers 5.24 only logs these, and puts random values in their place.
    wrong = [*sorted(info["missing_keys"]), *sorted(str(key) for key in info["mismatched_keys"])]
    if wrong:
        what = f"{wrong[0]} is missing or of another shape ({len(wrong)} such tensors)"
        raise Failed(f"{reference.source}: its weights do not fit its config: {what}; give a complete model")
    assert isinstance(model, PreTrainedModel)
    model.eval()
    return model


def fresh(config: PretrainedConfig, seed: int, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this config from random init, as transformers initialises it, in the config's dtype.

    The same seed gives the same model; the caller's random state and config are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # a copy: from_config writes the dtype that it resolved into the config it is given
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    return model


def block_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The blocks of a model's text decoder and their dotted name, found by structure.

    They are the outermost `nn.ModuleList` in the decoder with as many entries as the config has layers.

    Raises:
        Refused: none, or several that could be meant.
    """
    layers = model.config.get_text_config().num_hidden_layers
    inside = {id(module) for module in model.get_decoder().modules()}
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and id(module) in inside
    }
    # a mixture's experts may be as many as the layers: they lie inside a block
    outermost = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if len(outermost) != 1:
        found = "none" if not outermost else ", ".join(outermost)
        raise Refused(f"{type(model).__name__}: which list holds the {layers} blocks is not clear; candidates: {found}")
    return outermost[0], candidates[outermost[0]]


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm between the last block and the head; None where the architecture has none.

    It is the norm that stands beside the block list; of several, the one that was defined after it.

    Raises:
        Refused: several that could be meant.
    """
    name, blocks = block_list(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    children = list(parent.named_children())
    position = [child is blocks for _, child in children].index(True)
    norms = [(index, child) for index, (_, child) in enumerate(children) if "norm" in type(child).__name__.lower()]
    after = [child for index, child in norms if index > position]
    found = after or [child for _, child in norms]
    if len(found) > 1:
        names = ", ".join(child_name for child_name, child in children if child in found)
        raise Refused(f"{type(model).__name__}: which norm is the final one is not clear; candidates: {names}")
    return found[0] if found else None


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
    return {
        "source": reference.source,
        "revision": reference.revision,
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


def one_line(error: BaseException) -> str:
    """An error of a library as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _locate(reference: str, revision: str | None, trust_remote_code: bool) -> tuple[Path, str | None]:
    """The directory of a reference, and its commit if it is from the hub."""
    packaged = reference.startswith(PACKAGED)
    directory = Path(reference).expanduser()
    if packaged:
        name = reference.removeprefix(PACKAGED)
        directory = Path(str(resources.files("inheritune"))) / "packaged" / name
        if not name or "/" in name or not directory.is_dir():
            raise Refused(f"{reference}: this installation of inheritune brings no such reference")
    if reference and directory.is_dir():
        if revision is not None:
            raise Refused(f"{reference}: a directory has no revision; leave revision out, or give a hub id")
        return directory, None
    if reference and directory.exists():
        raise Refused(f"{reference}: a file, not a model directory; give the directory that holds config.json")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", reference, re.ASCII):
        raise Refused(f"{reference}: no such directory, and no hub id (ORG/NAME)")
    return _download(reference, revision, trust_remote_code)


def _download(name: str, revision: str | None, trust_remote_code: bool) -> tuple[Path, str]:
    """A hub model's snapshot in the cache; small files first: what is no model is refused before gigabytes come."""

    def fetch(*patterns: str) -> Path:
        # folders inside a repository hold copies in other formats
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    try:
        path = fetch("*.json", "*.txt", "*.model", "*.jinja", "README.md", *(["*.py"] if trust_remote_code else []))
        _config(name, path, trust_remote_code)
        fetch("model*.safetensors")
        if not any(path.glob("*.safetensors")):
            fetch("pytorch_model*.bin")
    except (OSError, ValueError) as error:  # the hub's errors (no such model, offline, no network) are kinds of both
        why = "misspelled, private, or no network"
        raise Refused(
            f"{name}: no such directory, and not to be had from the hub ({why}): {one_line(error)}"
        ) from error
    return path, path.name


def _config(source: str, path: Path, trust_remote_code: bool) -> PretrainedConfig:
    """The config, of a model that transformers can generate text with and whose weights are not quantised."""
    if not (path / "config.json").exists():
        raise Refused(f"{source}: no model: {path} holds no config.json")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except _LOADING_ERRORS as error:
        raise Refused(f"{source}: transformers cannot read its config.json: {one_line(error)}") from error
    if getattr(config, "quantization_config", None):
        raise Refused(f"{source}: its weights are quantised; give the model in bfloat16, float16 or float32")
    if config.is_encoder_decoder:
        raise Refused(f"{source}: an encoder-decoder ({config.model_type}); give a decoder-only language model")
    assert isinstance(config, PretrainedConfig)
    return config


def _skeleton(source: str, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without values, on the meta device: what it is made of can be counted at no cost."""
    try:
        with torch.device("meta"):
            model = fresh(config, 0, trust_remote_code=trust_remote_code)
        block_list(model)
    except _LOADING_ERRORS as error:
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


def _weight_files(source: str, path: Path) -> tuple[Path, ...]:
    """The weight files that transformers would read, in its order of preference, each checked to be whole and safe."""
    for name, check in ((_SAFE, _safetensors_names), (_PICKLED, _pickle_names)):
        index = path / f"{name}.index.json"
        if (path / name).exists():
            check(source, path / name)
            return (path / name,)
        if index.exists():
            return _shards(source, index, check)
    raise Refused(f"{source}: no weights: {path} holds neither {_SAFE} nor {_PICKLED}, whole or in shards")


def _shards(source: str, index: Path, check: Any) -> tuple[Path, ...]:
    """The shards of an index; every tensor it names must be in its shard."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(Path(name)) for name in places.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"{source}: {index.name} is no index of weights: {one_line(error)}") from error
    files = tuple(index.with_name(name) for name in names)
    for file in files:
        if not file.exists():
            raise Refused(f"{source}: {file.name} is missing, one of {len(files)} weight files that {index.name} names")
        held = check(source, file)
        absent = [tensor for tensor, place in places.items() if place == file.name and tensor not in held]
        if absent:
            raise Refused(f"{source}: {file.name} lacks {absent[0]}, which {index.name} says is there")
    return files


def _safetensors_header(source: str, file: Path) -> dict[str, Any]:
    """The header of a safetensors file whose size is what the header promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise Refused(f"{source}: {file.name} is a Git LFS pointer, not weights; fetch them with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise Refused(f"{source}: {file.name} is truncated or no safetensors file ({size} bytes); copy it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{source}: {file.name} is no safetensors file: its header cannot be read") from error
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        raise Refused(
            f"{source}: {file.name} has {size} bytes, not the {promised} that its header states; copy it again"
        )
    header.pop("__metadata__", None)
    return header


def _safetensors_names(source: str, file: Path) -> set[str]:
    return set(_safetensors_header(source, file))


def _pickle_names(source: str, file: Path) -> set[str]:
    """The tensors of a pickled state dict that holds nothing but tensors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle's protocol, which is no help to the user
            tensors = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # a pickle may hold anything, so reading it may fail in any way; none runs its code
        match = re.search(r"GLOBAL (\S+)", str(error))
        wanted = match.group(1) if match else _first_global(file)
        why = f"is an unsafe pickle: it asks for {wanted}" if wanted else "is truncated or holds more than tensors"
        raise Refused(f"{source}: {file.name} {why}; give the weights as safetensors") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise Refused(f"{source}: {file.name} is no state dict (names and tensors); give the weights as safetensors")
    return set(tensors)


def _first_global(file: Path) -> str | None:
    """The first class or function that a plain pickle asks for, read from its opcodes; nothing is executed.

    torch 2.13 names it only in pickles of protocol 2, which `torch.save` writes.
    """
    strings: list[str] = []
    try:
        with file.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except ValueError:  # no pickle
        return None
    return None


def _dtype(config: PretrainedConfig, files: tuple[Path, ...]) -> str:
    """The dtype that the config names; else that of the first floating-point tensor of the files."""
    if config.dtype is not None:
        return str(config.dtype).removeprefix("torch.")
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    if files[0].suffix == ".safetensors":
        stored = [entry["dtype"] for entry in _safetensors_header(files[0].name, files[0]).values()]
    else:
        by_name = {value: key for key, value in names.items()}
        tensors = torch.load(files[0], map_location="meta", weights_only=True)
        stored = [by_name.get(str(tensor.dtype).removeprefix("torch."), "") for tensor in tensors.values()]
    return next((names[dtype] for dtype in stored if dtype in names), "float32")


def _count(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in all, and without embeddings and head; a tied one counts once."""
    head = model.get_output_embeddings()
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key not in outer)


def _tokens_trained(path: Path, config: PretrainedConfig) -> int | None:
    for record in (read_json(path / "inheritune.json"), getattr(config, LINEAGE_KEY, None)):
        tokens = record.get("tokens_trained") if isinstance(record, dict) else None
        if isinstance(tokens, int):
            return tokens
    return None
