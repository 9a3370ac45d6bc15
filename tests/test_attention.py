"""The banded attention is what transformers' sdpa computes; where it may differ, sdpa is what runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from families import seeded
from inheritune import attention
from inheritune.attention import banded, banded_attention
from inheritune.objective import Objective
from tiny import family

CPU = torch.device("cpu")

SHAPES = [
    # batch, heads, groups, length, width of queries and keys, of values
    (2, 4, 4, 256, 64, 64),
    (1, 6, 2, 300, 16, 24),  # grouped; the last band is not full
    (2, 3, 1, 128, 8, 8),
    (1, 2, 2, 5, 8, 8),
]
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def heads(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Heads:
    batch, count, groups, length, width, of_values = shape
    generator = torch.Generator().manual_seed(sum(shape))
    query, key, value = (
        torch.randn(batch, number, length, size, generator=generator).to(dtype).requires_grad_()
        for number, size in ((count, width), (groups, width), (groups, of_values))
    )
    return query, key, value


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """By the formula, in float64, head by head."""
    share = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        scores = scale * query[:, head].double() @ key[:, head // share].double().transpose(-1, -2)
        length = scores.shape[-1]
        scores = scores + torch.full((length, length), -math.inf).double().triu(1)
        rows.append(scores.softmax(-1) @ value[:, head // share].double())
    return torch.stack(rows, 1)


def with_gradients(found: torch.Tensor, given: Heads) -> list[torch.Tensor]:
    """A result, and the gradients of a function of it."""
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.dtype)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), given)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_causal_attention(shape: tuple[int, ...]) -> None:
    given = heads(shape)
    found = with_gradients(banded_attention(*given, 0.3), given)
    for ours, theirs in zip(found, with_gradients(exact(*given, 0.3).float(), given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_in_bfloat16_it_rounds_by_as_much_as_the_dtype(shape: tuple[int, ...], size: float) -> None:
    """Scores of a standard deviation `size` are rounded to 8 bits: an error of a few thousandths each."""
    given = heads(shape, torch.bfloat16)
    scale = size * shape[4] ** -0.5
    truth = with_gradients(exact(*given, scale).float(), given)
    for found, right in zip(with_gradients(banded_attention(*given, scale), given), truth, strict=True):
        error = (found.float() - right.float()).norm() / right.float().norm()
        assert error <= 0.004 + 0.002 * size


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two ran, in order."""
    found: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def run(*arguments: Any, **settings: Any) -> Any:
            found.append(name)
            return function(*arguments, **settings)

        return run

    monkeypatch.setattr(attention, "banded_attention", noted("banded", banded_attention))
    monkeypatch.setattr(attention, "sdpa_attention_forward", noted("sdpa", sdpa_attention_forward))
    return found


def run(given: Heads, mask: torch.Tensor | None = None, **settings: Any) -> torch.Tensor:
    module = torch.nn.Module()
    module.num_key_value_groups = given[0].shape[1] // given[1].shape[1]  # type: ignore[assignment]
    found, weights = attention._attention(module, *given, mask, **settings)
    assert weights is None
    return found


def test_the_interface_is_transformers(calls: list[str]) -> None:
    given = heads(SHAPES[0], torch.bfloat16)
    ours = run(given)
    theirs, _ = sdpa_attention_forward(torch.nn.Module(), *given, None)
    assert calls == ["banded"]
    assert ours.shape == theirs.shape == (2, 256, 4, 64)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("length", "dtype", "settings"),
    [
        (16, torch.float32, {}),
        (513, torch.bfloat16, {}),
        (1, torch.bfloat16, {}),
        (16, torch.bfloat16, {"dropout": 0.1}),
        (16, torch.bfloat16, {"is_causal": False}),
        (16, torch.bfloat16, {"mask": torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16)}),
        (16, torch.bfloat16, {"position_bias": torch.zeros(1, 2, 16, 16, dtype=torch.bfloat16)}),
    ],
)
def test_what_it_does_not_know_is_sdpas(
    length: int, dtype: torch.dtype, settings: dict[str, Any], calls: list[str]
) -> None:
    run(heads((1, 2, 2, length, 8, 8), dtype), **settings)
    assert calls == ["sdpa"]


def test_softcapping_is_refused_as_before(calls: list[str]) -> None:
    with pytest.raises(ValueError, match="softcap"):
        run(heads((1, 2, 2, 16, 8, 8), torch.bfloat16), softcap=30.0)


def test_autocasts_dtype_counts(calls: list[str]) -> None:
    given = heads((1, 2, 2, 16, 8, 8))  # as rotary positions leave them: float32
    with torch.autocast("cpu", torch.bfloat16):
        assert run(given).dtype == torch.bfloat16
    assert calls == ["banded"]


def test_models_take_it_within_the_objective_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = seeded(family("llama")), list[str]()

    def noted(*given: Any) -> torch.Tensor:
        calls.append("banded")
        return banded_attention(*given)

    monkeypatch.setattr(attention, "banded_attention", noted)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    Objective(model, torch.bfloat16)(ids, ids)
    layers = model.config.num_hidden_layers
    assert calls == ["banded"] * layers
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
    assert calls == ["banded"] * layers


def test_it_leaves_no_trace() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def fail() -> None:
        with banded(CPU):
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention._attention
            with banded(CPU):
                pass
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention._attention
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with banded(torch.device("cuda")):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_torchs_own_can_be_asked_for() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with banded(CPU):
        with attention.torchs_own():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention._attention
    with attention.torchs_own():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_somebody_elses_function_stays() -> None:
    def theirs(*_: Any, **__: Any) -> None: ...

    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    try:
        with banded(CPU):
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_validation_of_a_long_sequence_is_exact_on_both_sides_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(family("llama"))
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    short = Objective(model, torch.bfloat16)(ids, ids, scored=True)
    monkeypatch.setattr(attention, "_LONGEST", 4)
    long = Objective(model, torch.bfloat16)(ids, ids, scored=True)
    torch.testing.assert_close(short.nats, long.nats, rtol=0.02, atol=0.02)
