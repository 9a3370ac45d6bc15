"""What a training step takes of a device's memory, part by part, known before there is a weight or a device.

The whole step (forward, loss, backward, clipping) is run on fake tensors, which have shapes and dtypes and no values,
by the very code that trains: so nothing here knows of any family, and what the code keeps or drops is what is counted.
A storage counts from the operation that makes it until nothing refers to it. Not seen: what a kernel takes while it
runs, and the allocator's rounding and fragmentation. Compiled blocks keep less than eager ones: what they keep is asked
of the compiler's own partitioner (see `predicted`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.attention import torchs_own
from inheritune.config import TrainConfig
from inheritune.errors import InherituneError, Refused
from inheritune.objective import Losses, Objective
from inheritune.optimizer import gradient_norm, host_bytes, moment_bytes, step_bytes
from inheritune.recomputation import recompute_blocks
from inheritune.reference import block_list, one_line, weightless, whole_sequences
from inheritune.versions import partitioning_backend

_LOG = logging.getLogger(__name__)
LossOf = Callable[[torch.Tensor, torch.Tensor], Losses]
"""Ids and labels of a micro-batch, both (B, T), to what is minimised."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the moment when a step takes most, by what they are for."""

    weights: int
    """float32."""
    gradients: int
    """float32; where a step is one micro-batch, those there are at that moment."""
    optimizer: int
    """The moments."""
    activations: int
    """What the forward pass of the layers made: above all what it keeps for the backward pass."""
    logits: int
    """What the head made: a chunk's scores and their gradient, the head's own gradient until it joins the others."""
    working: int
    """What the backward pass and the optimiser make on their way; recomputed activations among it."""
    host: int = 0
    """Moments and buffers in the host's memory; not part of the total."""

    @property
    def total(self) -> int:
        """All that is on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.working


def predicted(
    config: PretrainedConfig,
    train: TrainConfig,
    *,
    sequence_length: int,
    micro_batch: int,
    dtype: torch.dtype,
    device: str = "cuda",
    trust_remote_code: bool = False,
    loss: Callable[[PreTrainedModel, torch.dtype], LossOf] = Objective,
    compiled_blocks: bool = False,
) -> Memory:
    """The peak of a training step of one rank that holds the whole state, without a teacher.

    Args:
        config: of the model; its weights are not needed.
        train: the recipe's settings; gradients accumulate where `batch_sequences` exceeds `micro_batch`.
        sequence_length: tokens of a sequence.
        micro_batch: sequences of a forward pass.
        dtype: of matrix products.
        device: `cuda` or `cpu`; they differ in attention alone: a CPU has no fused kernel for dropout, and computes
            short sequences in bfloat16 by bands.
        trust_remote_code: whether code that comes with the config may be run.
        loss: puts the model, with the dtype of its products, together with its loss; another one than training's to
            foresee what that would take.
        compiled_blocks: count what compiled blocks keep for the backward pass, as inductor's partitioner divides them;
            a second or more a layer. Otherwise what eager ones keep, which is more. Operations still run one by one: of
            what fused kernels never write a little is counted while a block runs. Where this torch has no such
            partitioner, or it fails, eager blocks are counted.

    Raises:
        Refused: what the model computes depends on its values, such as the tokens that a mixture's expert gets.
    """
    backend = partitioning_backend() if compiled_blocks else None
    settings: dict[str, Any] = {"sequence_length": sequence_length, "micro_batch": micro_batch, "dtype": dtype}
    settings |= {"device": device, "trust_remote_code": trust_remote_code, "loss": loss}
    if backend is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _run(config, train, backend=backend, **settings)
        except InherituneError:  # what eager blocks would not change
            raise
        except Exception as error:  # dynamo's and the partitioner's are of many kinds
            _LOG.info("%s: eager blocks are counted for compiled ones: %r", config.model_type, error)
    return _run(config, train, backend=None, **settings)


def _run(
    config: PretrainedConfig,
    train: TrainConfig,
    *,
    sequence_length: int,
    micro_batch: int,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    loss: Callable[[PreTrainedModel, torch.dtype], LossOf],
    backend: Callable[..., Any] | None,
) -> Memory:
    """A step on fake tensors; with a backend for the blocks as it divides them."""
    model = weightless(config, trust_remote_code=trust_remote_code).train()
    live = Live()
    compiled = train.compile == "always" or (train.compile == "auto" and device != "cpu")
    uncompiled = torch.compiler.set_stance("force_eager") if backend is None else contextlib.nullcontext()
    try:
        with uncompiled, _Fake(), whole_sequences():
            _materialise(model)
            trainable = list(model.parameters())
            live.add("optimizer", moment_bytes(trainable, train))
            if device != "cpu":
                _fuse_attention(model)
            if backend is not None:
                for block in block_list(model)[1]:
                    block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, dynamic=False)
            if train.activation_checkpointing:
                recompute_blocks(model)
            objective = loss(model, dtype)
            ids = torch.zeros((micro_batch, sequence_length), dtype=torch.int64)
            recompiled = torch._dynamo.config.patch(recompile_limit=4 * len(block_list(model)[1]))
            with recompiled, live.watching(model):
                for _ in range(2 if train.batch_sequences > micro_batch else 1):
                    forward_and_backward(objective, ids, live)
                gradient_norm(trainable)
                live.add("working", step_bytes(trainable, train, compiled=compiled))
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as error:
        raise Refused(
            f"{config.model_type}: its memory cannot be predicted, because what it computes depends on values "
            f"({' '.join(str(error).split())[:100]})"
        ) from None
    except RuntimeError as error:
        if backend is not None:
            raise
        # a kernel that knows no tensors without values, or takes no other dtype
        raise Refused(f"{config.model_type}: its memory cannot be predicted: {one_line(error)[:200]}") from None
    return Memory(**live.peak, host=host_bytes(trainable, train))


def forward_and_backward(objective: LossOf, ids: torch.Tensor, live: Live) -> None:
    """A micro-batch of (B, T) tokens, as training does it, with each part told when it begins."""
    live.part = "activations"
    minimised = objective(ids, ids).minimised
    live.part = "working"
    (minimised * (1.0 / ids.numel())).backward()


def _materialise(model: PreTrainedModel) -> None:
    """Give a model on the meta device tensors of the fake mode that is on, in float32; what is tied stays tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made.setdefault(id(parameter), nn.Parameter(torch.empty(parameter.shape)))
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class _Fake(FakeTensorMode):
    """Under which blocks may be compiled: dynamo takes fake inputs for what they are."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether dynamo may compile while this mode is on."""
        return True


class Live(TorchDispatchMode):
    """Bytes of the storages that are alive, by part, while operations run under it; real or fake.

    A storage belongs to the part that is under way when it is made: `activations` until the decoder is through,
    `logits` until the forward pass is, then `working`; a parameter's gradient to `gradients` once it is one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "activations"
        parts = ("weights", "gradients", "optimizer", "activations", "logits", "working")
        self.now = dict.fromkeys(parts, 0)
        self.peak = dict.fromkeys(parts, 0)
        """The parts when their sum was largest."""
        self._held: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._total = self._most = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether dynamo may compile while this mode is on; what compiled code makes is seen all the same."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a tensor made of tensors (torchao's moments): let it come as operations on those
        outputs = function(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self.note(output)
        return outputs

    def note(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count a tensor's storage, if it is new; with `part` count it there, new or not."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if part is None or self._held[key][1] == part:
                return
            self._drop(key)
        self._held[key] = (weakref.ref(storage, lambda _: self._drop(key)), part or self.part, storage.nbytes())
        self.add(part or self.part, storage.nbytes())

    def add(self, part: str, size: int) -> None:
        """Count so many bytes more (or fewer) that cannot be watched."""
        self.now[part] += size
        self._total += size
        if self._total > self._most:
            self._most = self._total
            self.peak = dict(self.now)

    @contextlib.contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Watch a model's training steps: its weights, and what is made."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.note(tensor, "weights")

        def decoded(*_: Any) -> None:
            self.part = "logits"

        def gradient(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.note(parameter.grad, "gradients")

        hooks = [model.get_decoder().register_forward_hook(decoded)]
        hooks += [one.register_post_accumulate_grad_hook(gradient) for one in model.parameters() if one.requires_grad]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _drop(self, key: int) -> None:
        _, part, size = self._held.pop(key)
        self.add(part, -size)


def _fuse_attention(model: PreTrainedModel) -> None:
    """Let attention be computed as on a GPU: fused, where a CPU keeps scores of short sequences or of dropout."""
    for block in block_list(model)[1]:
        block._compiled_call_impl = _under_fused_attention(block._call_impl)


def _under_fused_attention(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **settings: Any) -> Any:
        with (
            torchs_own(),
            _FusedAttention(),
        ):  # around each block by itself: a backward pass that recomputes one enters no mode
            return call(*arguments, **settings)

    return run


class _FusedAttention(TorchFunctionMode):
    """Attention without dropout: fake tensors have no values that it could change."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if function is F.scaled_dot_product_attention and "dropout_p" in settings:
            settings["dropout_p"] = 0.0
        return function(*args, **settings)
