"""Dequantising: a GGUF file becomes, once, a plain Hugging Face directory in a cache.

Everything after works from safetensors to safetensors and need not know where they came from. transformers itself reads
the file, by its `gguf_file` route. float32 holds each value as it is dequantised; bfloat16, for who is short of room,
rounds most of them. What is written is read back and compared bit for bit.

The directory is `inheritune/gguf/SHA-256 of the file/VERSIONS_DTYPE` in $XDG_CACHE_HOME (else ~/.cache), and is a
function of these alone: files beside the GGUF file are not looked at. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inheritune.errors import Failed, InherituneError, Refused
from inheritune.reference.gguf_checks import SPECIAL, check_model, or_none
from inheritune.reference.gguf_header import BlockSizes, Header, plain, read_header
from inheritune.reference.gguf_rope import FACTORS, check_rope
from inheritune.reference.internals import (
    from_gguf,
    gguf_pre_tokenizers,
    quiet,
    unread_in_gguf,
    weightless,
)
from inheritune.reference.structure import not_finite, parameters
from inheritune.reference.weights import one_line
from inheritune.run_directory import read_json, write_json

_LOG = logging.getLogger(__name__)

_FORM = 3
"""Of the directories written here; a change of what is in them gets the next number."""
_RECORD, _LINK = "gguf.json", "model.gguf"
_FLOATING = ("F32", "F16", "BF16")
_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error, StrictDataclassError),
)
"""What transformers and the `gguf` package raise for a file that they cannot make sense of."""
_GPT2_SPLITS = ("gpt-2", "phi-2", "mpt", "olmo")
"""Words of `tokenizer.ggml.pre` that llama.cpp splits text for by GPT-2's rule, which transformers falls back on."""
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Words for which it takes every digit by itself and splits the rest by GPT-2's rule."""


@dataclass(frozen=True)
class Dequantised:
    """A GGUF file, and the plain directory that was made of it."""

    path: Path
    """The directory: config, weights, tokenizer."""
    sha256: str
    """Of the file, whole."""
    read_by: str
    """What, beside the file, decided what came of it: versions, and the dtype."""
    tensors: dict[str, int]
    """How many of the file's tensors are of each type, such as {"Q4_1": 210, "F32": 61}."""
    dequantised_from: str | None
    """The quantised type that holds most of the values, such as Q4_1; None where none is quantised."""
    lost: tuple[str, ...]
    """What the file says and the directory does not, a line each."""


def dequantised(source: str, file: Path, dtype: torch.dtype = torch.float32) -> Dequantised:
    """The plain directory of a GGUF file: made now, or found as it was made before.

    Args:
        source: what errors call the reference.
        file: the GGUF file.
        dtype: of the weights in the directory.

    Raises:
        Refused: the `gguf` package is missing; the file is truncated, damaged, no whole decoder-only language model, or
            of an architecture that transformers does not convert; or the cache has no room. Nothing is left behind.
    """
    blocks = _blocks(source)
    try:
        header = read_header(source, file, blocks)
        check_model(source, header)
        sha256 = _sha256(file)
    except OSError as error:
        raise Refused(f"{source}: cannot be read ({one_line(error)})") from error
    directory = cache() / sha256 / f"{_versions()}_{_word(dtype)}"
    record = _record(directory)
    try:
        if record is None:
            record = _made_alone(source, file, header, directory, dtype)
    except OSError as error:
        raise Refused(
            f"{source}: cannot be dequantised into {directory}: {one_line(error)}; mend that, or set XDG_CACHE_HOME"
        ) from error
    tensors = Counter(tensor.kind for tensor in header.tensors)
    return Dequantised(
        path=directory,
        sha256=sha256,
        read_by=directory.name,
        tensors=dict(tensors.most_common()),
        dequantised_from=_quantised_in(header),
        lost=tuple(record["lost"]),
    )


def config_in(source: str, file: Path) -> PretrainedConfig:
    """The config that a GGUF file's header describes; nothing is dequantised or written.

    Raises:
        Refused: the file is no model that could be dequantised.
    """
    header = read_header(source, file, _blocks(source))
    check_model(source, header)
    with TemporaryDirectory() as inside:  # by itself, as `_make` has it
        (Path(inside) / _LINK).symlink_to(file.absolute())
        return _config(source, Path(inside), header)


def _config(source: str, inside: Path, header: Header) -> PretrainedConfig:
    """The config that transformers makes of the file, with what it leaves out of how positions are scaled."""
    with _understood(source), quiet():
        config = _plain_config(AutoConfig.from_pretrained(inside, gguf_file=_LINK))
        return check_rope(source, header, inside / _LINK, config)


def _quantised_in(header: Header) -> str | None:
    """The quantised type that holds most of the values."""
    values: Counter[str] = Counter()
    for tensor in header.tensors:
        if tensor.kind not in _FLOATING:
            values[tensor.kind] += tensor.values
    return values.most_common(1)[0][0] if values else None


def cache() -> Path:
    """Where the directories are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inheritune" / "gguf"


def _blocks(source: str) -> BlockSizes:
    """The types that the `gguf` package can dequantise, with their blocks."""
    if importlib.util.find_spec("gguf") is None:
        raise Refused(f"{source}: reading GGUF needs the package gguf; install inheritune[gguf], or gguf itself")
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    as_they_are = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    return {
        int(kind): (kind.name, *GGML_QUANT_SIZES[kind])
        for kind in GGMLQuantizationType
        if kind in as_they_are or kind in _type_traits
    }


def _versions() -> str:
    """What, beside the file, decides what comes of it."""
    found = [f"{name}-{importlib.metadata.version(name)}" for name in ("transformers", "gguf")]
    return "_".join([*found, f"form-{_FORM}"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _made_alone(source: str, file: Path, header: Header, directory: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Make a directory while no other process makes one: the ranks of a run all ask for it at once."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("%s: waiting for another process, which dequantises a file into %s", source, cache())
            fcntl.flock(lock, fcntl.LOCK_EX)
        record = _record(directory)
        if record is not None:
            return record
        scratch = cache() / ".making"  # of who holds the lock
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # what a killed one left
            record = _make(source, file, header, scratch, dtype)
            shutil.rmtree(directory, ignore_errors=True)
            directory.parent.mkdir(exist_ok=True)
            (scratch / "made").rename(directory)
            return record
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _record(directory: Path) -> dict[str, Any] | None:
    """The record of a directory made before; None where there is none, or a file is not as it was written."""
    try:
        record = read_json(directory / _RECORD)
        found = {name: _stamp(directory / name) for name in record["files"]} if record else {}
    except (Failed, OSError, LookupError, TypeError):
        return None
    return record if record and found == record["files"] else None


def _stamp(path: Path) -> list[int]:
    """A file's size in bytes and when it was changed; to read gigabytes at every use would take too long."""
    known = path.stat()
    return [known.st_size, known.st_mtime_ns]


def _make(source: str, file: Path, header: Header, scratch: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Make the directory, as `made` in one that is not there yet."""
    inside, made = scratch / "source", scratch / "made"
    inside.mkdir(parents=True)
    made.mkdir()
    (inside / _LINK).symlink_to(file.absolute())  # by itself: transformers would read configs and adapters beside it
    lost = _write_model(source, inside, header, made, dtype)
    lost += _write_tokenizer(inside, header, made)
    licence = header.text("general.license")
    if licence is not None:
        card = yaml.safe_dump({"license": licence}, allow_unicode=True)
        (made / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    record = {"lost": lost, "files": {path.name: _stamp(path) for path in sorted(made.iterdir())}}
    write_json(made / _RECORD, record)
    _settle(made)
    return record


def _write_model(source: str, inside: Path, header: Header, made: Path, dtype: torch.dtype) -> list[str]:
    """Config and weights, as transformers loads them from the file; what of them it leaves out, a line each."""
    config = _config(source, inside, header)
    with _understood(source):
        expected = parameters(weightless(config))
    held = sum(tensor.values for tensor in header.tensors)
    if expected > held:
        raise Refused(
            f"{source}: damaged or incomplete: its header describes {expected:,} parameters, its tensors hold "
            f"{held:,}; copy it again"
        )
    free, needed = shutil.disk_usage(made).free, dtype.itemsize * expected
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")
    _LOG.warning("%s: being dequantised, once, into %s", source, cache())
    with _understood(source):
        loaded, unfilled, misshapen = from_gguf(inside, _LINK, config, dtype)
    if unfilled:
        raise Refused(f"{source}: incomplete: it lacks {_and_others(unfilled)}; copy it again")
    if misshapen:
        what = f"its header gives another shape to {_and_others(misshapen)}"
        raise Refused(f"{source}: damaged: {what}; copy it again")
    left_out = _left_out(source, header, loaded)
    broken = not_finite(loaded.named_parameters())
    if broken:
        raise Refused(f"{source}: damaged: NaN or infinity in {_and_others(broken)}; copy it again")
    with _understood(source), quiet():
        _plain_model(loaded).save_pretrained(made)
        again: Any = AutoModelForCausalLM.from_pretrained(made, dtype=dtype)
    theirs, ours = loaded.state_dict(), again.state_dict()
    if theirs.keys() != ours.keys() or not all(_same(tensor, ours[name]) for name, tensor in theirs.items()):
        raise Refused(f"{source}: transformers does not load again what it read from the file; give another format")
    return left_out


def _left_out(source: str, header: Header, loaded: PreTrainedModel) -> list[str]:
    """What the file holds beside the model, a line each.

    Raises:
        Refused: it holds more than transformers reads, such as biases that the config says nothing of: without them it
            would be another model.
    """
    lines, layers = [], loaded.config.get_text_config().num_hidden_layers
    tensors = [one for one in header.tensors if one.name != FACTORS]
    further = [one for one in tensors if (block := re.match(r"blk\.(\d+)\.", one.name)) and int(block[1]) >= layers]
    if further and not header.integer(f"{header.text('general.architecture')}.nextn_predict_layers"):
        what = f"it holds {plain(further[0].name)}, and its header says {layers} blocks"
        raise Refused(f"{source}: damaged: {what}; copy it again")
    if further:
        lines.append(f"{len(further)} tensors of blocks that predict further tokens are left out")
    tensors = [one for one in tensors if one not in further]
    tied = loaded.config.get_text_config().tie_word_embeddings
    state = {tensor.data_ptr(): tensor.numel() for tensor in loaded.state_dict().values()}
    spare = sum(one.values for one in tensors) - sum(state.values())
    head = next((one for one in tensors if one.name == "output.weight"), None)
    if tied and head is not None and spare == head.values:
        return [*lines, "its output.weight is left out: the head is the embeddings'"]
    if spare > 0:
        names = unread_in_gguf(loaded, [one.name for one in tensors])
        named = f", such as {plain(names[0])}" if names else ""
        raise Refused(
            f"{source}: it holds {spare:,} values that transformers does not read{named}: without them it would be "
            "another model; give the model as a Hugging Face directory"
        )
    return lines


def _plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """A config that says nothing of quantisation or of files.

    transformers 5.24 leaves `quantization_config` in it, and then refuses to save the model, unless it is told to
    dequantise as in `from_gguf`; not every release can be told.
    """
    kept = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        kept.pop(key, None)
    again = type(config).from_dict(kept)
    assert isinstance(again, PretrainedConfig)
    return again


def _plain_model(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same tensors in a model that was never quantised, so that transformers saves it as any other."""
    model = weightless(_plain_config(loaded.config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat, again = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(flat, again)


def _write_tokenizer(inside: Path, header: Header, made: Path) -> list[str]:
    """The tokenizer that transformers builds from the file; what of the file it does not say, a line each."""
    kind = header.text("tokenizer.ggml.model")
    if kind is None or header.array("tokenizer.ggml.tokens") is None:
        return ["the file holds no tokenizer"]
    try:
        with quiet():
            built = AutoTokenizer.from_pretrained(inside, gguf_file=_LINK)
            if _splits_digits_first(header):
                whole = built.backend_tokenizer
                whole.pre_tokenizer = Sequence([Digits(individual_digits=True), whole.pre_tokenizer])
            built.save_pretrained(made)
            tokenizer = AutoTokenizer.from_pretrained(made)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return lost_in(tokenizer, header)
    except (InherituneError, MemoryError):  # a machine that is short: nothing to keep for good
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        if isinstance(error, OSError) and error.errno is not None:  # the disk is full, say
            raise
        for path in made.glob("*token*"):
            path.unlink()
        return [f"transformers cannot build its tokenizer ({plain(kind)}), so there is none: {one_line(error)}"]


def _splits_digits_first(header: Header) -> bool:
    """Whether the file splits text by a rule that transformers lacks, and that is GPT-2's with digits apart."""
    pre = header.text("tokenizer.ggml.pre")
    of_bytes = header.text("tokenizer.ggml.model") == "gpt2"
    return of_bytes and pre in _DIGITS_FIRST and pre not in gguf_pre_tokenizers()


def lost_in(tokenizer: PreTrainedTokenizerBase, header: Header) -> list[str]:
    """Where a tokenizer differs from what a file says of it, a line each.

    Args:
        tokenizer: as it is loaded from the directory.
        header: the file's.
    """
    found = []
    tokens = header.array("tokenizer.ggml.tokens")
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens is not None and not size == len(tokenizer) == tokens.count:
        found.append(f"its vocabulary has {tokens.count:,} tokens, the tokenizer {len(tokenizer):,}")
    for stated, name in SPECIAL.items():
        token, has = header.integer(f"tokenizer.ggml.{stated}_token_id"), getattr(tokenizer, f"{name}_token_id")
        if token != has:
            found.append(f"its {name} token is {or_none(token)}, the tokenizer's {or_none(has)}")
    for key in header.metadata:
        other = re.fullmatch(r"tokenizer\.ggml\.(\w+)_token_id", key)
        if other is not None and other.group(1) not in SPECIAL:
            found.append(f"{key} ({plain(str(header.metadata[key]))}) has no place in the tokenizer")
    pre = header.text("tokenizer.ggml.pre")
    known = {*_GPT2_SPLITS, *_DIGITS_FIRST, *gguf_pre_tokenizers()}
    if header.text("tokenizer.ggml.model") == "gpt2" and pre not in known:
        rule = "does not say by which rule text is split" if pre is None else f"splits text by the rule {plain(pre)!r}"
        found.append(f"it {rule} (tokenizer.ggml.pre), the tokenizer by GPT-2's")
    ids = tokenizer("a")["input_ids"]
    said = header.metadata.get("tokenizer.ggml.add_space_prefix")
    if header.text("tokenizer.ggml.model") == "llama" and isinstance(said, bool):
        adds = tokenizer.tokenize("a")[:1] in (["\u2581a"], ["\u2581"])
        if said != adds:
            found.append(
                f"it {'puts' if said else 'does not put'} a space before a text, the tokenizer "
                f"{'does' if adds else 'does not'}"
            )
    for name, place in (("bos", slice(0, 1)), ("eos", slice(-1, None))):
        said, identity = header.metadata.get(f"tokenizer.ggml.add_{name}_token"), getattr(tokenizer, f"{name}_token_id")
        adds = identity is not None and ids[place] == [identity]
        if isinstance(said, bool) and said != adds:
            found.append(
                f"it {'adds' if said else 'does not add'} {name}, the tokenizer {'does' if adds else 'does not'}"
            )
    return found


def _and_others(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} others" if len(names) > 1 else "")


@contextlib.contextmanager
def _understood(source: str) -> Iterator[None]:
    """What transformers and the `gguf` package raise over a file, as one line."""
    try:
        yield
    except SafetensorError as error:  # writing failed
        raise OSError(one_line(error)) from error
    except MemoryError as error:
        raise Refused(f"{source}: this machine has not the memory to dequantise it") from error
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk is full, say
            raise
        if "not a valid JSON" in str(error):  # so transformers calls a file whose text it cannot decode
            raise Refused(f"{source}: damaged: its header holds text that is no UTF-8; copy it again") from error
        raise Refused(f"{source}: transformers cannot read it as GGUF: {one_line(error)}") from error


def _settle(directory: Path) -> None:
    """Give every file the mode that the umask asks for, and put it on the disk before the directory gets its name.

    transformers 5.24 leaves the weights readable by their owner alone.
    """
    mode = (directory / _RECORD).stat().st_mode
    for file in directory.iterdir():
        file.chmod(mode)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
