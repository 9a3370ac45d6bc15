"""Calls that differ between the versions of torch that are supported (2.11 and later), each behind one name."""

from __future__ import annotations

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel


def no_buffer_synchronisation() -> dict[str, Any]:
    """DDP's argument for leaving buffers alone in a forward: torch 2.13 renamed it."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
