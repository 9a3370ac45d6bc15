"""What an operator of torch's profiler belongs to."""

from __future__ import annotations

import re
from typing import Any

KINDS = (
    ("matrix products", r"aten::(mm|addmm|bmm|baddbmm|addbmm)"),
    ("attention's kernel", r"aten::_?scaled_dot_product.*"),
    ("between products, compiled", r"graph_\d+_cpp.*|## Call CompiledFxGraph.*|CompiledFunction.*|Torch-Compiled.*"),
    ("loss", r"aten::(_log_softmax|exp_|gather|scatter_add_|_softmax)|_Chunked.*"),
    ("norm, clipping, AdamW", r"aten::(_fused_adamw_|dot|linalg_vector_norm|_foreach.*)|Optimizer.*"),
    (
        "copies, casts, fills, sums",
        r"aten::(copy_|fill_|zero_|add_?|clone|sum|div|mul_?|cat|_to_copy|embedding.*|index.*)",
    ),
)
OTHER = "other"


def kind_of(operator: str) -> str:
    """The kind whose pattern an operator's whole name matches."""
    return next((kind for kind, pattern in KINDS if re.fullmatch(pattern, operator)), OTHER)


def by_kind(profiler: Any, steps: int) -> dict[str, float]:
    """Milliseconds of self time a step, on the CPU, by kind."""
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e3 / steps
    return found
