"""AdamW with its moments in the host's memory, and its step computed there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as update_adamw


class _Slot:
    """Room in the host's memory for one parameter on its way: its values and its gradient."""

    def __init__(self, values: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._values = [torch.empty(values, pin_memory=on_gpu) for _ in range(2)]
        self.arrived = torch.cuda.Event() if on_gpu else None

    def views(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for a parameter's values and for its gradient."""
        weight, gradient = (flat[: like.numel()].view(like.shape) for flat in self._values)
        return weight, gradient


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose moments are in the host's memory, where its step is computed: by the same kernel as on a CPU.

    The device holds weights and gradients, both in float32: 8 bytes a parameter, and the host 8 for the moments.
    Parameters come to the host one after the other, through two slots: while one is computed, the next arrives. What
    the device holds stays the truth, so nothing can get out of step with it.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.grad_scale: torch.Tensor | None = None
        """What gradients are divided by, a scalar in the host's memory; None: nothing."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        device = parameters[0].device
        self._slots = [_Slot(max(local(one).numel() for one in parameters), device) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not called."""
        todo = [(group, one) for group in self.param_groups for one in group["params"] if one.grad is not None]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for index, (group, parameter) in enumerate(todo):
            if index == 0:
                self._fetch(parameter, 0)
            if index + 1 < len(todo):
                self._fetch(todo[index + 1][1], index + 1)
            slot = self._slots[index % 2]
            if slot.arrived is not None:
                slot.arrived.synchronize()
            weight, gradient = slot.views(local(parameter))
            self._update(group, parameter, weight, gradient)
            with torch.cuda.stream(self._stream):  # of None: the only one there is
                local(parameter).copy_(weight, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _fetch(self, parameter: nn.Parameter, index: int) -> None:
        """Have a parameter and its gradient brought to the slot that is its turn's.

        The copy back from that slot was ordered before, in the same stream, so it is not overwritten too early.
        """
        slot = self._slots[index % 2]
        assert parameter.grad is not None
        weight, gradient = slot.views(local(parameter))
        with torch.cuda.stream(self._stream):
            weight.copy_(local(parameter), non_blocking=True)
            gradient.copy_(local(parameter.grad), non_blocking=True)
        if slot.arrived is not None:
            slot.arrived.record(self._stream)

    def _update(
        self, group: dict[str, Any], parameter: nn.Parameter, weight: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        if parameter not in self.state:
            self.state[parameter] = self.empty_state(parameter, 0)
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        update_adamw(
            [weight],
            [gradient],
            [local(state["exp_avg"])],
            [local(state["exp_avg_sq"])],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            grad_scale=self.grad_scale,
        )

    def empty_state(self, parameter: nn.Parameter, taken: int) -> dict[str, torch.Tensor]:
        """A parameter's state before its first step, in the host's memory; sharded as the parameter is."""
        first, second = (_host_zeros(parameter) for _ in range(2))
        return {"step": torch.tensor(float(taken)), "exp_avg": first, "exp_avg_sq": second}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    if isinstance(tensor, DTensor):
        local: torch.Tensor = tensor.to_local()
        return local
    return tensor.detach()


def _host_zeros(like: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(local(like).shape)
    if not isinstance(like, DTensor):
        return zeros
    mesh = like.device_mesh if like.device_mesh.device_type == "cpu" else _on_host(like.device_mesh)
    whole: DTensor = DTensor.from_local(
        zeros, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole


@functools.cache
def _on_host(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks' CPUs, made once: one of two dimensions makes groups of its own, each with sockets and threads."""
    return init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)
