"""A transformers model as the harness drives it, with what it leaves out: rows cut by the context, and progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inheritune.errors import Failed, Refused
from inheritune.evaluation.batch import batch_rows

Request = tuple[Any, list[int], list[int]]
"""A request's text, the tokens of its context, those of its continuation."""


class EvaluatedModel(HFLM):  # type: ignore[misc]
    """The harness's own model class, which computes every number; here rows are counted and progress is told.

    Args:
        model: in eval mode, on its device.
        tokenizer: its own; left as it is but for a padding token, where it has none.
        batch_size: rows at once; None: as many as fit (see `batch`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=1,
            prefix_token_id=_prefix_token(model, tokenizer),
        )
        self._asked_batch = batch_size
        self.progress: Callable[[float], None] = lambda _share: None
        """Told the share of a task's rows that are done."""
        self._rows, self._done = 0, 0
        self._cut: list[bool] = []
        self.cut: set[tuple[str, int]] = set()
        """Task and number of a row whose beginning was cut off, or its answer's."""

    @property
    def prefix(self) -> int | None:
        """The token that stands before a text without context; None: the tokenizer has none."""
        found = self.prefix_token_id
        return int(found) if found is not None else None

    def _fit_batch(self, tokens: int) -> None:
        """Take as many rows at once as fit, if the longest has so many tokens."""
        length = max(1, min(tokens, int(self.max_length)))
        self.batch_size_per_gpu = self._asked_batch or batch_rows(self.model, length)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, and whether each is what greedy decoding would write."""
        self._cut, self._rows, self._done = [], 0, 0
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self.cut |= {(str(one.task_name), int(one.doc_id)) for one, cut in zip(requests, self._cut, strict=True) if cut}
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context's length; no row is cut."""
        lengths = [len(self.tok_encode(one.args[0])) for one in requests]
        self._rows, self._done = sum(-(-length // self.max_length) for length in lengths), 0
        self._fit_batch(max(lengths, default=1))
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts that the model writes; of a context that leaves them no room the beginning is cut off."""
        self._rows, self._done = len(requests), 0
        longest = 1
        for one in requests:
            context, settings = one.args
            new = int(dict(settings or {}).get("max_gen_toks") or self.max_gen_toks)
            tokens = len(self.tok_encode(context))
            longest = max(longest, tokens + new)
            if tokens + new > self.max_length:
                self.cut.add((str(one.task_name), int(one.doc_id)))
        self._fit_batch(longest)
        found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return found

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        written: torch.Tensor = super()._model_generate(context, *args, **kwargs)
        self._tell(context.shape[0])
        return written

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitted = [self._fitted(request) for request in requests]
        if override_bs is None:  # of whole texts the windows come in batches, and were counted before
            self._rows = len({(*context, *continuation[:-1]) for _, context, continuation in fitted})
            self._fit_batch(max((len(context) + len(continuation) for _, context, continuation in fitted), default=1))
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
            fitted, disable_tqdm=True, override_bs=override_bs
        )
        if any(math.isnan(value) for value, _ in found):
            raise Failed(f"{self.model.name_or_path}: its logits are NaN, so it has no score; its weights are damaged")
        return found

    def _fitted(self, request: Request) -> Request:
        """A request whose continuation fits; the harness itself cuts contexts, but stops at a longer continuation."""
        text, context, continuation = request
        self._cut.append(len(context) + len(continuation) > self.max_length + 1)
        return text, context, continuation[-self.max_length :]

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self._tell(inps.shape[0])
        return logits

    def _tell(self, rows: int) -> None:
        """Tell that so many rows more are done."""
        self._done += rows
        if self._rows:
            self.progress(min(1.0, self._done / self._rows))


def _prefix_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The model config's start or end token, where the tokenizer itself has neither; else the harness finds it.

    Raises:
        Refused: there is none at all, so a text without context cannot be given to the model.
    """
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return None
    config = model.config.get_text_config()
    for token in (getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)):
        first = token[0] if isinstance(token, list) and token else token
        if isinstance(first, int):
            return first
    raise Refused(f"{model.name_or_path}: neither its tokenizer nor its config has a start or end token; set one")
