"""The page: what a run directory holds, rendered; small enough whatever it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import Refused
from inheritune.report.beside import read_runs, runs_content
from inheritune.report.content import Limits, RunRecords, read_run, run_content
from inheritune.report.figures import Figure, standalone
from inheritune.run_directory import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BYTES = 1_000_000
"""A page is smaller."""
LIMITS = (Limits(), Limits(20_000, 300), Limits(10_000, 100, ("tokens",)), Limits(2_000, 0, ()))
"""Tried in order until the page is small enough."""
_TEMPLATES = Path(__file__).parent.parent / "templates"


def templates() -> Environment:
    """The environment that renders pages: whatever is not said to be markup is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(run: Path, head: str = "") -> str:
    """A run's page as HTML.

    Args:
        run: the run directory.
        head: markup for the end of the page's head, such as a script.

    Raises:
        Refused: `run` is no directory.
    """
    return _rendered(read_run(run), head)[0]


def _rendered(read: RunRecords, head: str = "") -> tuple[str, dict[str, Any]]:
    """The page, and what it shows."""
    environment = templates()

    def attempt(limits: Limits) -> tuple[str, dict[str, Any]]:
        content = run_content(read, limits)
        body = environment.get_template("run.html.j2").render(content, level=2)
        shown = {key: content[key] for key in ("name", "verdict", "state", "facts")}
        page = environment.get_template("report.html.j2").render(shown, title=read.name, body=body, head=head)
        return page + "\n", content

    return within_limits(attempt)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write `out/report.html`, one self-contained page of several runs, and `out/curves.svg`; the page's path.

    Args:
        runs: run directories, at least two, finished or not.
        out: the directory that is written.

    Raises:
        Refused: one of `runs` is no directory or is named twice, or `out` is one of them.
        OSError: as `write_report`.
    """
    read = read_runs(runs)
    if out.resolve() in {run.resolve() for run in runs}:
        raise Refused(f"--out {out}: is one of the runs, and would lose its own report; give another directory")
    page, content = rendered_comparison(read)
    out.mkdir(parents=True, exist_ok=True)
    if content["figures"]:
        write_atomic(out / "curves.svg", standalone(content["figures"][0].wide))
    write_atomic(out / "report.html", page)
    return out / "report.html"


def rendered_comparison(runs: Sequence[RunRecords], head: str = "") -> tuple[str, dict[str, Any]]:
    """The page of several runs, and what it shows.

    Args:
        runs: their records, of at least two.
        head: as for `render_report`.
    """
    environment = templates()

    def attempt(limits: Limits) -> tuple[str, dict[str, Any]]:
        content = runs_content(runs, limits)
        bodies = [
            {**run, "body": environment.get_template("run.html.j2").render(run, level=3)} for run in content["runs"]
        ]
        together = {**content, "runs": [*zip(content["labels"], bodies, strict=True)]}
        body = environment.get_template("runs.html.j2").render(together)
        shown = {"name": ", ".join(content["labels"]), "verdict": content["verdict"], "state": None, "facts": []}
        title = f"{len(runs)} runs"
        page = environment.get_template("report.html.j2").render(shown, title=title, body=body, head=head)
        return page + "\n", content

    return within_limits(attempt)


def within_limits(attempt: Callable[[Limits], tuple[str, Any]]) -> tuple[str, Any]:
    """The first page of `LIMITS` that is smaller than `MOST_BYTES`, else the smallest, with what goes with it."""
    page, content = "", None
    for limits in LIMITS:
        page, content = attempt(limits)
        page = page.encode("utf-8", "replace").decode("utf-8")  # a file's name may be no text
        if len(page.encode("utf-8")) < MOST_BYTES:
            break
    return page, content


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write `report.html`, one self-contained page, `curves.svg`, `growth.svg` of a growth; the page's path.

    Any record may be missing or unreadable: the page marks it as a gap. The same records give the same bytes.

    Args:
        run: the run directory.
        out: the directory that is written, if it is another.

    Raises:
        Refused: `run` is no directory.
        OSError: the page cannot be written (disk full, no permission); the old one is then untouched.
    """
    page, content = _rendered(read_run(run))
    directory = run if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = content["figures"]
    curves = figures[0].wide if figures else None
    for name, figure in (("curves.svg", curves), ("growth.svg", (content["growth"] or {}).get("wide"))):
        if figure is not None:
            write_atomic(directory / name, standalone(figure))
    write_atomic(directory / "report.html", page)
    return directory / "report.html"
