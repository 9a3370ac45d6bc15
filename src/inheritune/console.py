"""What a person sees while a run goes on: lines, and a progress bar with loss, speed and time left. No torch.

On a terminal the bar moves in place; elsewhere (a log file, a batch job) it becomes a plain line every half minute.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from inheritune.errors import printable

PLAIN_LINE_EVERY_SECONDS = 30.0


class Step(Protocol):
    """What a bar needs of a training's progress."""

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def tokens_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float: ...


_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 16


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
    """Values as a line of bars, the lowest as the lowest bar; empty for none.

    Args:
        values: in order, finite; where there are more than `width`, each bar is a mean.
        width: bars at most.
    """
    size = math.ceil(len(values) / width) or 1
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    means = [sum(group) / len(group) for group in groups]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / span) if span else 0] for value in means)


class Console:
    """Prints to standard error, so that a command's result on standard output can be piped."""

    def __init__(self, *, silent: bool = False) -> None:
        from rich.console import Console as RichConsole

        self._silent = silent
        """Whether another rank speaks for all."""
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._last_plain_line = -PLAIN_LINE_EVERY_SECONDS
        self._shown = 0
        self._losses: list[float] = []
        """Of the training whose progress is shown, for its sparkline."""
        self._step = 0

    @property
    def is_terminal(self) -> bool:
        """Whether somebody sees a line move in place."""
        return self._rich.is_terminal

    @property
    def width(self) -> int:
        """Columns that a table may take on standard output."""
        from rich.console import Console as RichConsole

        return RichConsole().width

    def line(self, text: str) -> None:
        """Print one line."""
        if self._silent:
            return
        self._clear()
        self._rich.print(printable(text), markup=False)

    def stage(self, text: str) -> None:
        """Announce a stage."""
        if self._silent:
            return
        self._clear()
        self._rich.print(text, style="bold", markup=False)
        self._last_plain_line = -PLAIN_LINE_EVERY_SECONDS

    def table(self, table: Any) -> None:
        """Print a rich table (or text) to standard output: it is the command's result."""
        from rich.console import Console as RichConsole

        self._clear()
        RichConsole(highlight=False).print(table)

    def progress(self, step: Step, later: int = 0) -> None:
        """Show where a training stands, and when all will be done if `later` more like it are to come."""
        if self._silent:
            return
        left = duration(step.seconds_left)
        if later and step.step < step.steps:
            each = step.seconds_left * step.steps / (step.steps - step.step)
            left = f"{left} left, {duration(step.seconds_left + later * each)} with the {later} to come"
        else:
            left += " left"
        text = (
            f"  step {step.step}/{step.steps}  loss {step.loss:.3f} nats a token  "
            f"{step.tokens_per_second:,.0f} tokens/s  {left}"
        )
        last = step.step == step.steps
        if step.step <= self._step:  # another training, or one that goes on
            self._losses = []
        self._step = step.step
        self._losses += [step.loss] if math.isfinite(step.loss) else []
        if self._rich.is_terminal:
            bar = "█" * (16 * step.step // step.steps)
            line = f"  {bar:░<16}{text}  {sparkline(self._losses)}"[: self._rich.width - 1]
            sys.stderr.write("\r" + line.ljust(self._shown))
            sys.stderr.flush()
            self._shown = len(line)
            if last:
                sys.stderr.write("\n")
                self._shown = 0
        elif last or time.monotonic() - self._last_plain_line >= PLAIN_LINE_EVERY_SECONDS:
            self._last_plain_line = time.monotonic()
            self._rich.print(text, markup=False)

    def status(self, text: str) -> None:
        """Show how something stands: in place on a terminal, elsewhere as a plain line every half minute."""
        if self._silent:
            return
        if self._rich.is_terminal:
            line = text[: self._rich.width - 1]
            sys.stderr.write("\r" + line.ljust(self._shown))
            sys.stderr.flush()
            self._shown = len(line)
        elif time.monotonic() - self._last_plain_line >= PLAIN_LINE_EVERY_SECONDS:
            self._last_plain_line = time.monotonic()
            self._rich.print(text, markup=False)

    def work(self, what: str, unit: str = "") -> Callable[[int, int], None]:
        """A counter for work that is measured in pieces: call it with those done and all; it shows share and time left.

        Args:
            what: the work, such as `writing`.
            unit: of the pieces, such as `blocks`; of bytes and the like leave it out, and the share alone is shown.
        """
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            if self._silent:
                return
            spent = time.monotonic() - started
            left = duration(spent * (total - done) / done) if done else "?"
            counted = f"{done}/{total} {unit}" if unit else f"{done / max(1, total):.0%}"
            self._show(f"  {what} {counted}  {left} left", done >= total, done, total, quick=spent < 2)

        return show

    def _show(self, text: str, last: bool, done: int, total: int, *, quick: bool = False) -> None:
        """Redraw the bar; where there is no terminal, print a line now and then. Of quick work only a terminal sees."""
        if self._rich.is_terminal:
            bar = "█" * (24 * done // max(1, total))
            line = f"  {bar:░<24}{text}"[: self._rich.width - 1]
            sys.stderr.write("\r" + line.ljust(self._shown))
            sys.stderr.flush()
            self._shown = len(line)
            if last:
                self._clear()
        elif not quick and time.monotonic() - self._last_plain_line >= PLAIN_LINE_EVERY_SECONDS:
            self._last_plain_line = time.monotonic()
            self._rich.print(text, markup=False)

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            self._shown = 0


def duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 3 min 20 s, 5 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Standing(Protocol):
    """What a line needs of a run that is watched."""

    @property
    def state(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def step(self) -> int | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def tokens_per_second(self) -> float | None: ...
    @property
    def seconds_left(self) -> float | None: ...


def live_line(name: str, found: Standing) -> str:
    """A watched run in a line: stage, step, loss with its sparkline, speed, time left; what is not known is left out.

    Args:
        name: what the run is called.
        found: how it stands.
    """
    parts = [f"{name}: {found.stage}" if found.state in ("running", "unknown") else f"{name}: {found.state}"]
    if found.step is not None:
        parts.append(f"step {found.step}/{found.steps}" if found.steps else f"step {found.step}")
    if found.losses:
        parts.append(f"loss {found.losses[-1]:.3f} {sparkline(found.losses)}")
    if found.tokens_per_second is not None:
        parts.append(f"{found.tokens_per_second:,.0f} tokens/s")
    if found.seconds_left is not None:
        parts.append(f"{duration(found.seconds_left)} left")
    return "  ".join(parts)
