"""The page on performance is what the records say; the arithmetic behind its tables."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.planning import training_flops_per_token

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_page_is_what_the_records_say() -> None:
    document = importlib.import_module("document")
    page = document.PAGE.read_text(encoding="utf-8")
    assert document.filled(page) == page, "run benchmarks/document.py"


def test_a_section_on_one_side_only_is_an_error() -> None:
    document = importlib.import_module("document")
    with pytest.raises(ValueError, match="unheard of"):
        document.filled("<!-- unheard of -->\n<!-- end -->")


def point(size: int, seconds: float, flops: float, turn: int = 0) -> dict[str, Any]:
    return {
        "sweep": "width", "size": size, "turn": turn, "seconds": seconds, "flops": flops,
        "matmul_flops_per_second": 100.0,
    }  # fmt: skip


def test_exponents_are_fitted_to_the_medians_over_turns() -> None:
    scaling = importlib.import_module("scaling")
    points = [point(size, 0.5 * size**1.5, float(size**2)) for size in (2, 4, 8)]
    points += [point(8, 1000.0, 64.0, turn=1), point(8, 0.5 * 8**1.5, 64.0, turn=2), {"sweep": "width", "failed": "no"}]
    fitted = scaling.fit({"measurements": points}, "width")
    assert fitted["seconds_exponent"] == pytest.approx(1.5)
    assert fitted["seconds_last_exponent"] == pytest.approx(1.5)
    assert fitted["flops_exponent"] == pytest.approx(2.0)
    assert fitted["rows"][-1]["range"] == pytest.approx([0.5 * 8**1.5, 1000.0])
    assert fitted["rows"][0]["utilisation"] == pytest.approx(4 / (0.5 * 2**1.5) / 100)
    assert "of arithmetic 2.00 (2.00)" in scaling.table(fitted)


def test_every_rank_of_a_sweep_has_whole_sequences() -> None:
    scaling = importlib.import_module("scaling")
    for points in scaling.SWEEPS.values():
        for one in points:
            job = one.job()
            assert job["micro_batch_sequences"] * one.ranks == job["batch_sequences"]
            assert job["batch_sequences"] * job["sequence_length"] == scaling.STEP_TOKENS


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::dot", "norm, clipping, AdamW"),
        ("aten::mul", "copies, casts, fills, sums"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention's kernel"),
        ("graph_1_cpp_fused_add_2", "between products, compiled"),
        ("aten::mmm", "other"),
    ],
)
def test_operators_have_kinds(operator: str, kind: str) -> None:
    assert importlib.import_module("training.kinds").kind_of(operator) == kind


def test_the_floor_counts_the_operations_that_the_plan_counts() -> None:
    floor = importlib.import_module("gpu_floor")
    shape = importlib.import_module("training.shapes").SHAPES[floor.SHAPE]
    keys = dict(shape.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))
    parts = floor.parts(64, 8)
    planned = training_flops_per_token(model, shape.sequence_length) * 64 * shape.sequence_length
    assert sum(part.operations for part in parts) == pytest.approx(planned)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimiser = next(part for part in parts if part.name == "clipping and AdamW")
    assert optimiser.bytes == pytest.approx(40 * parameters, rel=1e-3)  # norms' weights are left out
    alone = {part.name: part.bytes for part in floor.parts(64, 1)}
    assert alone["weights cast, gradients added"] == 8 * next(p.bytes for p in parts if "cast" in p.name)
