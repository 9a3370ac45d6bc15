"""AdamW of three kinds, gradient clipping, the guard that skips a step gone wrong.

With the fused kernel all of it is on the device, and nothing waits for the host. Where memory is short, the moments are
quantised to 8 bits (torchao), or live in the host's memory, where the step is then computed.

    the kinds; steps, moments, their bytes      kinds.py
    moments and arithmetic on the host          offloaded.py
    the gradients' norm; steps not taken        guard.py
"""

from inheritune.optimizer.guard import Guard, gradient_norm
from inheritune.optimizer.kinds import (
    adamw,
    check_optimizer,
    empty_moments,
    host_bytes,
    make_optimizer,
    moment_bytes,
    moments,
    set_learning_rate,
    step_bytes,
    take_step,
    updates,
)
from inheritune.optimizer.offloaded import OffloadedAdamW

__all__ = [
    "Guard",
    "OffloadedAdamW",
    "adamw",
    "check_optimizer",
    "empty_moments",
    "gradient_norm",
    "host_bytes",
    "make_optimizer",
    "moment_bytes",
    "moments",
    "set_learning_rate",
    "step_bytes",
    "take_step",
    "updates",
]
