"""Which AdamW a recipe names; its steps, what checkpoints hold of it, and the memory that it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from inheritune.config import TrainConfig
from inheritune.errors import Refused
from inheritune.optimizer.offloaded import OffloadedAdamW, local

_KINDS = ("exp_avg", "exp_avg_sq")
_BLOCK, _LEAST_QUANTISED = 256, 4096
"""Values that share a scale in an 8-bit moment; a tensor of fewer than the second, or not of whole blocks, is not
quantised. Both are torchao's."""
_CLIP_EPSILON = 1e-6
"""torch's clipping adds it to the norm."""
_STEP_8BIT_COMPILED, _STEP_8BIT_EAGER = 8, 53
"""Bytes a value that torchao's step takes for a moment, of one parameter after the other: measured on a CPU, torchao
0.18, by torch's profiler."""


def check_optimizer(config: TrainConfig) -> None:
    """What an optimiser needs must be installed.

    Raises:
        Refused: it is not.
    """
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
        raise Refused("train.optimizer: adamw_8bit needs torchao; pip install 'inheritune[torchao]', or choose adamw")


def make_optimizer(model: nn.Module, config: TrainConfig, *, compiled: bool) -> torch.optim.Optimizer:
    """The optimiser that the recipe names.

    Args:
        model: on its device, sharded if it is to be.
        config: the recipe's settings.
        compiled: whether a compiler works here: torchao's step is slow, and takes much memory for a moment, without.

    Raises:
        Refused: torchao is needed and not installed, or cannot deal with sharded parameters.
    """
    if config.offload_optimizer:
        return OffloadedAdamW(_groups(model, config), **_settings(config))
    if config.optimizer == "adamw_8bit":
        check_optimizer(config)
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            # a block of values may lie on two ranks, so other ranks could not go on from a checkpoint
            raise Refused("train.optimizer: adamw_8bit; allowed: adamw where ranks share the training state (fsdp)")
        return _adamw_8bit(_groups(model, config), compiled=compiled, **_settings(config))
    return adamw(model, config)


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices alone: norms and biases are vectors, and decaying them has no use."""
    return torch.optim.AdamW(_groups(model, config), fused=True, **_settings(config))


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in parameters if one.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {"lr": config.peak_learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}


def _adamw_8bit(groups: list[dict[str, Any]], *, compiled: bool, **settings: Any) -> torch.optim.Optimizer:
    """AdamW with block-wise quantised moments (Dettmers et al. 2022, arXiv 2110.02861), as torchao has it."""
    from torchao.optim import AdamW8bit

    class EightBit(AdamW8bit):  # type: ignore[misc, unused-ignore]  # a class only where torchao is installed
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            with torch.compiler.set_stance("default" if compiled else "force_eager"):
                return super().step(closure)  # type: ignore[no-any-return, unused-ignore]

    made = EightBit(groups, **settings)
    assert isinstance(made, torch.optim.Optimizer)
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao's: a number would be compiled in
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def take_step(
    optimizer: torch.optim.Optimizer, skipped: torch.Tensor, norm: torch.Tensor | None = None, limit: float = 0.0
) -> None:
    """Take a step, or none where `skipped` is 1.0; weights, moments and counters then stay as they are.

    The fused kernel reads the verdict by itself, the others are told by the host, which has to wait for it. Clipping is
    done by the kernel as it reads the gradients; torchao's finds them clipped.

    Args:
        optimizer: what `make_optimizer` made; its gradients are gone afterwards.
        skipped: the guard's verdict.
        norm: the gradients' global norm, a scalar.
        limit: what it is clipped to; 0: no clipping.
    """
    on_device = type(optimizer) is torch.optim.AdamW
    if on_device:
        optimizer.found_inf = skipped  # type: ignore[attr-defined]
    if norm is not None and limit > 0:
        if isinstance(optimizer, torch.optim.AdamW):
            divisor = ((norm + _CLIP_EPSILON) / limit).clamp(min=1.0)
            optimizer.grad_scale = divisor if on_device else divisor.cpu()  # type: ignore[attr-defined]
        else:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    if on_device or not bool(skipped):
        optimizer.step()
    optimizer.zero_grad()


def updates(optimizer: torch.optim.Optimizer) -> int:
    """How many steps were taken; skipped ones do not count. Waits for the device."""
    for state in optimizer.state.values():
        return int(state["step"])
    return 0


def moments(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, torch.Tensor]:
    """AdamW's moments by `exp_avg.NAME` and `exp_avg_sq.NAME`; a parameter without gradients has none.

    A quantised one is two plain tensors, `exp_avg_codes.NAME` and `exp_avg_scale.NAME`.
    """
    found: dict[str, torch.Tensor] = {}
    for parameter, name in names.items():
        for kind in _KINDS if parameter in optimizer.state else ():
            held: Any = optimizer.state[parameter][kind]
            if hasattr(held, "codes"):
                found |= {f"{kind}_codes.{name}": held.codes, f"{kind}_scale.{name}": held.scale}
            else:
                found[f"{kind}.{name}"] = held
    return found


def empty_moments(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], held: set[str], taken: int
) -> dict[str, torch.Tensor]:
    """Make room for the moments that a checkpoint holds, to be loaded into; `taken` is how many steps were taken."""
    for parameter, name in names.items():
        if f"exp_avg.{name}" in held or f"exp_avg_codes.{name}" in held:
            optimizer.state[parameter] = _empty_state(optimizer, parameter, taken)
    return moments(optimizer, names)


def _empty_state(optimizer: Any, parameter: nn.Parameter, taken: int) -> dict[str, torch.Tensor]:
    if isinstance(optimizer, OffloadedAdamW):
        return optimizer.empty_state(parameter, taken)
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.tensor(float(taken), device=parameter.device)
        first, second = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
    else:
        step = torch.tensor(float(taken))
        first, second = (optimizer._new_buffer(parameter.detach(), signed) for signed in (True, False))
    return {"step": step, "exp_avg": first, "exp_avg_sq": second}


def moment_bytes(parameters: Iterable[torch.Tensor], config: TrainConfig) -> int:
    """What the moments will take of the device's memory; of a sharded parameter what this rank holds of it."""
    if config.offload_optimizer:
        return 0
    return sum(2 * _moment_bytes(local(parameter).numel(), config.optimizer) for parameter in parameters)


def _moment_bytes(values: int, optimizer: str) -> int:
    if optimizer == "adamw_8bit" and values >= _LEAST_QUANTISED and values % _BLOCK == 0:
        return values + 4 * (values // _BLOCK)  # a byte each, and a float32 scale a block
    return 4 * values


def host_bytes(parameters: Iterable[torch.Tensor], config: TrainConfig) -> int:
    """What an offloaded optimiser takes of the host's memory: two moments, and the slots of parameters on their way."""
    sizes = [4 * local(parameter).numel() for parameter in parameters]
    return 2 * sum(sizes) + 4 * max(sizes) if config.offload_optimizer else 0


def step_bytes(parameters: Iterable[torch.Tensor], config: TrainConfig, *, compiled: bool) -> int:
    """What the optimiser's step takes of the device's memory for a moment, beside all that stays."""
    largest = max(local(parameter).numel() for parameter in parameters)
    each = _STEP_8BIT_COMPILED if compiled else _STEP_8BIT_EAGER
    return each * largest if config.optimizer == "adamw_8bit" else 0
