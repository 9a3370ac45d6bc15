"""Names that differ between versions of torch."""

from __future__ import annotations

import inspect

import pytest
from torch.nn.parallel import DistributedDataParallel

from inheritune import versions
from inheritune.versions import no_buffer_synchronisation


class Newer:
    """DDP as torch has it from 2.13."""

    def __init__(
        self, module: object, broadcast_buffers: bool | None = None, forward_sync_buffers: bool = True
    ) -> None:
        """Take the older name as well, which warns."""


class Older:
    """DDP as torch had it before."""

    def __init__(self, module: object, broadcast_buffers: bool = True) -> None:
        """Know nothing of the newer name."""


@pytest.mark.parametrize(("ddp", "name"), [(Newer, "forward_sync_buffers"), (Older, "broadcast_buffers")])
def test_buffers_are_left_alone_by_the_name_that_is_known(
    ddp: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "DistributedDataParallel", ddp)
    assert no_buffer_synchronisation() == {name: False}
    ddp(None, **no_buffer_synchronisation())


def test_this_torch_knows_the_name() -> None:
    (name,) = no_buffer_synchronisation()
    assert name in inspect.signature(DistributedDataParallel.__init__).parameters
