"""A model and what its training minimises, in one module: the head's scores exist for a chunk of tokens at a time.

The scores of a whole micro-batch, (B, T, V), are the largest tensor of a small model's training. Here the model runs up
to its last hidden state, (B, T, D); what stands behind it (head, bias, scale, soft-capping) is the model's own code,
run on one chunk of tokens after the other. A chunk's gradient is taken at once, so nothing of it has to be kept.

All of it happens inside one `forward`: under FSDP the root's parameters, the head among them, exist only there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.attention import banded
from inheritune.config import DistillConfig
from inheritune.errors import Refused
from inheritune.loss import distillation_losses, summed_loss, token_losses
from inheritune.parallel import autocast
from inheritune.reference import block_list, eval_mode

_CHUNK_SCORES = 1 << 25
"""Scores that exist at a time: 64 MiB in bfloat16, and as much for their gradient."""


class Losses(NamedTuple):
    """What a training forward gives: sums over the tokens that count, each a scalar."""

    minimised: torch.Tensor
    """What the gradient is of."""
    nats: torch.Tensor
    """Next-token cross-entropy."""
    divergence: torch.Tensor
    """The distillation term; 0 without one."""


class _Differentiated(NamedTuple):
    """A chunk's losses, and what their gradient is taken from."""

    losses: Losses
    root: torch.Tensor
    gradient: torch.Tensor | None
    """With respect to `root`; None where that is what is minimised."""


class Scores(NamedTuple):
    """What a model scores token by token."""

    nats: torch.Tensor
    """(B, T), or (n,) where some places alone were asked for; float32: cross-entropy; 0 where no label counts."""
    correct: torch.Tensor
    """Of the same shape, bool: whether the label was the most likely token."""


_ScoresOf = Callable[[slice | torch.Tensor, torch.Tensor], torch.Tensor]
"""Some tokens of a micro-batch, counted row by row, and their last hidden states, (1, n, D), to scores, (1, n, V)."""


class Objective(nn.Module):
    """A causal language model with its loss.

    Args:
        model: the model; trained if its parameters are to be.
        dtype: of matrix products.
        distill: how much to learn from `teacher`'s predictions, if at all.
        teacher: the model to learn from; on the same device, in eval mode, without gradients.
        chunk_scores: how many scores, tokens times vocabulary, may exist at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        *,
        distill: DistillConfig | None = None,
        teacher: PreTrainedModel | None = None,
        chunk_scores: int = _CHUNK_SCORES,
    ) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype
        self._distill = distill
        # In a tuple: a module's attribute would become a part of it, and be trained, sharded and saved with it.
        self._teacher = (_Parts(teacher),) if teacher is not None else ()
        self._parts = (_Parts(model),)
        self._chunk_scores = chunk_scores

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor | None = None,
        scored: bool = False,
        places: torch.Tensor | None = None,
    ) -> Losses | Scores:
        """Run the model on a micro-batch.

        Args:
            ids: (B, T), int64.
            labels: (B, T), int64, the next tokens; `loss.IGNORED` where none counts.
            positions: (B, T), int64, each token's place in its document, where documents must not see each other.
            scored: give every token's score, for validation, instead of sums to train by.
            places: (n,), int64: with `scored`, apply the head to these tokens alone, counted row by row; the scores are
                then of (n,). With none of them the head is not run, provided that the model is made of two parts.
        """
        with autocast(self._dtype, ids.device), banded(ids.device):
            student = self._parts[0]
            hidden, scores_of = student.run(ids, positions)
            if places is not None:
                assert scored
                return _place_scores(scores_of, hidden, labels, places.split(self._chunk_tokens))
            chunks = list(_slices(ids.numel(), self._chunk_tokens, whole=not student.split))
            if scored:
                return _token_scores(scores_of, hidden, labels, chunks)
            teacher_hidden, teacher_scores_of = None, None
            if self._teacher and self._distill is not None:
                with torch.no_grad():
                    teacher_hidden, teacher_scores_of = self._teacher[0].run(ids, positions)

            def differentiated(chunk: slice, hidden: torch.Tensor) -> _Differentiated:
                if teacher_scores_of is not None:
                    found = losses(chunk, hidden)
                    return _Differentiated(found, found.minimised, None)
                scores = scores_of(chunk, hidden)
                nats, gradient = summed_loss(scores, labels.reshape(1, -1)[:, chunk])
                return _Differentiated(Losses(nats, nats, torch.zeros_like(nats)), scores, gradient)

            def losses(chunk: slice, hidden: torch.Tensor) -> Losses:
                scores, wanted = scores_of(chunk, hidden), labels.reshape(1, -1)[:, chunk]
                nats = token_losses(scores, wanted).sum()
                if self._distill is None or teacher_scores_of is None or teacher_hidden is None:
                    return Losses(nats, nats.detach(), torch.zeros_like(nats))
                with torch.no_grad():
                    teacher_scores = teacher_scores_of(chunk, _flat(teacher_hidden)[:, chunk])
                divergence = distillation_losses(scores, teacher_scores, wanted, self._distill.temperature).sum()
                weight = self._distill.weight
                return Losses((1 - weight) * nats + weight * divergence, nats.detach(), divergence.detach())

            if student.split:
                sums: tuple[torch.Tensor, ...] = _Chunked.apply(  # type: ignore[no-untyped-call]
                    differentiated, chunks, hidden, *student.tail_parameters()
                )
                return Losses(*sums)
            return losses(chunks[0], _flat(hidden))

    @property
    def _chunk_tokens(self) -> int:
        vocabulary: int = self.model.config.get_text_config().vocab_size
        return max(1, self._chunk_scores // vocabulary)


class _Parts:
    """A causal language model as two: the decoder, which gives the last hidden state, and the tail behind it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        names = {id(module): name for name, module in model.named_modules()}
        decoder = names.get(id(model.get_decoder()), "")
        try:
            self.split = decoder != "" and block_list(model)[0].startswith(f"{decoder}.")
        except Refused:
            self.split = False
        """Whether the model is made so; if not, it is run as a whole."""
        owner, _, self._name = decoder.rpartition(".")
        self._owner = model.get_submodule(owner)
        # A mixture's config may ask for its routers' balancing loss: nothing here reads it.
        routers = getattr(model.config.get_text_config(), "output_router_logits", False)
        self._settings = {"use_cache": False, **({"output_router_logits": False} if routers else {})}

    @property
    def _base(self) -> nn.Module:
        base = self._owner._modules[self._name]
        assert base is not None
        return base

    def run(self, ids: torch.Tensor, positions: torch.Tensor | None) -> tuple[torch.Tensor, _ScoresOf]:
        """The last hidden state (B, T, D), and a function of some tokens and theirs, (1, n, D), to scores (1, n, V).

        Where the model is not made of two, the scores take the hidden state's place, and the function hands them on.
        """
        settings: dict[str, Any] = dict(self._settings)
        if positions is not None:
            settings["position_ids"] = positions
        if not self.split:
            return self._model(input_ids=ids, **settings).logits, lambda _chunk, scores: scores
        base = self._base
        outputs = base(input_ids=ids, **settings)
        flat_ids = ids.reshape(1, -1)

        def scores_of(chunk: slice | torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            given = copy.copy(outputs)
            given["last_hidden_state"] = hidden
            self._owner._modules[self._name] = _Given(base, given)
            try:
                logits = self._model(input_ids=flat_ids[:, chunk], **self._settings).logits
            finally:
                self._owner._modules[self._name] = base
            assert isinstance(logits, torch.Tensor)
            return logits

        hidden = outputs.last_hidden_state
        assert isinstance(hidden, torch.Tensor)
        return hidden, scores_of

    def tail_parameters(self) -> list[torch.Tensor]:
        """What the tail may compute with: the parameters outside the decoder, and the embeddings' that it may share."""
        inside = {id(parameter) for parameter in self._base.parameters()}
        outside = [parameter for parameter in self._model.parameters() if id(parameter) not in inside]
        shared = [
            parameter
            for module in (self._model.get_output_embeddings(), self._model.get_input_embeddings())
            if isinstance(module, nn.Module)
            for parameter in module.parameters()
        ]
        unique = {id(parameter): parameter for parameter in (*outside, *shared)}
        return [parameter for parameter in unique.values() if parameter.requires_grad]


class _Given(nn.Module):
    """Stands in a model where its base was, and gives outputs that the base gave before."""

    def __init__(self, base: nn.Module, outputs: Any) -> None:
        super().__init__()
        self._base, self._outputs = (base,), outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_base"][0], name)

    def forward(self, *_arguments: Any, **_settings: Any) -> Any:
        return self._outputs


class _Chunked(torch.autograd.Function):
    """Losses summed chunk by chunk, with the gradient taken in the forward pass: no chunk's scores outlive it."""

    @staticmethod
    def forward(
        context: Any,
        differentiated: Callable[[slice, torch.Tensor], _Differentiated],
        chunks: list[slice],
        hidden: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        flat = _flat(hidden)
        hidden_gradient = torch.zeros_like(flat)
        gradients: list[torch.Tensor | None] = [None] * len(parameters)
        totals = [torch.zeros((), device=hidden.device) for _ in Losses._fields]
        for chunk in chunks:
            with torch.enable_grad():
                piece = flat[:, chunk].detach().requires_grad_()
                found, root, gradient = differentiated(chunk, piece)
                of_piece, *of_parameters = torch.autograd.grad(root, [piece, *parameters], gradient, allow_unused=True)
                del root, gradient
            _add(totals, found)
            hidden_gradient[:, chunk] = of_piece
            for index, gradient in enumerate(of_parameters):
                held = gradients[index]
                if gradient is not None:
                    gradients[index] = gradient if held is None else held.add_(gradient)
        context.save_for_backward(hidden_gradient.reshape(hidden.shape))
        context.gradients = gradients
        context.mark_non_differentiable(*totals[1:])
        return tuple(totals)

    @staticmethod
    def backward(context: Any, *outer: torch.Tensor) -> Any:
        factor = outer[0]
        (hidden_gradient,) = context.saved_tensors
        # scaled in place: they are needed once, and the head's is as large as the head
        of_parameters = [gradient if gradient is None else gradient.mul_(factor) for gradient in context.gradients]
        context.gradients = None
        return None, None, hidden_gradient * factor, *of_parameters


def _add(totals: list[torch.Tensor], values: Losses) -> None:
    for total, value in zip(totals, values, strict=True):
        total.add_(value.detach())


def _token_scores(
    scores_of: _ScoresOf,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    chunks: list[slice],
) -> Scores:
    nats, correct = [], []
    for chunk in chunks:
        scores, wanted = scores_of(chunk, _flat(hidden)[:, chunk]), labels.reshape(1, -1)[:, chunk]
        nats.append(token_losses(scores, wanted))
        correct.append(scores.argmax(-1) == wanted)
    return Scores(torch.cat(nats, 1).reshape(labels.shape), torch.cat(correct, 1).reshape(labels.shape))


def _place_scores(
    scores_of: _ScoresOf, hidden: torch.Tensor, labels: torch.Tensor, chunks: Sequence[torch.Tensor]
) -> Scores:
    """The scores of some tokens alone, by their places: (n,)."""
    nats, correct = [torch.zeros(0, device=hidden.device)], [torch.zeros(0, dtype=torch.bool, device=hidden.device)]
    for chunk in chunks:
        if chunk.numel():
            scores, wanted = scores_of(chunk, _flat(hidden)[:, chunk]), labels.reshape(1, -1)[:, chunk]
            nats.append(token_losses(scores, wanted).flatten())
            correct.append((scores.argmax(-1) == wanted).flatten())
    return Scores(torch.cat(nats), torch.cat(correct))


def _flat(hidden: torch.Tensor) -> torch.Tensor:
    """(B, T, D) to (1, B * T, D)."""
    return hidden.reshape(1, -1, hidden.shape[-1])


def _slices(tokens: int, size: int, *, whole: bool) -> Iterator[slice]:
    """Tokens in pieces of near equal size, at most `size` each."""
    count = 1 if whole else -(-tokens // size)
    for index in range(count):
        yield slice(index * tokens // count, (index + 1) * tokens // count)


@torch.no_grad()
def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether a model told of documents by positions that begin anew computes each as if it stood alone.

    Tried on a few tokens: transformers builds the mask from the positions, but recurrent layers, ALiBi and the like
    know nothing of them.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, 12), generator=generator).to(model.device)
    positions = torch.tensor([[*range(5), *range(7)]], device=model.device)
    with eval_mode(model):
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        alone = torch.cat(
            [model(input_ids=part, use_cache=False).logits.float() for part in (ids[:, :5], ids[:, 5:])], 1
        )
    return bool((together - alone).abs().max() <= 1e-3 * alone.abs().max())
