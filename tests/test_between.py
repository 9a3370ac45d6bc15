"""When a measurement between steps is due, and that nothing of it is left behind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from inheritune.between import Between
from inheritune.errors import Interrupted
from test_training import model, weights

CPU = torch.device("cpu")


def copied(given: dict[str, torch.Tensor]) -> PreTrainedModel:
    made = model(seed=1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(given[name])
    return made


def between(measure: Callable[[PreTrainedModel, int, int], dict[str, float]]) -> Between:
    return Between(copied, measure)


def states() -> tuple[Any, ...]:
    numbers: Any = np.random.get_state(legacy=False)
    return random.getstate(), numbers["state"]["key"].tolist(), numbers["state"]["pos"], torch.get_rng_state().tolist()


def stir() -> None:
    """Seed everything, and draw."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    random.random(), np.random.rand(), torch.rand(3)


@pytest.mark.parametrize(
    ("every", "before", "now", "last", "due"),
    [
        (None, 0, 10**9, False, False),
        (None, 0, 100, True, True),
        (300, 0, 299, False, False),
        (300, 200, 300, False, True),
        (300, 299, 400, False, True),
        (300, 300, 400, False, False),
        (300, 100, 1000, False, True),
        (300, 300, 400, True, True),
    ],
)
def test_due_at_the_first_step_that_reaches_a_multiple(
    every: int | None, before: int, now: int, last: bool, due: bool
) -> None:
    assert Between(copied, lambda *_: {}, every).is_due(before, now, last=last) is due


def test_a_model_of_its_own_is_measured() -> None:
    given = weights(model())
    before = {name: value.clone() for name, value in given.items()}

    def measure(network: PreTrainedModel, step: int, tokens: int) -> dict[str, float]:
        assert isinstance(network, LlamaForCausalLM)
        assert not any(module.training for module in network.modules())
        assert not network(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in weights(network).items())
        for parameter in network.parameters():
            parameter.zero_()
        return {"step": step, "tokens": tokens}

    assert between(measure).measured(given, CPU, 3, 400) == ({"step": 3, "tokens": 400}, None)
    assert all(torch.equal(value, before[name]) for name, value in given.items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [None, RuntimeError, Interrupted])
def test_random_states_are_as_they_were(error: type[Exception] | None) -> None:
    def measure(*_: Any) -> dict[str, float]:
        stir()
        if error is not None:
            raise error("")
        return {}

    given, before = weights(model()), states()
    with pytest.raises(Interrupted) if error is Interrupted else contextlib.nullcontext():
        between(measure).measured(given, CPU, 1, 1)
    assert states() == before


@pytest.mark.gpu
def test_a_gpu_draws_on_where_it_was() -> None:
    device = torch.device("cuda", 0)
    given = weights(model())
    torch.rand(3, device=device)
    before = torch.cuda.get_rng_state(device)

    def measure(network: PreTrainedModel, *_: int) -> dict[str, float]:
        assert network.device == device
        torch.manual_seed(7)
        torch.rand(3, device=device)
        return {}

    assert between(measure).measured(given, device, 1, 1) == ({}, None)
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_what_fails_is_one_line() -> None:
    def measure(*_: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of\nmemory")

    assert between(measure).measured(weights(model()), CPU, 1, 1) == ({}, "OutOfMemoryError: CUDA out of memory")


def test_a_copy_that_cannot_be_made_is_one_line() -> None:
    made = Between(lambda _: (_ for _ in ()).throw(OSError("disk full")), lambda *_: {})
    assert made.measured({}, CPU, 1, 1) == ({}, "OSError: disk full")
