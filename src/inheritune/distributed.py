"""Where this process computes: its rank and its device. The only file that reads the launcher's environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from inheritune.errors import Refused


@dataclass(frozen=True)
class World:
    """This process among the run's processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes records for all."""
        return self.rank == 0


def world() -> World:
    """Read the launcher's environment and pick the device: the GPU where there is one, else the CPU.

    Raises:
        Refused: started by a launcher with more than one process, which this version does not train with.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise Refused(f"WORLD_SIZE={size}: this version trains in one process; start it without torchrun")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return World(rank=0, size=1, device=device)
