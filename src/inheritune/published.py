"""The poster's tables 1 to 4 and scores of other small models as data, and what figures say of their rows. No torch.

Figures are `Decimal`, because how many decimals were printed is part of what they say: 28.4 may be 28.42, 34.60 is not
34.64. A gap in the print is None.

The poster names neither the harness's version nor, for most columns, the metric. Both are read off the figures where
that can be done: an accuracy over n rows is one of n + 1 values, and a column belongs to a split if all of its figures
are such values (`agreement`). Where two readings agree as well as each other, the column is not identified
(`Column.unknown` says why), and nothing is compared with it.

The outside baselines are models that others trained or measured: what a target has to be better than to be worth its
making. Their cards name the metrics, which arithmetic cannot tell (`acc` and `acc_norm` count the same rows); that the
figures are counts of the splits' rows, it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

SOURCE = "Sanyal, Sanghavi, Dimakis: Pre-training Small Base LMs with Fewer Tokens (arXiv 2404.08634), the poster"
CAVEAT = (
    "the poster names no version of the harness, whose tasks have versions of their own (boolq and wnli are at 2.0): "
    "a difference may be the prompt's"
)
LUCK = 0.05
"""A column whose figures would agree with any other number of rows as often as this says nothing about its rows."""

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Compute:
    """A line of table 1: what pre-training took."""

    model: str
    tokens: int
    gpus: int
    gpu: str
    days: str | None
    """As printed: `half` is half a day; None where the print has a dash."""


@dataclass(frozen=True)
class Column:
    """A column of table 2 or 4, with the task of the harness that it belongs to today."""

    table: int
    group: str
    """The heading above the heading."""
    heading: str
    """As printed."""
    models: tuple[str, ...]
    figures: tuple[Decimal | None, ...]
    """As printed, in the order of `models`: percent, but of Wikitext perplexities."""
    task: str
    """The harness's name today."""
    shots: int
    metric: str | None
    """None where the figures leave several open."""
    rows: int
    """Of the split that the task is evaluated on."""
    better: Better = "higher"
    percent: bool = True
    """Whether a figure is a hundred times a share."""
    unknown: str | None = None
    """Why metric or rows are not identified; None: they are."""

    @property
    def by_model(self) -> dict[str, Decimal | None]:
        """The figures by the model's name."""
        return dict(zip(self.models, self.figures, strict=True))

    def value(self, model: str) -> float | None:
        """A model's figure in the unit of our scores (accuracies are shares); None for a gap."""
        figure = self.by_model[model]
        return None if figure is None else float(figure / 100 if self.percent else figure)


@dataclass(frozen=True)
class Repetition:
    """A line of table 3: several passes over few tokens, or fresh ones."""

    model: str
    data: str
    """As printed: `10 epochs`, `10B fresh`."""
    mmlu: Decimal
    """5-shot, percent; no more identified than table 2's."""


@dataclass(frozen=True)
class Trained:
    """A line of table 4."""

    family: str
    layers: int
    initialisation: str
    steps: str
    loss: Decimal
    """On the validation set, nats a token."""
    final: bool = False
    """Whether the print has it in bold, as the final model."""

    @property
    def name(self) -> str:
        """As one line of text."""
        return f"{self.family}, {self.layers} layers, {self.initialisation}, {self.steps} steps"


@dataclass(frozen=True)
class Fit:
    """What a printed figure says of a count of right rows."""

    counts: tuple[int, ...]
    """The counts that it may be; more than one where rows are many or decimals few."""
    how: Literal["rounded", "cut off", "none"]
    """`cut off`: no count rounds to it, but one becomes it when further decimals are dropped."""


@dataclass(frozen=True)
class Agreement:
    """Whether a column's figures are counts of so many rows."""

    rows: int
    fits: dict[str, Fit]
    """By model; gaps are left out."""
    luck: float
    """The chance that figures drawn at random, at the same decimals, would round from counts as often as these do."""

    @property
    def holds(self) -> bool:
        """Whether every figure is a count, rounded or cut off, and that is no matter of luck."""
        return self.luck < LUCK and all(fit.how != "none" for fit in self.fits.values())


@dataclass(frozen=True)
class Average:
    """Figure 1 for one model, in the unit of what was averaged."""

    nine: float | None
    mmlu: float | None
    reason: str | None = None
    """Why `nine` or `mmlu` is not there."""


@dataclass(frozen=True)
class Reported:
    """A score of an outside baseline: percent, of the whole split, without examples (0 shots)."""

    heading: str
    """As its source has it."""
    figure: Decimal
    """As printed."""
    task: str
    """The harness's name."""
    metric: str
    """As the source names it."""
    rows: int
    """Of the split that the task is evaluated on."""

    @property
    def value(self) -> float:
        """As a share."""
        return float(self.figure / 100)

    @property
    def standard_error(self) -> float:
        """Of a share of as many rows, as the harness has it; of a mean of shares, as mc2 is, the most that it can be.

        A variable between 0 and 1 of mean m has at most the variance m (1 - m), that of right and wrong.
        """
        return share_error(self.value, self.rows)


@dataclass(frozen=True)
class OutsideBaseline:
    """A model that others trained, with scores that were published of it."""

    model: str
    """On the hub."""
    parameters: int
    tokens: int
    """That it was pre-trained on."""
    training: str
    """What is known of its training, in words."""
    source: str
    """Where the scores are from."""
    harness: str | None
    """The harness's version; None where the source names none."""
    scores: tuple[Reported, ...]

    def score_of(self, task: str) -> Reported | None:
        """The score on a task of the harness; None where there is none."""
        return next((score for score in self.scores if score.task == task), None)


def _printed(text: str) -> tuple[Decimal | None, ...]:
    """A line of the print; a dash is a gap."""
    return tuple(None if word == "-" else Decimal(word) for word in text.split())


_BILLION = 1_000_000_000
TABLE1 = (
    Compute("MPT-1.3B (200B)", 200 * _BILLION, 440, "A100", "half"),
    Compute("Pythia-1.4B (300B)", 300 * _BILLION, 64, "A100", "4.6"),
    Compute("TinyLLaMA-1.1B (3T)", 3000 * _BILLION, 16, "A100", "90"),
    Compute("OPT-1.3B (300B)", 300 * _BILLION, 992, "A100", None),
    Compute("Sheared LLaMA-1.3B (50B)", 50 * _BILLION, 16, "A100", None),
    Compute("OpenLLaMA-3B (1T)", 1000 * _BILLION, 256, "TPU v4", "10"),
    Compute("Our-1.5B (1B)", _BILLION, 1, "A6000", "~half"),
)

REFERENCE = "OpenLLaMA-3B (1T)"
BASELINES = ("OPT-1.3B (300B)", "Pythia-1.4B (300B)", "MPT-1.3B (200B)", "Sheared LLaMA-1.3B (50B)")
TARGET = "Ours-1.5B (1B)"

_MODELS = (REFERENCE, *BASELINES, TARGET)
_REASONING, _LANGUAGE, _FACTS = "Commonsense Reasoning", "Lang. Understanding & Inference", "Factuality"


def _column(
    group: str,
    heading: str,
    figures: str,
    task: str,
    metric: str | None,
    rows: int,
    *,
    shots: int = 0,
    unknown: str | None = None,
) -> Column:
    return Column(2, group, heading, _MODELS, _printed(figures), task, shots, metric, rows, unknown=unknown)


# In the order of the print. Figures: the reference, the four baselines, the target.
TABLE2 = (
    _column(_REASONING, "Winograd", "63.46 38.46 36.54 63.46 36.54 50.96", "wsc", "acc", 104),
    _column(
        _REASONING,
        "PIQA",
        "74.97 71.82 70.89 71.44 73.45 56.47",
        "piqa",
        None,
        1838,
        unknown="acc and acc_norm are counts of the same 1838 rows: the figures do not tell which was printed",
    ),
    _column(_REASONING, "Boolq", "67.18 57.83 63.12 50.89 62.02 61.68", "boolq", "acc", 3270),
    _column(_REASONING, "WinoGrande", "62.27 59.51 56.99 58.09 58.17 51.69", "winogrande", "acc", 1267),
    _column(
        _REASONING,
        "Logiqa",
        "28.4 27.04 27.65 28.26 27.34 25.19",
        "logiqa",
        None,
        651,
        unknown="acc and acc_norm are counts of the same 651 rows, and the validation split has as many rows as the "
        "test split: the figures do not tell which was printed",
    ),
    _column(
        _LANGUAGE,
        "MMLU(5)",
        "27.21 24.96 25.56 25.82 25.71 25.67",
        "mmlu",
        None,
        14042,
        shots=5,
        unknown="any figure with two decimals is a count of 14042 rows: the figures do not tell a mean over questions "
        "from a mean over the 57 subjects",
    ),
    _column(_LANGUAGE, "WNLI", "50.7 42.25 53.52 40.85 49.3 43.66", "wnli", "acc", 71),
    _column(_LANGUAGE, "QNLI", "51.3 51.29 49.48 50.52 50.98 49.41", "qnli", "acc", 5463),
    _column(
        _LANGUAGE,
        "MNLI",
        "37.3 - - - - 34.42",
        "mnli",
        None,
        9815,
        unknown="both figures are counts of the 9815 matched rows, and of the 9832 mismatched ones as well",
    ),
    _column(
        _FACTS,
        "TruthfulQA",
        "35 38.67 38.66 38.68 37.14 48.61",
        "truthfulqa_mc2",
        None,
        817,
        unknown="the figures are no counts of 817 rows, which excludes mc1; mc2 is a mean of probabilities, which no "
        "number of rows can confirm",
    ),
)

TABLE3 = (
    Repetition("Ours-1.5B (1B)", "10 epochs", Decimal("24.95")),
    Repetition("Ours-1.5B (50B)", "10B fresh", Decimal("23.62")),
    Repetition("Ours-1.5B (1B)", "20 epochs", Decimal("25.46")),
    Repetition("Ours-1.5B (50B)", "20B fresh", Decimal("24.96")),
)

_LARGE, _MEDIUM = "GPT-2 Large", "GPT-2 Medium"
TABLE4 = (
    Trained(_LARGE, 36, "rand init", "100K", Decimal("2.85")),
    Trained(_LARGE, 18, "rand init", "100K", Decimal("2.97")),
    Trained(_LARGE, 18, "rand init", "200K", Decimal("2.84")),
    Trained(_LARGE, 18, "Ours", "100K", Decimal("2.80")),
    Trained(_MEDIUM, 24, "rand init", "100K", Decimal("2.81")),
    Trained(_MEDIUM, 16, "rand init", "100K", Decimal("2.86")),
    Trained(_MEDIUM, 16, "rand init", "200K", Decimal("2.83")),
    Trained(_MEDIUM, 12, "Ours", "100K", Decimal("2.87")),
    Trained(_MEDIUM, 14, "Ours", "100K", Decimal("2.84")),
    Trained(_MEDIUM, 16, "Ours", "100K", Decimal("2.81"), final=True),
)
_TRAINED = tuple(line.name for line in TABLE4)

TABLE4_COLUMNS = (
    Column(
        4,
        "Downstream (0-shot)",
        "Wikitext",
        _TRAINED,
        _printed("34.84 37.63 - 35.38 31.93 33.67 - - - 32.04"),
        "wikitext",
        0,
        None,
        62,
        better="lower",
        percent=False,
        unknown="a perplexity is no count: neither the pages nor what it was spread over (words, tokens) can be told",
    ),
    Column(
        4,
        "Downstream (0-shot)",
        "Lambada",
        _TRAINED,
        _printed("34.14 30.97 - 34.64 36.54 34.60 - - - 35.96"),
        "lambada_openai",
        0,
        "acc",
        5153,
        unknown="the figures are counts of 5153 rows, which lambada_openai and lambada_standard both have, with "
        "different text",
    ),
)

OUTSIDE_BASELINES = {
    "smollm2-70m": OutsideBaseline(
        model="codelion/SmolLM2-70M",
        parameters=69_200_000,
        tokens=30_600_000_000,
        training="from random init, 32 layers, 3 passes over 10.2B tokens, 77.8 hours of an L40S",
        source="its model card on the hub, revision 285b36e: figures in the text, metrics in the model-index",
        harness="0.4.11",
        # Without GSM8K (0.53, 5-shot): the card does not say which way of reading the answers it is.
        scores=(
            Reported("PIQA", Decimal("54.84"), "piqa", "acc_norm", 1838),
            Reported("WinoGrande", Decimal("50.04"), "winogrande", "acc", 1267),
            Reported("BoolQ", Decimal("39.66"), "boolq", "acc", 3270),
            Reported("ARC-Easy", Decimal("33.00"), "arc_easy", "acc_norm", 2376),
            Reported("ARC-Challenge", Decimal("22.35"), "arc_challenge", "acc_norm", 1172),
            Reported("HellaSwag", Decimal("26.14"), "hellaswag", "acc_norm", 10042),
            Reported("SciQ", Decimal("45.20"), "sciq", "acc_norm", 1000),
            Reported("OpenBookQA", Decimal("27.60"), "openbookqa", "acc_norm", 500),
            Reported("TruthfulQA", Decimal("48.02"), "truthfulqa_mc2", "acc", 817),
            Reported("MMLU", Decimal("22.96"), "mmlu", "acc", 14042),
        ),
    ),
    "smollm2-135m-instruct": OutsideBaseline(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        tokens=2_000_000_000_000,
        training="30 layers, then tuned on instructions; not quantised",
        source="the model card of lldois/SmolLM2-135M-Reasoning-SLERP-Champion on the hub, column Baseline",
        harness=None,
        scores=(
            Reported("PIQA", Decimal("66.92"), "piqa", "acc_norm", 1838),
            Reported("ARC-E", Decimal("54.12"), "arc_easy", "acc", 2376),
            Reported("ARC-C", Decimal("27.73"), "arc_challenge", "acc_norm", 1172),
            Reported("HellaSwag", Decimal("42.99"), "hellaswag", "acc_norm", 10042),
        ),
    ),
}
"""By the name that `--against` knows it by."""


def column_of(task: str) -> Column | None:
    """The column of table 2 or 4 that belongs to a task, or a group, of the harness; None where there is none."""
    return next((column for column in (*TABLE2, *TABLE4_COLUMNS) if column.task == task), None)


def share_error(value: float, rows: int) -> float:
    """The standard error of a share of so many rows, as the harness has it: by the sample's deviation."""
    return math.sqrt(value * (1 - value) / (rows - 1))


def fit(figure: Decimal, rows: int) -> Fit:
    """The counts k for which 100 k / rows is printed as `figure`.

    A figure half-way between two is taken as the rounding of either.
    """
    step = Fraction(1, 10 ** _decimals(figure))
    low, high = ((Fraction(figure) + side * step / 2) * rows / 100 for side in (-1, 1))
    rounded = _counts(math.ceil(low), math.floor(high), rows)
    if rounded:
        return Fit(rounded, "rounded")
    first, beyond = Fraction(figure) * rows / 100, (Fraction(figure) + step) * rows / 100
    cut_off = _counts(math.ceil(first), math.ceil(beyond) - 1, rows)
    return Fit(cut_off, "cut off" if cut_off else "none")


def _counts(first: int, last: int, rows: int) -> tuple[int, ...]:
    return tuple(range(max(first, 0), min(last, rows) + 1))


def _decimals(figure: Decimal) -> int:
    exponent = figure.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{figure} is not a number that can be printed")
    return max(-exponent, 0)


def agreement(column: Column, rows: int | None = None) -> Agreement:
    """Whether a column's figures are counts of its rows, and whether that says anything.

    Args:
        column: its figures are percent.
        rows: another number of rows to try them on.

    Raises:
        ValueError: the column's figures are no shares.
    """
    if not column.percent:
        raise ValueError(f"{column.heading}: its figures are no shares of rows")
    tried = column.rows if rows is None else rows
    figures = {model: figure for model, figure in column.by_model.items() if figure is not None}
    fits = {model: fit(figure, tried) for model, figure in figures.items()}
    chances = [_printable(_decimals(figure), tried) for figure in figures.values()]
    return Agreement(tried, fits, _at_least(sum(each.how == "rounded" for each in fits.values()), chances))


def _printable(decimals: int, rows: int) -> float:
    """Which part of the figures from 0 to 100 at so many decimals a count of so many rows rounds to."""
    scale: int = 100 * 10**decimals
    return len({(2 * scale * count + rows) // (2 * rows) for count in range(rows + 1)}) / (scale + 1)


def _at_least(successes: int, chances: Sequence[float]) -> float:
    """The chance that at least so many of independent events happen."""
    distribution = [1.0]
    for chance in chances:
        happens = [0.0, *(chance * each for each in distribution)]
        distribution = [a + (1 - chance) * b for a, b in zip(happens, [*distribution, 0.0], strict=True)]
    return math.fsum(distribution[successes:])


FIGURE1_ASSUMPTION = (
    "the nine data sets are table 2's columns without MMLU, which has a panel of its own; their plain mean"
)
NINE = tuple(column for column in TABLE2 if column.task != "mmlu")
(MMLU,) = (column for column in TABLE2 if column.task == "mmlu")


def figure1(columns: Sequence[Column] = NINE) -> dict[str, Average]:
    """Figure 1's averages, by model, in percent, from table 2 as printed (`FIGURE1_ASSUMPTION`).

    A model with a gap has no average: fewer columns would be another quantity. The baselines' MNLI is blank, so that
    what figure 1 shows of them cannot be computed from the print; ask for the columns without it to set them beside
    each other.

    Args:
        columns: of table 2, which to average.
    """
    averages = {}
    for model in _MODELS:
        figures = {column.heading: column.by_model[model] for column in columns}
        known = [figure for figure in figures.values() if figure is not None]
        gaps = [heading for heading, figure in figures.items() if figure is None]
        reason = f"table 2 has no figure of it for {', '.join(gaps)}" if gaps else None
        nine = None if gaps else float(sum(known) / len(known))
        mmlu = MMLU.by_model[model]
        averages[model] = Average(nine, None if mmlu is None else float(mmlu), reason)
    return averages
