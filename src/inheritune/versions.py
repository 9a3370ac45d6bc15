"""Calls that differ between the versions of torch that are supported (2.11 and later), each behind one name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch.nn.parallel import DistributedDataParallel


def no_buffer_synchronisation() -> dict[str, Any]:
    """DDP's argument for leaving buffers alone in a forward: torch 2.13 renamed it."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def partitioning_backend() -> Callable[..., Any] | None:
    """A backend for `torch.compile` that divides forward and backward as inductor does, and then runs eager operations.

    What is kept between the two is what compiled code keeps. None where this torch's internals are others.
    """
    try:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch._aot_autograd.utils import make_boxed_func
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.decomposition import select_decomp_table
    except ImportError:
        return None

    def as_it_is(graph: Any, _inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    backend: Callable[..., Any] = aot_autograd(
        fw_compiler=as_it_is,
        bw_compiler=as_it_is,
        partition_fn=functools.partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )
    return backend
