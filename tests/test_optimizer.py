"""Steps taken and skipped, clipping, and when the guard skips."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from inheritune.config import TrainConfig
from inheritune.optimizer import Guard, adamw, empty_moments, gradient_norm, make_optimizer, moments, take_step, updates

CPU = torch.device("cpu")
CONFIG = TrainConfig(learning_rate=1e-2, weight_decay=0.1, beta1=0.8, beta2=0.9, epsilon=1e-6)
ENOUGH, WINDOW = 16, 128  # norms: the least that have a median, the most that are remembered
NAN, INFINITE = math.nan, math.inf


def judged(guard: Guard, norms: Iterable[float]) -> list[float]:
    return [float(guard.judge(torch.tensor(norm))) for norm in norms]


def filled(factor: float = 10.0, norms: Iterable[float] = (1.0,) * ENOUGH) -> Guard:
    guard = Guard(CPU, factor)
    assert not any(judged(guard, norms))
    return guard


def test_a_spike_is_skipped_once_there_is_a_median() -> None:
    guard = Guard(CPU, 10.0)
    assert judged(guard, [1.0] * (ENOUGH - 1) + [1000.0]) == [0.0] * ENOUGH  # the sixteenth is still taken
    assert judged(guard, [10.0, 10.1, 9.9]) == [0.0, 1.0, 0.0]


def test_the_factor_is_of_the_median_not_of_the_mean() -> None:
    norms = [1.0] * 8 + [2.0] + [100.0] * 7  # the median is 1, the mean above 40
    assert judged(filled(10.0, norms), [11.0]) == [1.0]
    assert judged(filled(3.0, [0.1] * 7 + [4.0] * 9), [11.9, 12.2]) == [0.0, 1.0]


@pytest.mark.parametrize("factor", [10.0, 0.0])
@pytest.mark.parametrize("count", [0, ENOUGH, 2 * WINDOW])
def test_what_is_not_finite_is_always_skipped(factor: float, count: int) -> None:
    guard = filled(factor, [1.0] * count)
    assert judged(guard, [NAN, INFINITE, -INFINITE, 1.0]) == [1.0, 1.0, 1.0, 0.0]


def test_by_factor_0_only_what_is_not_finite_is_skipped() -> None:
    assert judged(filled(0.0), [1e30, 1.0, NAN]) == [0.0, 0.0, 1.0]
    assert judged(filled(0.0, [0.0] * 40), [1.0]) == [0.0]


def test_skipped_norms_are_not_remembered() -> None:
    guard = filled()
    before = guard.state()
    assert judged(guard, [50.0, NAN, INFINITE] * WINDOW) == [1.0] * (3 * WINDOW)
    after = guard.state()
    assert (after["norms"], after["seen"]) == (before["norms"], before["seen"]) == ([1.0] * 16 + [None] * 112, 16)
    assert judged(guard, [50.0, 9.0]) == [1.0, 0.0]


def test_the_last_norms_count_and_the_ones_before_are_forgotten() -> None:
    guard = filled(10.0, [1.0] * WINDOW)
    assert judged(guard, [11.0]) == [1.0]
    assert not any(judged(guard, [5.0] * (WINDOW // 2)))
    assert judged(guard, [11.0]) == [1.0]  # half are old: the lower of the two in the middle is the median
    assert not any(judged(guard, [5.0]))
    assert judged(guard, [11.0, 49.0, 51.0]) == [0.0, 0.0, 1.0]


def test_skips_in_a_row_are_counted_anew_after_a_step() -> None:
    guard, counts = filled(), []
    for norm in (NAN, 100.0, INFINITE, 1.0, NAN, 2.0, 2.0):
        guard.judge(torch.tensor(norm))
        counts.append(float(guard.in_a_row))
    assert counts == [1, 2, 3, 0, 1, 0, 0]


@pytest.mark.parametrize("count", [0, 5, ENOUGH, 40, WINDOW + 60])
def test_a_guard_goes_on_from_its_state(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    norms = (torch.rand(count + 200, generator=random) * 4).exp().tolist()
    norms[count - 1 : count] = [NAN] * min(count, 1)  # it is in a row of skipped ones
    guard, loaded = Guard(CPU, 3.0), Guard(CPU, 3.0)
    judged(guard, norms[:count])
    loaded.load(json.loads(json.dumps(guard.state(), allow_nan=False)))
    assert float(loaded.in_a_row) == float(guard.in_a_row) >= min(count, 1)
    later = judged(guard, norms[count:])
    assert judged(loaded, norms[count:]) == later
    assert 0 < sum(later) < len(later)
    assert loaded.state() == guard.state()


def network() -> nn.Sequential:
    """Matrices, vectors, and a parameter that does not learn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 3, bias=False))
    model[3].weight.requires_grad_(False)
    return model


def fill(model: nn.Module, seed: int, scale: float = 1.0) -> list[nn.Parameter]:
    """Give the parameters that learn some gradients."""
    generator = torch.Generator().manual_seed(seed)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return learning


def test_matrices_alone_decay() -> None:
    model = network()
    groups = adamw(model, CONFIG).param_groups
    named = {parameter: name for name, parameter in model.named_parameters()}
    found = {named[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert found == {"0.weight": 0.1, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.1, "2.bias": 0.0}
    assert {(group["lr"], group["betas"], group["eps"]) for group in groups} == {(1e-2, (0.8, 0.9), 1e-6)}
    assert len(adamw(nn.Linear(2, 2, bias=False), CONFIG).param_groups) == 1


def test_steps_are_adamws() -> None:
    model = network()
    optimizer = adamw(model, CONFIG)
    names = dict(model.named_parameters())
    weights = {name: parameter.detach().double() for name, parameter in names.items()}
    first, second = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for step in range(1, 6):
        fill(model, step)
        for name, parameter in names.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            decay = 0.1 if parameter.dim() > 1 else 0.0
            update = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            weights[name] = weights[name] * (1 - 1e-2 * decay) - 1e-2 * update
        take_step(optimizer, torch.tensor(0.0))
        assert all(parameter.grad is None for parameter in names.values())
        assert updates(optimizer) == step
    for name, parameter in names.items():
        torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("value", [1e6, NAN, INFINITE])
def test_a_skipped_step_changes_nothing(taken: int, value: float) -> None:
    model = network()
    optimizer = adamw(model, CONFIG)
    assert updates(optimizer) == 0
    for step in range(taken):
        fill(model, step)
        take_step(optimizer, torch.tensor(0.0))
    never = copy.deepcopy(model)
    other = adamw(never, CONFIG)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fill(model, 9, value)
    take_step(optimizer, torch.tensor(1.0))
    assert updates(optimizer) == taken
    assert all(parameter.grad is None for parameter in model.parameters())
    if taken:
        check_equal(model, optimizer, never, other)
    # and those after it are as if it had never been
    for step in range(2):
        fill(model, step)
        fill(never, step)
        take_step(optimizer, torch.tensor(0.0))
        take_step(other, torch.tensor(0.0))
    check_equal(model, optimizer, never, other)
    assert updates(optimizer) == taken + 2


def check_equal(model: nn.Module, optimizer: torch.optim.AdamW, other: nn.Module, others: torch.optim.AdamW) -> None:
    """Weights, moments and counters, to the bit."""
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        held, expected = optimizer.state.get(ours, {}), others.state.get(theirs, {})
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", [{}, {"offload_optimizer": True}])
@pytest.mark.parametrize(("limit", "scale"), [(1.0, 3.0), (1.0, 1e-3), (0.25, 1.0)])
def test_clipping_is_torchs(limit: float, scale: float, kind: dict[str, Any]) -> None:
    ours, theirs = network(), network()
    config = dataclasses.replace(CONFIG, **kind)
    optimizer, other = make_optimizer(ours, config, compiled=False), adamw(theirs, CONFIG)
    for step in range(3):
        norm = gradient_norm(fill(ours, step, scale))
        expected = nn.utils.clip_grad_norm_(fill(theirs, step, scale), limit)
        torch.testing.assert_close(norm, expected)
        take_step(optimizer, torch.tensor(0.0), norm, limit)
        take_step(other, torch.tensor(0.0))
    for found, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", [NAN, INFINITE])
def test_a_norm_that_is_not_finite_harms_nothing_where_the_step_is_skipped(norm: float) -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fill(model, 1)
    take_step(adamw(model, CONFIG), torch.tensor(1.0), torch.tensor(norm), 1.0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), before, strict=True))


def test_the_norm_is_of_all_gradients_and_leaves_them() -> None:
    model = network()
    parameters = list(model.parameters())  # one of them without a gradient
    fill(model, 1, 100.0)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(parameters)
    torch.testing.assert_close(norm, torch.cat([one.flatten() for one in before]).norm())
    after = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(after) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))


def test_an_optimiser_goes_on_from_its_moments() -> None:
    model = network()
    optimizer = adamw(model, CONFIG)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for step in range(3):
        fill(model, step)
        take_step(optimizer, torch.tensor(0.0))
    held = moments(optimizer, names)
    learning = ("0.weight", "1.weight", "1.bias", "2.weight", "2.bias")
    assert set(held) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in learning}
    other = copy.deepcopy(model)
    resumed = adamw(other, CONFIG)
    room = empty_moments(resumed, {p: name for name, p in other.named_parameters()}, set(held), updates(optimizer))
    assert room.keys() == held.keys()
    for name, tensor in room.items():
        assert not tensor.any()
        assert not tensor.requires_grad
        tensor.copy_(held[name])
    check_equal(model, optimizer, other, resumed)
    for one, its in ((model, optimizer), (other, resumed)):
        fill(one, 7)
        take_step(its, torch.tensor(0.0))
    check_equal(model, optimizer, other, resumed)
