"""The curves against tokens: metrics into panels, panels into an SVG element of text and CSS colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune.report.numbers import count, number_of
from inheritune.report.table import by_set, dict_of, judging_set, models_of, ordered_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
"""(tokens trained, loss in nats a token), in order of tokens."""

# The page and the figure share these colours; the page's style sheet gives each its twin for dark backgrounds.
_INK, _TARGET, _RANDOM, _CUT = "#1d1e22", "#0b5aa6", "#a8420a", "#5c5f6a"
_VARIABLES = {
    _INK: "currentColor",
    _TARGET: f"var(--target, {_TARGET})",
    _RANDOM: f"var(--random, {_RANDOM})",
    _CUT: f"var(--cut, {_CUT})",
}
STANDALONE_STYLE = (
    f"<style>svg{{color:{_INK};font-family:system-ui,sans-serif}}"
    "@media(prefers-color-scheme:dark){svg{color:#e8e8ea;--target:#7db7f5;--random:#f2a06b;--cut:#a3a6b1}}</style>"
)
_COLOURS = {"Target": _TARGET, "Random init": _RANDOM}

_MOST_PANELS = 6
_MOST_POINTS = 300


@dataclass(frozen=True)
class Panel:
    """The curves on one validation set, and the frame they are drawn in (losses in nats a token)."""

    name: str
    lines: dict[str, Points]
    training: dict[str, Points]
    reference: float | None
    cut: float | None
    low: float
    high: float

    @property
    def above(self) -> list[str]:
        """What lies above the frame, each by name and value."""
        above = [f"{name} from {line[0][1]:.2f}" for name, line in self.lines.items() if line[0][1] > self.high]
        return [*above, f"Cut {self.cut:.2f}"] if self.cut is not None and self.cut > self.high else above

    @property
    def description(self) -> str:
        """The figure in words, for who does not see it."""
        parts = [f"Validation loss on {self.name}, nats a token, against tokens trained."]
        for label, points in self.lines.items():
            (first, start), (last, end) = points[0], points[-1]
            parts.append(f"{label}: from {start:.3f} at {count(first)} to {end:.3f} at {count(last)} tokens.")
        parts += [f"Reference: {self.reference:.3f}."] if self.reference is not None else []
        parts += [f"Reference cut to the target’s layers, untrained: {self.cut:.3f}."] if self.cut is not None else []
        return " ".join(parts)


def _curves(records: Iterable[Any]) -> tuple[Points, dict[str, Points]]:
    """Training loss, and validation loss by set. A resumed run may repeat a step: its last record counts."""
    last = {
        (str(record.get("kind")), str(record.get("step"))): record for record in records if isinstance(record, dict)
    }
    training: Points = []
    validation: dict[str, Points] = {}
    for (kind, _), record in last.items():
        tokens, loss = number_of(record.get("tokens")), number_of(record.get("loss"))
        if tokens is None:
            continue
        if kind == "step" and loss is not None:
            training.append((tokens, loss))
        if kind == "validation":
            for name, value in dict_of(record.get("losses")).items():
                if (number := number_of(value)) is not None:
                    validation.setdefault(name, []).append((tokens, number))
    return sorted(training), {name: sorted(points) for name, points in validation.items()}


def _binned(points: Points) -> Points:
    """At most `_MOST_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in bins]


def panels_of(result: Mapping[str, Any], metrics: Mapping[str, list[Any]]) -> list[Panel]:
    """A panel for each validation set that was measured during training; the judging set's comes first."""
    judge = judging_set(result)
    curves = {label: _curves(records) for label, records in metrics.items()}
    models = models_of(result)
    panels = []
    for name in ordered_sets(judge, (name for _, validation in curves.values() for name in validation))[:_MOST_PANELS]:
        lines = {label: validation[name] for label, (_, validation) in curves.items() if validation.get(name)}
        reference, cut = (
            number_of(by_set(models.get(title, {}), "validation_losses", judge).get(name))
            for title in ("Reference", "Cut")
        )
        # Every loss starts high and falls fast: a frame that held the first points would flatten all that matters.
        longest = max(points[-1][0] for points in lines.values())
        inside = [y for points in lines.values() for x, y in points if x >= 0.2 * longest or len(points) == 1]
        inside += [reference] if reference is not None else []
        low, high = min(inside), max(inside)
        if cut is not None and low <= cut <= low + 2 * (high - low):
            high = max(high, cut)
        margin = 0.08 * (high - low) or 0.1
        # Training text is most like the judging set: against another set its loss would compare nothing.
        training = {label: _binned(points) for label, (points, _) in curves.items() if points and name == judge}
        panels.append(Panel(name, lines, training, reference, cut, low - margin, high + margin))
    return panels


def _draw_labels(axes: Axes, panel: Panel, size: float) -> None:
    """Write each line's name and last value beside its end, moved apart where they would collide."""
    span = panel.high - panel.low
    labels = [
        ((points[-1][1] - panel.low) / span, f"{label} {points[-1][1]:.2f}", _COLOURS[label])
        for label, points in panel.lines.items()
    ]
    if panel.reference is not None:
        labels.append(((panel.reference - panel.low) / span, f"Reference {panel.reference:.2f}", _INK))
    if panel.cut is not None:
        above = panel.cut > panel.high
        labels.append(
            (1.0 if above else (panel.cut - panel.low) / span, f"Cut {panel.cut:.2f}{' ↑' if above else ''}", _CUT)
        )
    labels.sort()
    apart = 1.45 * size / (axes.get_position().height * axes.figure.get_figheight() * 72)  # type: ignore[union-attr]
    heights = [min(max(height, 0.0), 1.0) for height, _, _ in labels]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + apart)
    if heights and heights[-1] > 1.0:
        heights[-1] = 1.0
        for index in range(len(heights) - 2, -1, -1):
            heights[index] = min(heights[index], heights[index + 1] - apart)
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        place: Any = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (1.0, height), color=colour, fontsize=size, annotation_clip=False, **place)


def _draw_panel(axes: Axes, panel: Panel, size: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    marks = {"Target": ("o", "-"), "Random init": ("s", (0, (6, 2)))}
    for label, points in panel.training.items():
        axes.plot(*zip(*points, strict=True), color=_COLOURS[label], linewidth=0.9, alpha=0.35)
    for label, points in panel.lines.items():
        mark, style = marks[label]
        every = math.ceil(len(points) / 12)
        axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[label],
            linewidth=2,
            linestyle=style,
            marker=mark,
            markersize=4,
            markevery=every,
        )
    if panel.reference is not None:
        axes.axhline(panel.reference, color=_INK, linewidth=1.4)
    if panel.cut is not None and panel.cut <= panel.high:
        axes.axhline(panel.cut, color=_CUT, linewidth=1.4, linestyle=":")
    axes.set_ylim(panel.low, panel.high)
    # A little room at the right, so that the last mark is drawn whole.
    axes.set_xlim(0, 1.015 * max(points[-1][0] for points in panel.lines.values()) or 1)
    axes.set_title(panel.name, loc="left", fontsize=size + 1, fontweight="bold", color=_INK, parse_math=False, pad=10)
    roomy = axes.get_position().width * axes.figure.get_figwidth() * 72 > 300  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(MaxNLocator(6 if roomy else 3))
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: re.sub(r"\.?0+(?=[KMBT])", "", count(value)) if "." in count(value) else count(value)
        )
    )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=_INK, alpha=0.13, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=size, length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    _draw_labels(axes, panel, size)


def draw_curves(panels: list[Panel], narrow: bool = False) -> str:
    """Validation loss (nats a token) against tokens trained, a panel a set, as an SVG element of text and CSS colours.

    Args:
        panels: at least one.
        narrow: for a phone: 350 units wide, one panel above the other; otherwise 720 units, the first over the full
            width and the others two in a row. A unit is a CSS pixel at the size it is meant for.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns, width, size = (1, 350, 11.0) if narrow else (2, 720, 12.0)
    first, rest = (250, 230) if narrow else (340, 250)
    heights = [first] + [rest] * math.ceil((len(panels) - 1) / columns)
    settings: Any = {"svg.hashsalt": "inheritune", "svg.fonttype": "none", "font.size": size}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A set's name may be in any script; the browser, not matplotlib, finds the font.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = Figure(figsize=(width / 72, sum(heights) / 72))
        top = 0
        for row, height in enumerate(heights):
            shown = panels[:1] if row == 0 else panels[1 + (row - 1) * columns : 1 + row * columns]
            cell = width if row == 0 else width / columns
            for column, panel in enumerate(shown):
                # Room in units: tick labels left, title above, tick labels and axis label below, line labels right.
                left, right, above, below = 36, 116 if size > 11 else 106, 34, 44
                bottom = sum(heights) - top - height + below
                box = (column * cell + left, bottom, cell - left - right, height - above - below)
                axes = figure.add_axes((box[0] / width, box[1] / sum(heights), box[2] / width, box[3] / sum(heights)))
                _draw_panel(axes, panel, size)
                axes.set_xlabel("Tokens trained", color=_INK, fontsize=size, loc="left")
            top += height
        buffer = io.StringIO()
        no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _for_the_page(buffer.getvalue(), "n-" if narrow else "w-")


def _for_the_page(svg: str, prefix: str) -> str:
    """An SVG document as an element: no prologue, ids of its own, the page's font and colours."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", element)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", element, count=1)
