"""Figures 1 and 2 of the poster: what checkpoints score against the tokens they were trained on, a panel a task.

The reference and what guessing scores are rules; bars are two standard errors. The first panel is the mean over tasks.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from inheritune.report.curves import _COLOURS, _INK, STANDALONE_STYLE, _for_the_page
from inheritune.report.evaluation import is_share, line_title, shown
from inheritune.report.numbers import count, number_of
from inheritune.scores import Evaluation, Line, Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUNS = ("target", "random", "control-1", "control-2", "control-3", "control-4", "cut")
"""The colours of runs, by the style sheet's names."""
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One more than there are colours: both in turn, a pair comes again only after 56."""
_WIDTH, _SIZE = 720, 12.0
"""Units: CSS pixels at the size the figure is meant for."""
_LEFT, _RIGHT, _ABOVE, _BELOW, _TALL, _LEGEND_LINE = 50, 118, 48, 44, 272, 18
_MOST_CHARACTERS = 16
_MOST_IN_LEGEND = 90
_CHANCE = "Chance"
_WIDE_RANGE = 20
"""A perplexity that changes by more than this factor is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """What a checkpoint scores, in percent for accuracies."""

    x: float
    """Tokens it was trained on, or steps."""
    value: float
    error: float | None
    """One standard error."""


@dataclass(frozen=True)
class ScorePanel:
    """Scores on one line against training."""

    title: str
    metric: str
    runs: dict[str, list[Point]]
    """By run, in the order of training."""
    references: dict[str, float]
    """By label, in percent for accuracies, like the points."""
    chance: float | None

    @property
    def rules(self) -> dict[str, float]:
        """By label what does not depend on training."""
        return self.references | ({} if self.chance is None else {_CHANCE: self.chance})

    @property
    def unit(self) -> str:
        """Of the axis upwards: `acc, %`."""
        return f"{self.metric}, %" if is_share(self.metric) else self.metric

    def bars(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        """How far two standard errors reach below and above points; a logarithmic axis has no room for zero."""
        above = [2 * (point.error or 0) for point in points]
        least = [0.9 * point.value if self.logarithmic else math.inf for point in points]
        return list(map(min, above, least)), above

    @property
    def frame(self) -> tuple[float, float]:
        """What the axis upwards spans: points with their bars, and rules."""
        points = [point for points in self.runs.values() for point in points]
        below, above = self.bars(points)
        ends = [point.value + bar for point, bar in zip(points, above, strict=True)]
        ends += [point.value - bar for point, bar in zip(points, below, strict=True)]
        low, high = min([*ends, *self.rules.values()]), max([*ends, *self.rules.values()])
        margin = 0.08 * (high - low) or 1
        return (low / 1.3, high * 1.3) if self.logarithmic else (low - margin, high + margin)

    @property
    def logarithmic(self) -> bool:
        """Whether the axis upwards is: of a perplexity that falls by more than an order of magnitude."""
        values = [point.value for points in self.runs.values() for point in points] + [*self.rules.values()]
        return "perplexity" in self.metric and min(values) > 0 and max(values) > _WIDE_RANGE * min(values)


@dataclass(frozen=True)
class _Checkpoints:
    """The checkpoints of an evaluation that have a place on the axis across, and what they are held against."""

    models: list[Model]
    """Checkpoints, and the finished targets of their runs."""
    references: list[Model]
    """Each once, however many runs come from it."""
    unit: str
    """`tokens`, or `steps` where tokens are not known of all checkpoints."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        checkpoints = [model for model in evaluation.models if model.role == "checkpoint"]
        references = {model.fingerprint: model for model in evaluation.models[::-1] if model.role == "reference"}
        unit = "tokens" if all(model.tokens_trained is not None for model in checkpoints) else "steps"
        found = cls(checkpoints, [*references.values()][::-1], unit)
        places = {(model.run, found.x(model)) for model in checkpoints}
        runs = {model.run for model in checkpoints}
        # The last checkpoint may be the finished target itself: it is drawn once.
        ends = [model for model in evaluation.models if model.role == "target" and model.run in runs]
        models = [*checkpoints, *(model for model in ends if (model.run, found.x(model)) not in places)]
        return replace(found, models=[model for model in models if found.x(model) is not None])

    def x(self, model: Model) -> int | None:
        """A checkpoint's place; None where it is not known."""
        return model.tokens_trained if self.unit == "tokens" else model.step

    def panel(
        self, title: str, metric: str, score: Callable[[Model], Point | None], chance: float | None
    ) -> ScorePanel:
        """What `score` gives for checkpoints as curves, and for references as rules."""
        runs = {
            run: [point for model in models if (point := score(model)) is not None]
            for run, models in self._by_run().items()
        }
        # Several references are told apart by name.
        names = {model.name: "Reference" if len(self.references) == 1 else model.name for model in self.references}
        rules = {names[model.name]: point.value for model in self.references if (point := score(model)) is not None}
        return ScorePanel(title, metric, runs, rules, chance)

    def _by_run(self) -> dict[str, list[Model]]:
        """By run's name, in the order of the evaluation; a run's in the order of training."""
        runs = list(dict.fromkeys(model.run or "" for model in self.models))
        short = [Path(run).name or run for run in runs]
        # Runs of one name in several folders keep their paths.
        names = {run: name if short.count(name) == 1 else run for run, name in zip(runs, short, strict=True)}
        found: dict[str, list[Model]] = {name: [] for name in names.values()}
        for model in sorted(self.models, key=lambda model: self.x(model) or 0):
            found[names[model.run or ""]].append(model)
        return found


def score_panels(evaluation: Evaluation) -> list[ScorePanel]:
    """The average over tasks, where there are several, then a panel for each line that a checkpoint was scored on."""
    found = _Checkpoints.of(evaluation)

    def panel(line: Line) -> ScorePanel:
        scale = 100 if is_share(line.metric) else 1

        def score(model: Model) -> Point | None:
            known = evaluation.scores.get(model.name, {}).get(line.name)
            if known is None or number_of(known.value) is None:
                return None
            error = number_of(known.standard_error)
            return Point(found.x(model) or 0, scale * known.value, None if error is None else scale * error)

        chance = None if line.chance is None else scale * line.chance
        return found.panel(line_title(line), line.metric, score, chance)

    panels = [shown for shown in map(panel, evaluation.lines) if any(shown.runs.values())]
    average = _average(evaluation, found)
    return panels if average is None else [average, *panels]


def _average(evaluation: Evaluation, found: _Checkpoints) -> ScorePanel | None:
    """The mean accuracy over the lines that every checkpoint and reference has; None of fewer than two lines.

    Lines are of different rows, so the standard error of the mean is that of independent terms.
    """
    everyone = [*found.models, *found.references]
    lines = [
        line
        for line in evaluation.lines
        if is_share(line.metric) and all(line.name in evaluation.scores.get(model.name, {}) for model in everyone)
    ]
    if len(lines) < 2 or not found.models:
        return None

    def mean(model: Model) -> Point:
        scores = [evaluation.scores[model.name][line.name] for line in lines]
        errors = [score.standard_error for score in scores if score.standard_error is not None]
        error = 100 * math.hypot(*errors) / len(lines) if len(errors) == len(lines) else None
        return Point(found.x(model) or 0, 100 * math.fsum(score.value for score in scores) / len(lines), error)

    chances = [line.chance for line in lines if line.chance is not None]
    chance = 100 * math.fsum(chances) / len(lines) if len(chances) == len(lines) else None
    whole = "" if all(line.whole for line in lines) else ", not all of them whole"
    return found.panel(f"Mean of {len(lines)} tasks{whole}", "acc", mean, chance)


def evaluation_svg(evaluation: Evaluation) -> str | None:
    """Scores against tokens trained, as a picture of its own; the same evaluation gives the same bytes.

    Args:
        evaluation: its checkpoints are the points, a colour and mark a run; its references are rules.

    Returns:
        None where no checkpoint was scored.
    """
    import matplotlib as mpl

    panels = score_panels(evaluation)
    if not panels:
        return None
    settings: Any = {"svg.hashsalt": "inheritune", "svg.fonttype": "none", "font.size": _SIZE}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A run's name may be in any script; the browser, not matplotlib, finds the font.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        buffer = io.StringIO()
        no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        draw(evaluation, panels).savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    words = html.escape(_description(panels))
    element = _for_the_page(buffer.getvalue(), "e-")
    return element.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1).replace(">", f">{STANDALONE_STYLE}", 1)


def draw(evaluation: Evaluation, panels: Sequence[ScorePanel]) -> Figure:
    """The panels as a figure, 720 units wide: the first over the full width, the others two in a row.

    Args:
        evaluation: for what the figure says of suite and missing rows.
        panels: at least one.
    """
    from matplotlib.figure import Figure

    runs = list(panels[0].runs)
    names = _legend_names(runs, evaluation)
    head = 14 + _LEGEND_LINE * len(names)
    rows = [panels[:1], *(panels[start : start + 2] for start in range(1, len(panels), 2))]
    height = head + _TALL * len(rows)
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    _draw_legend(figure, names, runs, height)
    across = "Tokens trained" if _Checkpoints.of(evaluation).unit == "tokens" else "Steps"
    for row, shown_panels in enumerate(rows):
        cell = _WIDTH if row == 0 else _WIDTH / 2
        for column, panel in enumerate(shown_panels):
            bottom = height - head - _TALL * (row + 1) + _BELOW
            box = (column * cell + _LEFT, bottom, cell - _LEFT - _RIGHT, _TALL - _ABOVE - _BELOW)
            axes = figure.add_axes((box[0] / _WIDTH, box[1] / height, box[2] / _WIDTH, box[3] / height))
            _draw_panel(axes, panel, runs, roomy=row == 0)
            axes.set_xlabel(across, color=_INK, fontsize=_SIZE, loc="left")
    return figure


def _legend_names(runs: Sequence[str], evaluation: Evaluation) -> list[str]:
    """What stands above the panels: of what the figure is, then the runs."""
    limited = f"; {evaluation.limited}" if evaluation.limited else ""
    return [_short(text) for text in (f"Suite {evaluation.suite}{limited}; bars: ± 2 standard errors", *runs)]


def _short(text: str) -> str:
    """A line of the legend; of a long path the end tells most."""
    clean = " ".join(text.split())
    return clean if len(clean) <= _MOST_IN_LEGEND else f"…{clean[1 - _MOST_IN_LEGEND :]}"


def _style(runs: Sequence[str], run: str) -> dict[str, Any]:
    """A run's colour and mark, so that none is told by its colour alone."""
    place = runs.index(run)
    return {"color": _COLOURS[_RUNS[place % len(_RUNS)]][0], "marker": _MARKS[place % len(_MARKS)], "markersize": 5}


def _draw_legend(figure: Figure, names: Sequence[str], runs: Sequence[str], height: float) -> None:
    from matplotlib.lines import Line2D

    for place, name in enumerate(names):
        down = 1 - (16 + _LEGEND_LINE * place) / height
        left = 10 if place == 0 else 44
        bold: Any = {"fontweight": "bold"} if place == 0 else {}
        figure.text(left / _WIDTH, down, name, color=_INK, fontsize=_SIZE, va="center", parse_math=False, **bold)
        if place > 0:
            across = [10 / _WIDTH, 24 / _WIDTH, 38 / _WIDTH]
            style = _style(runs, runs[place - 1])
            figure.add_artist(Line2D(across, [down] * 3, linewidth=2, markevery=[1], **style))


def _draw_panel(axes: Axes, panel: ScorePanel, runs: Sequence[str], *, roomy: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    right = 1.03 * max(point.x for points in panel.runs.values() for point in points) or 1
    for run, points in panel.runs.items():
        values = [point.value for point in points]
        places = [point.x for point in points]
        look: Any = {"linewidth": 1.8, "elinewidth": 1, "capsize": 2, "zorder": 3, **_style(runs, run)}
        axes.errorbar(places, values, yerr=panel.bars(points), **look)
    for label, value in panel.rules.items():
        dashes: Any = ":" if label == _CHANCE else "-"
        axes.axhline(value, color=_quiet(label), linewidth=1.4, linestyle=dashes)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(*panel.frame)
    axes.set_xlim(-0.02 * right, right)  # so that the first mark is drawn whole, too
    axes.set_title(
        textwrap.fill(f"{panel.title} ({panel.unit})", 84 if roomy else 38, max_lines=2, placeholder=" …"),
        loc="left",
        fontsize=_SIZE,
        fontweight="bold",
        color=_INK,
        parse_math=False,
        pad=10,
    )
    axes.xaxis.set_major_locator(MaxNLocator(6 if roomy else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.grid(axis="y", color=_INK, alpha=0.13, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=_SIZE, length=3, width=0.8)
    axes.tick_params(axis="y", which="both", length=0)
    _draw_rule_labels(axes, panel)


def _quiet(label: str) -> str:
    return _COLOURS["cut"][0] if label == _CHANCE else _INK


def _draw_rule_labels(axes: Axes, panel: ScorePanel) -> None:
    """Write each rule's name and value beside its end, moved apart where they would collide."""
    frame = _TALL - _ABOVE - _BELOW
    labels = []
    for label, value in sorted(panel.rules.items(), key=lambda rule: rule[1]):
        number = f"{value:.1f}" if panel.unit.endswith("%") else shown(panel.metric, value)
        lines = textwrap.wrap(f"{label} {number}", _MOST_CHARACTERS) if label.strip() else [number]
        labels.append((axes.transData.transform((0, value))[1], "\n".join(lines), _quiet(label)))
    bottom, top = (axes.transAxes.transform((0, end))[1] for end in (0, 1))
    heights = [(place - bottom) / (top - bottom) * frame for place, _, _ in labels]
    rooms = [1.25 * _SIZE * (text.count("\n") + 1) for _, text, _ in labels]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + (rooms[index - 1] + rooms[index]) / 2)
    for index in range(len(heights) - 1, -1, -1):
        above = frame if index == len(heights) - 1 else heights[index + 1] - (rooms[index + 1] + rooms[index]) / 2
        heights[index] = min(heights[index], above)
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        place: Any = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        written = axes.annotate(
            text, (1.0, height / frame), color=colour, fontsize=_SIZE, annotation_clip=False, **place
        )
        written.set_parse_math(False)


def _description(panels: Iterable[ScorePanel]) -> str:
    """The figure in words, for who does not see it."""
    parts = []
    for panel in panels:
        ends: Mapping[str, list[Point]] = {run: points for run, points in panel.runs.items() if points}
        told = [f"{run} from {points[0].value:.4g} to {points[-1].value:.4g}" for run, points in ends.items()]
        told += [f"{label} {value:.4g}" for label, value in panel.rules.items()]
        parts.append(f"{panel.title} ({panel.unit}): {', '.join(told)}.")
    return " ".join(parts)


def _tick(value: float) -> str:
    """Tokens or steps without decimals that say nothing: 10M, 2.5B."""
    return re.sub(r"\.?0+(?=[KMBT])", "", count(value)) if "." in count(value) else count(value)
