"""Evaluation on lm-evaluation-harness: its own tasks, with what a score needs beside it to be believed.

`suites` says what is asked for, `mirror` where data is, `tasks` what of it can run here, `language_model` and
`measuring` run one task on one model, `evaluating` several models on all of them, `caching` keeps what was done.
The harness is imported by what needs it, so the words of a suite can be checked without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.errors import Refused
from inheritune.evaluation.suites import SUITES, parse_suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inheritune.config import EvaluateConfig
    from inheritune.evaluation.evaluating import Plan
    from inheritune.scores import Reading

__all__ = ["SUITES", "check_harness", "during_training", "parse_suite"]


def check_harness() -> None:
    """See whether the harness is installed.

    Raises:
        Refused: it is not.
    """
    import importlib.util

    missing = [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"evaluation needs {' and '.join(missing)}; give: pip install lm-eval accelerate")


@dataclass(frozen=True)
class DuringTraining:
    """Evaluates a model between the steps of its training."""

    planned: Plan

    @property
    def gaps(self) -> dict[str, str]:
        """By line's name what it will lack, as known beforehand: why, and how to mend it."""
        reasons = {name: self.planned.gap_of(name) for name in self.planned.lines}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, _directory: Path) -> Reading:
        """Evaluate a model on its device; see `evaluate_model`."""
        from inheritune.evaluation.evaluating import evaluate_model

        return evaluate_model(model, tokenizer, self.planned)


def during_training(config: EvaluateConfig) -> DuringTraining:
    """What evaluates a model between the steps of a training.

    Args:
        config: the recipe's `evaluate`.

    Raises:
        Refused: the harness is missing, a task unknown, or there is no data.
    """
    check_harness()
    from inheritune.evaluation.evaluating import plan

    datasets = Path(config.datasets).expanduser() if config.datasets is not None else None
    return DuringTraining(plan(parse_suite(config.suite), datasets=datasets, limit=config.limit))
