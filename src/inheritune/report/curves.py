"""The curves: metrics into panels against tokens, panels into an SVG element of text and CSS colours, or into a PDF."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inheritune.report.numbers import count, flops, number_of
from inheritune.report.table import by_set, colour_names, dict_of, judging_set, models_of, ordered_sets
from inheritune.result import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
"""(tokens trained, or what else the axis across has; loss in nats a token), in order."""

ACROSS = {
    "tokens": "Tokens trained",
    "steps": "Steps",
    "FLOPs": "Training FLOPs",
    "hours": "Training time, hours",
    "minutes": "Training time, minutes",
}
"""By unit what the axis across is called."""

# The page and the figure share these colours: on light backgrounds, and their twins for dark ones.
_INK, _DARK_INK = "#1d1e22", "#e8e8ea"
_COLOURS = {
    "target": ("#0b5aa6", "#7db7f5"),
    "random": ("#a8420a", "#f2a06b"),
    "cut": ("#5c5f6a", "#a3a6b1"),
    "control-1": ("#1c6b34", "#79cf8f"),
    "control-2": ("#6a3aa8", "#c2a4f7"),
    "control-3": ("#a01f63", "#f28abf"),
    "control-4": ("#6b5b00", "#d8c35a"),
}
_VARIABLES = {_INK: "currentColor"} | {light: f"var(--{name}, {light})" for name, (light, _) in _COLOURS.items()}
_DARK = "".join(f";--{name}:{dark}" for name, (_, dark) in _COLOURS.items())
STANDALONE_STYLE = (
    f"<style>svg{{color:{_INK};font-family:system-ui,sans-serif}}"
    f"@media(prefers-color-scheme:dark){{svg{{color:{_DARK_INK}{_DARK}}}}}</style>"
)
# Mark and dashes, so that no curve is told by its colour alone. One more than there are colours for further controls:
# both in turn, a pair comes again only after twenty.
_MARKS: dict[str, tuple[str, Any]] = {"target": ("o", "-"), "random": ("s", (0, (6, 2)))}
_OTHER_MARKS: list[tuple[str, Any]] = [
    ("^", (0, (4, 1.5, 1, 1.5))),
    ("D", (0, (3, 1.5))),
    ("v", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    ("P", (0, (1.5, 1))),
    ("X", (0, (10, 3))),
]

_LABEL_CHARACTERS = 16  # a line, in the room that is left for labels at either size
_MOST_PANELS = 6
_MOST_POINTS = 150  # a page has every curve eight times: on four axes, wide and narrow


@dataclass(frozen=True)
class Panel:
    """The curves on one validation set, and the frame they are drawn in (losses in nats a token)."""

    name: str
    models: tuple[str, ...]
    """The run's trained models by name, whether or not each has a curve here: they decide the colours."""
    lines: dict[str, Points]
    training: dict[str, Points]
    reference: float | None
    cut: float | None
    low: float
    high: float
    unit: str = "tokens"
    """What the curves are drawn against, of `ACROSS`."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What models are called here, where tables call them something else."""
    digits: int = 2
    """Decimals of a loss in a label."""

    def title(self, model: str) -> str:
        """What a model is called here."""
        return self.titles.get(model) or title_of(model)

    @property
    def across(self) -> str:
        """What the axis across is called."""
        return ACROSS[self.unit]

    def place(self, value: float) -> str:
        """A place on the axis across as text."""
        if self.unit in ("tokens", "steps"):
            return count(value)
        return flops(value) if self.unit == "FLOPs" else f"{value:.3g}"

    @property
    def above(self) -> list[str]:
        """What lies above the frame, each by name and value."""
        lines = self.lines.items()
        above = [f"{self.title(name)} from {line[0][1]:.2f}" for name, line in lines if line[0][1] > self.high]
        return [*above, f"Cut {self.cut:.2f}"] if self.cut is not None and self.cut > self.high else above

    @property
    def description(self) -> str:
        """The figure in words, for who does not see it."""
        parts = [f"Validation loss on {self.name}, nats a token, against {self.across.lower()}."]
        for name, points in self.lines.items():
            (first, start), (last, end) = points[0], points[-1]
            fall = f"from {start:.3f} at {self.place(first)} to {end:.3f} at {self.place(last)} {self.unit}"
            parts.append(f"{self.title(name)}: {fall}.")
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
    """A panel for each validation set that was measured during training; the judging set's comes first.

    Args:
        result: `result.json`'s record.
        metrics: by model's name, the target first, its metrics records.
    """
    judge = judging_set(result)
    curves = {model: _curves(records) for model, records in metrics.items()}
    models = models_of(result)
    panels = []
    for name in ordered_sets(judge, (name for _, validation in curves.values() for name in validation))[:_MOST_PANELS]:
        lines = {model: validation[name] for model, (_, validation) in curves.items() if validation.get(name)}
        reference, cut = (
            number_of(by_set(models.get(model, {}), "validation_losses", judge).get(name))
            for model in ("reference", "cut")
        )
        # Training text is most like the judging set: against another set its loss would compare nothing.
        training = {model: _binned(points) for model, (points, _) in curves.items() if points and name == judge}
        # Of a model that was not validated since it began its training loss is all there is to see.
        shown = {model: points if len(points) > 1 else training.get(model, points) for model, points in lines.items()}
        # Every loss starts high and falls fast: a frame that held the first points would flatten all that matters.
        longest = max(points[-1][0] for points in shown.values())
        inside = [y for points in shown.values() for x, y in points if x >= 0.2 * longest or len(points) == 1]
        inside += [reference] if reference is not None else []
        low, high = min(inside), max(inside)
        # what is not far above them is worth the room
        above = [points[0][1] for points in lines.values()] + ([cut] if cut is not None else [])
        high = max([high, *(value for value in above if low <= value <= low + 2 * (high - low))])
        margin = 0.08 * (high - low) or 0.1
        panels.append(Panel(name, tuple(metrics), lines, training, reference, cut, low - margin, high + margin))
    return panels


def _colours(panel: Panel) -> dict[str, str]:
    """Each trained model's colour on light backgrounds."""
    return {model: _COLOURS[colour][0] for model, colour in colour_names(panel.models).items()}


def _labels(panel: Panel) -> list[tuple[float, str, str]]:
    """(height within the frame, text, colour) of each line's label, its name and last value, from the bottom up."""
    span, colours = panel.high - panel.low, _colours(panel)
    labels = [
        ((points[-1][1] - panel.low) / span, f"{panel.title(model)} {points[-1][1]:.{panel.digits}f}", colours[model])
        for model, points in panel.lines.items()
    ]
    if panel.reference is not None:
        labels.append(((panel.reference - panel.low) / span, f"Reference {panel.reference:.{panel.digits}f}", _INK))
    if panel.cut is not None:
        above = panel.cut > panel.high
        height = 1.0 if above else (panel.cut - panel.low) / span
        labels.append((height, f"Cut {panel.cut:.2f}{' ↑' if above else ''}", _COLOURS["cut"][0]))
    return sorted(
        (height, "\n".join(textwrap.wrap(text, _LABEL_CHARACTERS)), colour) for height, text, colour in labels
    )


def _room(text: str, size: float) -> float:
    """Points that a label takes from top to bottom, with the distance to the next."""
    return (1.2 * (text.count("\n") + 1) + 0.25) * size


def _draw_labels(axes: Axes, panel: Panel, size: float) -> None:
    """Write each line's label beside its end, moved apart where they would collide."""
    labels = _labels(panel)
    frame = axes.get_position().height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
    half = [_room(text, size) / frame / 2 for _, text, _ in labels]
    line = _room("", size) / frame / 2
    # A label of several lines stays as far from the frame's ends as one of a single line.
    inside = [(room - line, 1.0 - room + line) for room in half]
    heights = [min(max(height, low), high) for (height, _, _), (low, high) in zip(labels, inside, strict=True)]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + half[index - 1] + half[index])
    if heights and heights[-1] > inside[-1][1]:
        heights[-1] = inside[-1][1]
        for index in range(len(heights) - 2, -1, -1):
            heights[index] = min(heights[index], heights[index + 1] - half[index + 1] - half[index])
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        place: Any = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        written = axes.annotate(text, (1.0, height), color=colour, fontsize=size, annotation_clip=False, **place)
        written.set_parse_math(False)


def _draw_panel(axes: Axes, panel: Panel, size: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    colours = _colours(panel)
    others = [model for model in panel.models if model not in _MARKS]
    # so that the last mark is drawn whole
    right = 1.015 * max(points[-1][0] for points in (*panel.lines.values(), *panel.training.values())) or 1
    for model, points in panel.training.items():
        axes.plot(*zip(*points, strict=True), color=colours[model], linewidth=0.9, alpha=0.35)
    for model, points in panel.lines.items():
        mark, style = _MARKS.get(model) or _OTHER_MARKS[others.index(model) % len(_OTHER_MARKS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colours[model],
            linewidth=2,
            linestyle=style,
            marker=mark,
            markersize=4,
            markevery=math.ceil(len(points) / 12),
            zorder=3 if model == "target" else 2,
        )
        if points[-1][0] < 0.97 * right:  # it leads to its label, which is at the frame's edge
            across, down = (points[-1][0], right), (points[-1][1], points[-1][1])
            axes.plot(across, down, color=colours[model], linewidth=0.9, linestyle=(0, (1, 3)))
    if panel.reference is not None:
        axes.axhline(panel.reference, color=_INK, linewidth=1.4)
    if panel.cut is not None and panel.cut <= panel.high:
        axes.axhline(panel.cut, color=_COLOURS["cut"][0], linewidth=1.4, linestyle=":")
    axes.set_ylim(panel.low, panel.high)
    axes.set_xlim(0, right)
    axes.set_title(panel.name, loc="left", fontsize=size + 1, fontweight="bold", color=_INK, parse_math=False, pad=10)
    roomy = axes.get_position().width * axes.figure.get_figwidth() * 72 > 300  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(MaxNLocator(6 if roomy else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(panel, value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=_INK, alpha=0.13, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=size, length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    _draw_labels(axes, panel, size)


def _tick(panel: Panel, value: float) -> str:
    """A place on the axis across, without decimals that say nothing: 10M, 2.5B, 2e12."""
    text = panel.place(value)
    return re.sub(r"\.?0+(?=[KMBTe])", "", text) if "." in text else text


def draw_curves(panels: list[Panel], narrow: bool = False, prefix: str = "") -> str:
    """Validation loss (nats a token), a panel a set, as an SVG element of text and CSS colours.

    Args:
        panels: at least one.
        narrow: for a phone: 350 units wide, one panel above the other; otherwise 720 units, the first over the full
            width and the others two in a row. A unit is a CSS pixel at the size it is meant for.
        prefix: of its ids, where the page has another figure.
    """
    svg = _written(panels, narrow, "svg", {"Creator": None, "Date": None, "Format": None, "Type": None}, clear=True)
    return _for_the_page(svg.decode("utf-8"), prefix + ("n-" if narrow else "w-"))


def curves_pdf(panels: list[Panel]) -> bytes:
    """The same figure, wide, as a PDF for print: dark lines and text on nothing; the same panels give the same bytes.

    Args:
        panels: at least one.
    """
    return _written(panels, False, "pdf", {"Creator": None, "Producer": None, "CreationDate": None}, clear=False)


def _written(panels: list[Panel], narrow: bool, kind: str, metadata: dict[str, None], *, clear: bool) -> bytes:
    """The figure as a file of a kind."""
    import matplotlib as mpl

    settings: Any = {"svg.hashsalt": "inheritune", "svg.fonttype": "none", "pdf.fonttype": 42}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A set's name may be in any script; the browser, not matplotlib, finds the font.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        buffer = io.BytesIO()
        _figure(panels, narrow).savefig(buffer, format=kind, transparent=clear, metadata=metadata)
    return buffer.getvalue()


def _figure(panels: list[Panel], narrow: bool) -> Figure:
    from matplotlib.figure import Figure

    columns, width, size = (1, 350, 11.0) if narrow else (2, 720, 12.0)
    rows = [panels[:1], *(panels[start : start + columns] for start in range(1, len(panels), columns))]
    # Room in units: tick labels left, title above, tick labels and axis label below, line labels right.
    left, right, above, below = 36, 106 if narrow else 116, 34, 44
    least = [250 if narrow else 340, *[230 if narrow else 250] * (len(rows) - 1)]
    needed = [max(math.ceil(sum(_room(text, size) for _, text, _ in _labels(panel))) for panel in row) for row in rows]
    heights = [max(low, above + need + below) for low, need in zip(least, needed, strict=True)]
    figure = Figure(figsize=(width / 72, sum(heights) / 72))
    top = 0
    for row, (shown, height) in enumerate(zip(rows, heights, strict=True)):
        cell = width if row == 0 else width / columns
        for column, panel in enumerate(shown):
            bottom = sum(heights) - top - height + below
            box = (column * cell + left, bottom, cell - left - right, height - above - below)
            axes = figure.add_axes((box[0] / width, box[1] / sum(heights), box[2] / width, box[3] / sum(heights)))
            _draw_panel(axes, panel, size)
            axes.set_xlabel(panel.across, color=_INK, fontsize=size, loc="left")
        top += height
    return figure


def _for_the_page(svg: str, prefix: str) -> str:
    """An SVG document as an element: no prologue, ids of its own, the page's font and colours."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", element)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    # Hundredths of a pixel are enough: with all of matplotlib's digits the paths are twice as long.
    element = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", element, count=1)
