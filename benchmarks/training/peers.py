"""Who is measured: the worker of each, the settings worth trying, and the shapes that it cannot express."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A trainer and how it is run."""

    script: str
    """Its worker, a file beside this one."""
    variants: dict[str, Settings]
    """Settings worth trying on any device; the first is what is run where nothing is tried."""
    cuda_variants: dict[str, Settings] = field(default_factory=dict)
    """Further ones on a GPU."""
    modules: tuple[str, ...] = ("torch", "transformers")
    """What its environment has to hold."""
    how: str = ""
    """How it is given, where this environment does not hold it."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why it cannot train a shape, by `model_type`."""


PEERS = {
    "inheritune": Peer("ours.py", {"compiled": {}}, modules=("torch", "transformers", "inheritune")),
    "transformers": Peer(
        "with_transformers.py",
        {
            "compiled": {"compile": True, "workers": 0},
            "compiled, 2 loader workers": {"compile": True, "workers": 2},
            "eager": {"compile": False, "workers": 0},
        },
        {
            "compiled, Liger": {"compile": True, "workers": 0, "liger": True},
            "eager, Liger": {"compile": False, "workers": 0, "liger": True},
        },
        modules=("torch", "transformers", "accelerate"),
        how="--transformers PYTHON, an interpreter that has accelerate and the same torch and transformers",
    ),
    "litgpt": Peer(
        "with_litgpt.py",
        {
            "compiled, fused": {"compile": True, "fused": True, "whole_loss": False, "workers": 0},
            "compiled, fused, loss in one": {"compile": True, "fused": True, "whole_loss": True, "workers": 0},
            "compiled, fused, 2 loader workers": {"compile": True, "fused": True, "whole_loss": False, "workers": 2},
            "compiled": {"compile": True, "fused": False, "whole_loss": False, "workers": 0},
            "fused": {"compile": False, "fused": True, "whole_loss": False, "workers": 0},
        },
        modules=("torch", "litgpt", "lightning"),
        how="--litgpt PYTHON, an interpreter that has litgpt 0.5.13",
        left_out={"gpt2": "no learned positions"},
    ),
    "nanogpt": Peer(
        "with_nanogpt.py",
        {
            "compiled, fused": {"compile": True, "fused": True},
            "compiled": {"compile": True, "fused": False},
            "fused": {"compile": False, "fused": True},
        },
        modules=("torch", "safetensors"),
        how="--nanogpt DIRECTORY, nanoGPT's source (train.py and model.py)",
        left_out={"llama": "GPT-2 only"},
    ),
    "bare": Peer(
        "bare.py",
        {"compiled": {"compile": True}, "eager": {"compile": False}},
    ),
}
OURS = "inheritune"
