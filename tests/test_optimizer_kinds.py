"""Moments in 8 bits or in the host's memory: the steps, what checkpoints hold, the bytes, the refusals."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from inheritune.config import Recipe, TrainConfig
from inheritune.errors import Refused
from inheritune.optimizer import (
    OffloadedAdamW,
    check_optimizer,
    empty_moments,
    gradient_norm,
    host_bytes,
    make_optimizer,
    moment_bytes,
    moments,
    set_learning_rate,
    take_step,
    updates,
)
from inheritune.pipeline.checks import check_recipe

KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "8-bit": {"optimizer": "adamw_8bit"},
    "offloaded": {"offload_optimizer": True},
}
TAKEN, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    name: str = request.param
    if name == "8-bit":
        pytest.importorskip("torchao")
    return KINDS[name]


def network() -> nn.Sequential:
    """Parameters that are quantised (the first), too small, of no whole blocks; and one that does not learn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 7), nn.Linear(4097, 1, bias=False), nn.Linear(3, 3))
    model[3].requires_grad_(False)
    return model


def optimizer_of(model: nn.Module, kind: dict[str, Any]) -> torch.optim.Optimizer:
    return make_optimizer(model, TrainConfig(learning_rate=1e-2, **kind), compiled=False)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, skip: tuple[int, ...] = ()) -> None:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in learning:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(optimizer, 1e-2 / (1 + number))
        take_step(optimizer, SKIPPED if number in skip else TAKEN, gradient_norm(learning), 1.0)


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def test_an_offloaded_step_has_the_bits_of_one_on_the_device() -> None:
    ours, theirs = network(), network()
    offloaded, plain = optimizer_of(ours, KINDS["offloaded"]), optimizer_of(theirs, {})
    assert isinstance(offloaded, OffloadedAdamW)
    before = next(theirs.parameters()).detach().clone()
    steps(ours, offloaded, range(6), skip=(0, 3))
    steps(theirs, plain, range(6), skip=(0, 3))
    assert not torch.equal(before, next(theirs.parameters()))
    assert updates(offloaded) == updates(plain) == 4
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    expected = moments(plain, names_of(theirs))
    found = moments(offloaded, names_of(ours))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_parameters_without_gradient_are_left_alone() -> None:
    model = network()
    optimizer = optimizer_of(model, KINDS["offloaded"])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    second = model.get_parameter("1.weight")
    second.grad = torch.ones_like(second)
    take_step(optimizer, TAKEN)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert changed == [name == "1.weight" for name, _ in model.named_parameters()]
    assert list(moments(optimizer, names_of(model))) == ["exp_avg.1.weight", "exp_avg_sq.1.weight"]


def test_8_bits_follow_adamw() -> None:
    pytest.importorskip("torchao")
    ours, theirs = network(), network()
    steps(ours, optimizer_of(ours, KINDS["8-bit"]), range(20))
    steps(theirs, optimizer_of(theirs, {}), range(20))
    start = network()
    for one, other, first in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        moved = (other - first).norm()
        assert (one - other).norm() <= 0.05 * moved


def test_a_skipped_step_changes_nothing(kind: dict[str, Any]) -> None:
    model, other = network(), network()
    optimizer, never = optimizer_of(model, kind), optimizer_of(other, kind)
    steps(model, optimizer, range(6), skip=(0, 2, 3))
    for numbers in (range(1, 2), range(4, 6)):
        steps(other, never, numbers)
    assert updates(optimizer) == updates(never) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_goes_on_from_its_moments(kind: dict[str, Any]) -> None:
    model, other = network(), network()
    optimizer = optimizer_of(model, kind)
    steps(model, optimizer, range(3))
    held = {name: tensor.clone() for name, tensor in moments(optimizer, names_of(model)).items()}
    assert {type(tensor) for tensor in held.values()} == {torch.Tensor}
    other.load_state_dict(model.state_dict())
    resumed = optimizer_of(other, kind)
    room = empty_moments(resumed, names_of(other), set(held), updates(optimizer))
    assert room.keys() == held.keys()
    for name, tensor in room.items():
        assert not tensor.any()
        tensor.copy_(held[name])
    steps(model, optimizer, range(3, 6))
    steps(other, resumed, range(3, 6))
    assert updates(resumed) == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_moments_take_the_bytes_that_are_foretold(kind: dict[str, Any]) -> None:
    model = network()
    optimizer, config = optimizer_of(model, kind), TrainConfig(**kind)
    steps(model, optimizer, range(1))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = sum(tensor.nbytes for tensor in moments(optimizer, names_of(model)).values())
    if config.offload_optimizer:
        largest = 4 * 4097  # two slots, for a parameter and its gradient
        assert (moment_bytes(learning, config), host_bytes(learning, config)) == (0, held + 4 * largest)
    else:
        assert (moment_bytes(learning, config), host_bytes(learning, config)) == (held, 0)


def test_8_bits_are_two_plain_tensors_a_moment() -> None:
    pytest.importorskip("torchao")
    model = network()
    optimizer = optimizer_of(model, KINDS["8-bit"])
    steps(model, optimizer, range(1))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in moments(optimizer, names_of(model)).items()}
    assert found["exp_avg_codes.0.weight"] == (torch.uint8, (64, 64))
    assert found["exp_avg_sq_scale.0.weight"] == (torch.float32, (16,))
    assert found["exp_avg.2.weight"] == (torch.float32, (1, 4097))
    assert "exp_avg.0.weight" not in found


def test_torchao_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else real(name))
    check_optimizer(TrainConfig())
    check_optimizer(TrainConfig(offload_optimizer=True))
    with pytest.raises(
        Refused, match=r"^train.optimizer: adamw_8bit needs torchao; pip install 'inheritune\[torchao\]'"
    ):
        check_optimizer(TrainConfig(optimizer="adamw_8bit"))
    with pytest.raises(Refused, match="needs torchao"):  # before a run writes anything
        check_recipe(Recipe(reference="somewhere", train=TrainConfig(optimizer="adamw_8bit")))


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_sharded_parameters() -> None:
    mesh = init_device_mesh("cpu", (1,))
    model, whole = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
    whole.load_state_dict(model.state_dict())
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    optimizer, plain = optimizer_of(model, KINDS["offloaded"]), optimizer_of(whole, {})
    gradient = torch.randn(4, 6)
    model.weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
    whole.weight.grad = gradient.clone()
    take_step(optimizer, TAKEN)
    take_step(plain, TAKEN)
    weight: Any = model.weight
    assert torch.equal(weight.full_tensor(), whole.weight)
    held = moments(optimizer, names_of(model))
    assert all(isinstance(tensor, DTensor) and tensor.placements == (Shard(0),) for tensor in held.values())
    if importlib.util.find_spec("torchao"):
        with pytest.raises(Refused, match=r"adamw_8bit; allowed: adamw where ranks share the training state"):
            optimizer_of(model, KINDS["8-bit"])
