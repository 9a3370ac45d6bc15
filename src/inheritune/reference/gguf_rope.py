"""How a GGUF file scales rotary frequencies, which transformers 5.24 does not read for most architectures.

llama.cpp keeps Llama 3's scaling as a tensor, `rope_freqs.weight`: what each frequency is divided by
(ggml-org/llama.cpp, convert_hf_to_gguf.py). Left out, the model is another one, most of all on long texts, and nothing
would say so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from inheritune.errors import Refused
from inheritune.reference.gguf_header import Header, HeldTensor, plain

FACTORS = "rope_freqs.weight"
_LOW, _HIGH = 1.0, 4.0
"""Of Llama 3: wavelengths in the original context, below which (`low`) all is scaled, above which (`high`) nothing."""
_CONTEXTS = (8192, 4096, 16384, 32768)
"""Llama 3's own original context, and others that a file may mean without saying so."""
_CLOSE = 1e-4


def check_rope(source: str, header: Header, file: Path, config: PretrainedConfig) -> PretrainedConfig:
    """A config with the scaling that the file states, where its own says nothing of it.

    Args:
        source: what errors call the reference.
        header: the file's.
        file: the GGUF file.
        config: what transformers made of the header.

    Returns:
        The config itself, or one like it: linear scaling as `linear`, Llama 3's factors as `llama3`.

    Raises:
        Refused: the file scales them in a way that cannot be carried over.
    """
    stated = header.text("general.architecture")
    kind, factor = header.text(f"{stated}.rope.scaling.type"), header.metadata.get(f"{stated}.rope.scaling.factor")
    tensor = next((one for one in header.tensors if one.name == FACTORS), None)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if _scaled(rope):  # transformers read it by itself
        return config
    if tensor is not None:
        factors = _values(header, tensor, file)
        if np.allclose(factors, 1.0):
            return config
        found = _as_llama3(factors, rope.get("rope_theta"), _contexts(header, stated))
        if found is None:
            raise _refused(source, f"{FACTORS} holds factors that are not Llama 3's")
        return _with(config, rope, found)
    if kind in (None, "linear") and isinstance(factor, int | float) and factor not in (0, 1):
        if "rope_theta" not in rope or not math.isfinite(factor) or factor < 1:
            raise _refused(source, f"rope.scaling.factor is {factor:g}")
        return _with(config, rope, {"rope_type": "linear", "factor": float(factor)})
    if kind not in (None, "none", "linear"):
        raise _refused(source, f"rope.scaling.type is {plain(kind)}")
    return config


def _refused(source: str, what: str) -> Refused:
    return Refused(
        f"{source}: its {what}, which transformers does not read from GGUF: it would be another model; give the model "
        "as a Hugging Face directory"
    )


def _scaled(rope: dict[str, Any]) -> bool:
    """Whether a config scales frequencies, in any kind of its layers."""
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    return any(one.get("rope_type", "default") not in ("default", "proportional") for one in kinds)


def _with(config: PretrainedConfig, rope: dict[str, Any], scaling: dict[str, Any]) -> PretrainedConfig:
    """The config with a scaling."""
    kept = config.to_dict() | {"rope_parameters": rope | scaling}
    again = type(config).from_dict(kept)
    assert isinstance(again, PretrainedConfig)
    return again


def _values(header: Header, tensor: HeldTensor, file: Path) -> NDArray[np.float32]:
    """A tensor of float32, (rotary dimensions / 2)."""
    if tensor.kind != "F32":
        return np.zeros(tensor.values, np.float32)  # no factors
    with file.open("rb") as stream:
        stream.seek(header.data + tensor.offset)
        return np.frombuffer(stream.read(tensor.bytes), "<f4")


def _contexts(header: Header, architecture: str | None) -> tuple[int, ...]:
    """Original contexts to try, that which the file states first."""
    stated = header.integer(f"{architecture}.rope.scaling.original_context_length")
    return (*([stated] if stated else []), *_CONTEXTS)


def _as_llama3(factors: NDArray[np.float32], base: Any, contexts: tuple[int, ...]) -> dict[str, Any] | None:
    """Llama 3's scaling (Grattafiori et al. 2024; transformers' `llama3`) that has these factors; None if none has."""
    if not isinstance(base, int | float) or not np.isfinite(factors).all() or factors.max() < 1:
        return None
    factor = float(factors.max())
    wavelengths = 2 * math.pi * float(base) ** (np.arange(len(factors)) / len(factors))
    for context in contexts:
        smooth = np.clip((context / wavelengths - _LOW) / (_HIGH - _LOW), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=_CLOSE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": context,
            }
    return None
