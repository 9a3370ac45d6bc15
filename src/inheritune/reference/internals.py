"""transformers' internals that are called here and nowhere else: how names and tensors of files become a module's.

transformers 5 renames tensors while it loads, and fuses or splits some (a mixture's experts lie one by one in the files
and as one tensor in the module). Surgery copies tensors from file to file, so it has to know which of the module's each
one becomes; and the proof reads the reference a block at a time, for which there is no public way. Written against
transformers 5.24; 5.17 has the same names.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    masking_utils,
    modeling_gguf_pytorch_utils,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

Names = tuple[str, ...]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' loading report and progress bars: what matters in them is raised or logged in one line."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weightless(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this config on the meta device: what it is made of, and what is tied, without a byte of it."""
    with quiet(), torch.random.fork_rng(devices=[]), no_init_weights(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    model.tie_weights()
    return model


@contextlib.contextmanager
def whole_sequences() -> Iterator[None]:
    """Let models take each sequence of fake tensors for a whole one.

    transformers looks at positions for several documents in one sequence, which it can tell by values alone; where
    there are no values it makes a mask, in case there are several.
    """
    real = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = real


def hollow(config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model whose tensors have shape and dtype but no memory; what is computed from the config is there.

    Parameters and saved buffers are on the meta device. Buffers that are never saved (rotary frequencies, say) are as
    `from_pretrained` makes them, by the same calls. Nothing is tied yet.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        with no_init_weights(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
        assert isinstance(model, PreTrainedModel)
        for tensor in model.state_dict(keep_vars=True).values():
            tensor._is_hf_initialized = True  # so that only what no file holds is computed
        internals: Any = model
        internals._move_missing_keys_from_meta_to_device(set(), None, None, None)
        internals._initialize_missing_keys(False)
    model.eval()
    return model


def cast_as_loaded(model: PreTrainedModel, dtype: torch.dtype, *, trust_remote_code: bool = False) -> None:
    """Cast a model's tensors, in place, to the dtypes that they would be loaded in.

    That is `dtype`, but for the few that a family keeps in float32 (DeepSeek-V3's routers, say). What is never saved
    stays as it is: rotary frequencies are buffers that transformers keeps in float32.
    """
    loaded = hollow(model.config, dtype, trust_remote_code=trust_remote_code).state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(loaded[name].dtype)
    model.config.dtype = dtype


class Naming:
    """Which tensors of a module those of a file become."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        self._prefix = model.base_model_prefix
        self.held = model.state_dict()
        """The module's own tensors by name."""

    def places(self, name: str) -> Names:
        """The module's tensors that a file's tensor becomes, wholly or in part; none where the model has no place."""
        key, pattern = self._renamed(name, self._renamings, self._converters)
        if key not in self.held and name in self.held:
            key, pattern = self._renamed(name, [], [])
        if pattern is None:
            return (key,) if key in self.held else ()
        targets = self._by_pattern[pattern].target_patterns
        found = tuple(dict.fromkeys(key.replace(targets[0], target) for target in targets))
        return found if all(place in self.held for place in found) else ()

    def converted(self, name: str) -> bool:
        """Whether a file's tensor is fused or split on its way into the module."""
        return self._renamed(name, self._renamings, self._converters)[1] is not None

    def _renamed(
        self, name: str, renamings: list[WeightRenaming], converters: list[WeightConverter]
    ) -> tuple[str, str | None]:
        return rename_source_key(name, renamings, converters, self._prefix, self.held)


def fill(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Put tensors, by their names in the files, into a model's places, as `from_pretrained` does.

    Args:
        model: a hollow one, or one filled in part.
        tensors: all that belong together, such as every expert of a block.
        dtype: of the model's weights; the few that a family keeps in float32 stay so.

    Raises:
        ValueError: a tensor has no place, or another shape.
    """
    mapping: Any = get_model_conversion_mapping(model)
    settings = LoadStateDictConfig(dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), weight_mapping=mapping)
    with quiet():
        info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), settings, None)
    wrong = [*info.unexpected_keys, *(key for key, *_ in info.mismatched_keys), *info.conversion_errors]
    if wrong:
        raise ValueError(f"{min(wrong)} has no place in the model or another shape")


def align(module: torch.nn.Module) -> None:
    """Give tensors that lie oddly in memory a place of their own.

    A tensor mapped from a file begins where the file has it; on another alignment matrix products may take another path
    and round elsewhere (seen in the last bit of a mixture's experts). 64 bytes are what torch aligns to.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def tie(model: PreTrainedModel, missing: set[str]) -> None:
    """Tie what the config says is tied, as `from_pretrained` does: not a head that came with values of its own.

    Args:
        model: the outer parts filled.
        missing: names of the module's tensors that no file held.
    """
    with quiet():
        model.tie_weights(missing_keys=set(missing), recompute_mapping=True)


_GGUF_NO_MODEL = ("general", "tokenizer", "t5", "umt5")
"""In transformers' table of GGUF architectures: what is none, and what is no decoder alone."""
_GGUF_SPELLED = {
    **{"gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"},
    **{"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"},
}
"""Where that table spells an architecture otherwise than files do."""


def gguf_architectures() -> list[str]:
    """The architectures of decoders that transformers converts from GGUF, as files name them, in order."""
    names = set(modeling_gguf_pytorch_utils.GGUF_SUPPORTED_ARCHITECTURES)
    with contextlib.suppress(ImportError, AttributeError):  # a second reader, of 5.24 and later
        names |= set(importlib.import_module("transformers.integrations.gguf").GGUF_CONFIG_ARCHS)
    return sorted(_GGUF_SPELLED.get(name, name) for name in names if name not in _GGUF_NO_MODEL)


def gguf_pre_tokenizers() -> set[str]:
    """The words of `tokenizer.ggml.pre` for which transformers has a rule; for all others it takes GPT-2's."""
    try:
        module = importlib.import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
        return set(module.GGUF_PRE_TOKENIZER_SPLITS)
    except (ImportError, AttributeError):
        return set()


def from_gguf(
    folder: Path, name: str, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """A GGUF file as transformers loads it, every weight dequantised.

    Args:
        folder: holds the file; an adapter or a config beside it would be read, too.
        name: of the file.
        config: what `AutoConfig` made of the file.
        dtype: of the weights.

    Returns:
        The model, in memory; the names of its tensors that the file lacks, and of those that it holds in another shape:
        both are random.
    """
    settings: dict[str, Any] = {"ignore_mismatched_sizes": True}
    with contextlib.suppress(ImportError):  # else 5.24 may leave the weights of a few families packed
        from transformers.utils.quantization_config import GgufConfig

        settings["quantization_config"] = GgufConfig(dequantize=True)
    bar: Any = modeling_gguf_pytorch_utils
    shown = bar.tqdm
    bar.tqdm = _bare  # this bar heeds no setting of transformers'
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, config=config, dtype=dtype, output_loading_info=True, **settings
            )
    finally:
        bar.tqdm = shown
    model, info = loaded
    assert isinstance(model, PreTrainedModel)
    misshapen = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    return model, sorted(info["missing_keys"]), sorted(misshapen)


def unread_in_gguf(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Those of a GGUF file's tensors for which transformers has no place in a model; none where it cannot tell."""
    reader: Any = modeling_gguf_pytorch_utils
    try:
        places = reader.get_gguf_hf_weights_map(model, reader.TensorProcessor(config={}))
    except (AttributeError, ImportError, NotImplementedError, TypeError):
        return []
    return [name for name in names if name not in places]


def _bare(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    return iterable
