"""How a model computes (precision, compilation, many ranks), applied to it from outside and never written into it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from inheritune.distributed import World
from inheritune.errors import Refused
from inheritune.reference import block_list
from inheritune.versions import no_buffer_synchronisation

# Below this much arithmetic a run is over before compilation, some 10 to 30 seconds on two cores, has repaid itself.
_COMPILE_WORTH_FLOPS = 2e14


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; by `auto` bfloat16 where the hardware has instructions for it, else float32.

    On a CPU without them (AVX512-BF16 or AMX on x86, BF16 on Arm) bfloat16 is emulated and slower than float32.
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.backends.cpu.get_cpu_capability()
    flags = _cpu_flags()
    gains = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) and capabilities != "DEFAULT"
    return torch.bfloat16 if gains else torch.float32


def _cpu_flags() -> set[str]:
    """The processor's instruction sets as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return set()
    return {
        flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split(":")[1].split()
    }


def autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Compute matrix products in `dtype` while weights stay as they are; nothing to do for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model to a device, in place: transformers types its own `to` as taking none."""
    nn.Module.to(model, device)
    return model


def sharded(model: PreTrainedModel, world: World, setting: str) -> bool:
    """Whether ranks share the training state instead of holding it whole.

    By `auto` they do where it takes more than half of a device's memory: 16 bytes a parameter, which are float32
    weight, gradient and AdamW's two moments. On CPUs `auto` holds it whole.
    """
    if world.size == 1 or setting == "ddp":
        return False
    if setting == "fsdp":
        return True
    state = 16 * sum(parameter.numel() for parameter in model.parameters())
    return world.device.type == "cuda" and state > torch.cuda.get_device_properties(world.device).total_memory / 2


def check_ranks(world: World, fsdp_ranks: int | None) -> None:
    """The ranks that share a copy must divide the ranks there are.

    Raises:
        Refused: they do not.
    """
    if fsdp_ranks is not None and world.size % fsdp_ranks:
        allowed = f"a divisor of the {world.size} ranks that were started, or null"
        raise Refused(f"train.fsdp_ranks: {fsdp_ranks}; allowed: {allowed}")


def distribute(
    objective: nn.Module, model: PreTrainedModel, world: World, *, shard: bool, fsdp_ranks: int | None = None
) -> nn.Module:
    """Put a model on the ranks' devices; returns the module to call for a training step.

    Sharded: FSDP2, each block a group of its own and the rest with the root, which is `objective`, so that the head is
    gathered once a forward. Not sharded: DDP, whose reduction waits for the last micro-batch of a step.

    Args:
        objective: what contains the model and gives the loss.
        model: the model in it, on the CPU.
        world: the ranks.
        shard: what `sharded` said.
        fsdp_ranks: how many ranks share one copy; None: all of them.
    """
    if world.size == 1:
        place(model, world.device)
        return objective
    if not shard:
        place(model, world.device)
        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(
            objective,
            device_ids=devices,
            **no_buffer_synchronisation(),
            gradient_as_bucket_view=True,
            find_unused_parameters=_some_unused(objective, world.device),
        )
    check_ranks(world, fsdp_ranks)
    if fsdp_ranks is None or fsdp_ranks == world.size:
        mesh = init_device_mesh(world.device.type, (world.size,))
    else:
        shape = (world.size // fsdp_ranks, fsdp_ranks)
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "shards"))
    for block in block_list(model)[1]:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def share_blocks(model: PreTrainedModel, world: World) -> None:
    """Shard the blocks of a model that is only read, such as a teacher; embeddings and head stay whole on each rank."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in block_list(model)[1]:
        # each is a root of its own, and roots stay whole after a forward if nothing else is said
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    place(model, world.device)


def reshard(objective: nn.Module) -> None:
    """Let a sharded root's tensors be shards again, which a forward without gradients leaves whole."""
    if isinstance(objective, FSDPModule):
        objective.reshard()


def _some_unused(objective: nn.Module, device: torch.device) -> bool:
    """Whether a pass leaves parameters without gradient: DDP looks for them at every step if told, and hangs if not."""
    ids = torch.zeros((1, 8), dtype=torch.int64, device=device)
    objective(ids, ids).minimised.backward()
    unused = any(parameter.grad is None for parameter in objective.parameters() if parameter.requires_grad)
    objective.zero_grad()
    return unused


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters by name, each whole, a tied one once; on many ranks a collective call."""
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        yield name, value.full_tensor() if isinstance(value, DTensor) else value


def is_compiled(setting: str, device_type: str, flops: float) -> bool:
    """Whether blocks are to be compiled, by the setting and, where it is `auto`, by the FLOPs of the whole training."""
    return setting == "always" or (setting == "auto" and (device_type != "cpu" or flops >= _COMPILE_WORTH_FLOPS))


def compile_blocks(
    model: PreTrainedModel, setting: str, device: torch.device, *, flops: float, report: Callable[[str], None]
) -> bool:
    """Compile the repeated blocks in place if asked for or, by `auto`, if `flops` of work will repay it.

    Whether a compiler works is found out on a two-line function first: one line says what is missing, and the run goes
    on in eager mode. Returns whether the blocks are compiled.
    """
    if not is_compiled(setting, device.type, flops):
        return False
    missing = compiler_missing(device)
    if missing is not None:
        report(f"Not compiled, training in eager mode: {missing}.")
        return False
    _, blocks = block_list(model)
    # Blocks differ in their index alone, which dynamo guards as an attribute: one entry a block, and as many again for
    # validation without gradients.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        assert isinstance(block, nn.Module)
        block.compile(dynamic=False)
    return True


def uncompile_blocks(model: PreTrainedModel) -> None:
    """Undo `compile_blocks`: a compiled block rounds elsewhere than an eager one, and exports are compared by bits."""
    for block in block_list(model)[1]:
        block._compiled_call_impl = None


def compiler_missing(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, in a few words; None where it works."""

    def two_lines(x: torch.Tensor) -> torch.Tensor:
        y = x * 2 + 1
        return torch.nn.functional.relu(y).sum()

    try:
        torch.compile(two_lines)(torch.ones(64, device=device))
    except Exception as error:  # dynamo, inductor, the C compiler and the file system each raise their own
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """What a failed compilation lacks: a compiler, Python.h, a writable cache; else the error's first line."""
    text = str(error)
    if "Python.h" in text:
        return "the C compiler does not find Python.h (Debian: apt-get install python3-dev)"
    if "Permission denied" in text or "Read-only file system" in text:
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
        return f"the compile cache in {cache} cannot be written (set TORCHINDUCTOR_CACHE_DIR)"
    if "InvalidCxxCompiler" in type(error).__name__ or "No working C++ compiler" in text:
        return "no C++ compiler is installed (Debian: apt-get install g++)"
    # dynamo's own first line says only which backend failed
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
