"""Evaluation while a target trains: what the recipe's `evaluate` has the trainer measure between its steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from inheritune.between import Between
from inheritune.config import EvaluateConfig
from inheritune.errors import Refused
from inheritune.pipeline.data import tokenizer
from inheritune.pipeline.shared import Run
from inheritune.reference import Reference, quiet
from inheritune.scores import Reading


class Evaluator(Protocol):
    """What evaluates a model (see `evaluation.during_training`)."""

    @property
    def gaps(self) -> Mapping[str, str]:
        """By name what cannot be evaluated here, or only in part, and why."""

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, /) -> Reading:
        """Evaluate a model on its device; `directory`, not made yet, is this evaluation's own for what it keeps."""


def evaluator(config: EvaluateConfig, reference: Reference | None) -> Evaluator:
    """What evaluates a model as a recipe says. The harness is imported here, and not before it is asked for.

    Args:
        config: the recipe's `evaluate`.
        reference: what the target inherits from; None: an architecture, which has a tokenizer in any case.

    Raises:
        Refused: no such suite or task, data that is not there, or a reference without a tokenizer.
    """
    if reference is not None and reference.tokenizer is None:
        raise Refused(f"evaluate: tasks are text, and {reference.source} has no tokenizer; set evaluate to null")
    from inheritune.evaluation import during_training

    return during_training(config)


def between(
    run: Run,
    every_tokens: int | None,
    evaluate: Evaluator | None,
    directory: Path,
    *,
    copy: Callable[[dict[str, torch.Tensor]], PreTrainedModel],
) -> Between:
    """What the trainer measures of a target.

    Args:
        run: the run, by whose tokenizer text is read.
        every_tokens: how often.
        evaluate: what `evaluator` gave; None on ranks other than the main one, where nothing is measured.
        directory: the training's; each evaluation gets one of its own in `evaluations/`.
        copy: makes the model to evaluate (see `Between.copy`).
    """
    words = functools.cache(lambda: _tokenizer(run))

    def measure(model: PreTrainedModel, step: int, _tokens: int) -> Reading:
        assert evaluate is not None
        return evaluate(model, words(), directory / "evaluations" / f"step_{step:08d}")

    return Between(copy, measure, every_tokens, evaluate.gaps if evaluate is not None else {})


def _tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The one that the run's text was prepared with and its models are exported with."""
    if run.reference is not None:
        assert run.reference.tokenizer is not None
        return run.reference.tokenizer
    with quiet():
        loaded = AutoTokenizer.from_pretrained(tokenizer(run))
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded
