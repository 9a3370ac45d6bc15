"""`evaluate` and `report`: what models and runs came to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from inheritune.cli.parsing import bare_parser, directory, plain, quiet
from inheritune.errors import Refused

if TYPE_CHECKING:
    from jsonargparse import Namespace


def evaluate(words: list[str]) -> None:
    """`evaluate`: models on tasks."""
    parser = bare_parser("evaluate")
    parser.add_argument(
        "model", type=str, nargs="*", help="directories, hub ids, or run directories: target, reference and controls"
    )
    parser.add_argument(
        "--suite",
        type=str,
        default="quick",
        help="table2, table4, quick, or the harness's tasks with their shots: piqa,mmlu:5",
    )
    parser.add_argument("--datasets", type=str | None, default=None, help="a mirror of the hub's data sets")
    parser.add_argument(
        "--against",
        type=str,
        nargs="+",
        default=[],
        help="models to compare with (of a run directory its target), the first of them as the reference where no run "
        "brings one; or published scores: published (the poster's), smollm2-70m, smollm2-135m-instruct",
    )
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="of runs, also under way, the saved checkpoints and a figure instead of controls",
    )
    parser.add_argument("--limit", type=int | None, default=None, help="at most so many rows of each task")
    parser.add_argument("--batch_size", type=int | None, default=None, help="rows at once (default: as many as fit)")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda (default: the GPU, if there is one)")
    parser.add_argument(
        "--dtype", type=str | None, default=None, help="bfloat16, float16 or float32 (default: as stored)"
    )
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    parser.add_argument("--latex", action="store_true", help="write a LaTeX table, too")
    parser.add_argument("--card", action="store_true", help="write the results into the models' README.md")
    parser.add_argument(
        "--list_datasets", "--list-datasets", action="store_true", help="print what a mirror must hold, and end"
    )
    parser.add_argument(
        "--write_tasks",
        "--write-tasks",
        type=str | None,
        default=None,
        metavar="DIR",
        help="write the tasks for lm_eval, and end",
    )
    parser.add_argument("--revision", type=str | None, default=None, help="the model's revision on the hub")
    parser.add_argument("--trust_remote_code", type=bool, default=False, help="whether code of a model may be run")
    given = plain(parser, words)
    datasets = directory(given.datasets, "--datasets") if given.datasets is not None else None
    quiet()
    from inheritune import pipeline

    if given.list_datasets:
        print("\n".join(pipeline.list_datasets(given.suite)))
        return
    if given.write_tasks is not None:
        out = directory(given.write_tasks, "--write_tasks")
        print(pipeline.write_tasks(given.suite, out, datasets=datasets, limit=given.limit))
        return
    if not given.model:
        raise Refused("evaluate: MODEL is missing (see inheritune evaluate --help)")
    own = ("suite", "limit", "batch_size", "device", "dtype", "revision", "trust_remote_code")
    asked = pipeline.Asked(datasets=datasets, **{name: getattr(given, name) for name in own})
    pipeline.evaluate(
        given.model,
        asked,
        out=directory(given.out) if given.out is not None else None,
        **{name: getattr(given, name) for name in ("against", "checkpoints", "latex", "card")},
    )


def report(words: list[str]) -> None:
    """`report`: pages, tables and figures of runs."""
    parser = bare_parser("report")
    parser.add_argument("run", type=str, nargs="+", help="run directories")
    parser.add_argument(
        "--out", type=str | None, default=None, help="the directory that is written; of several RUNs: one page of all"
    )
    parser.add_argument("--markdown", action="store_true", help="write the tables in Markdown, too: report.md")
    parser.add_argument("--latex", action="store_true", help="write the tables in LaTeX, too: report.tex")
    parser.add_argument("--svg", action="store_true", help="write the curves on every axis as SVG, too")
    parser.add_argument("--pdf", action="store_true", help="write the curves on every axis as PDF, too")
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on 127.0.0.1 and draw it anew while the runs go on"
    )
    parser.add_argument("--port", type=int | None, default=None, help="--watch: of the server (default: a free one)")
    parser.add_argument(
        "--table1",
        action="store_true",
        help="print the poster's table 1 with the runs below it (in Markdown or LaTeX by their flags), and end",
    )
    parser.add_argument("--price", type=float | None, default=None, help="--table1: of an hour of one device")
    given = plain(parser, words)
    _check_report(given)
    if given.table1:
        _table1(given)
        return
    runs = [directory(run, "RUN") for run in given.run]
    out = directory(given.out) if given.out is not None else None
    kinds = [kind for kind in ("markdown", "latex", "svg", "pdf") if getattr(given, kind)]
    if given.watch:
        _watch(runs, given.port or 0)
        return
    from inheritune.console import Console
    from inheritune.report import check_runs, render_table4, write_comparison, write_exports, write_report

    check_runs(runs)
    if out is not None and out.exists() and not out.is_dir():
        raise Refused(f"--out {out}: a file, not a directory; give another")
    if out is not None:
        _check_out(out)
    if out is not None and len(runs) > 1:
        print(write_comparison(runs, out))
        for path in write_exports(runs, out, kinds) if kinds else ():
            print(path)
        return
    console = Console()
    for run in runs:
        page = write_report(run, out)
        console.table(render_table4(run, width=console.width))
        print(page)
        for path in write_exports([run], run if out is None else out, kinds) if kinds else ():
            print(path)


def _check_report(given: Namespace) -> None:
    """Refuse flags that do not go together."""
    flags = ("out", "markdown", "latex", "svg", "pdf", "watch", "port", "price")
    there = [name for name in flags if (value := getattr(given, name)) is not None and value is not False]
    for owner, unwanted, why in (
        ("watch", ("out", "markdown", "latex", "svg", "pdf"), "--watch writes nothing"),
        ("table1", ("out", "svg", "pdf", "watch"), "--table1 prints one table"),
    ):
        wrong = next((name for name in unwanted if name in there), None)
        if getattr(given, owner) and wrong is not None:
            raise Refused(f"report: {why}; leave out --{wrong}")
    for owner, name in (("watch", "port"), ("table1", "price")):
        if name in there and not getattr(given, owner):
            raise Refused(f"report: --{name} belongs to --{owner}")


def _check_out(out: Path) -> None:
    """Refuse a directory that the file system does not allow, before a page is drawn for it."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists() or place.is_symlink())
    try:
        with TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        raise Refused(f"--out {out}: cannot be made ({error.strerror}); give another") from None


def _watch(runs: list[Path], port: int) -> None:
    """`report --watch`: until Ctrl-C; where nobody sees the terminal, until the runs are over."""
    import time

    from inheritune.console import Console, live_line
    from inheritune.report import Following, served

    console = Console()
    with served(runs, port) as address, contextlib.suppress(KeyboardInterrupt):
        console.line(f"Watching at {address} (Ctrl-C ends)")
        followed = [Following(run) for run in runs]
        while True:
            found = [following() for following in followed]
            console.status(" | ".join(live_line(run.resolve().name, one) for run, one in zip(runs, found, strict=True)))
            if all(one.over for one in found) and not console.is_terminal:
                return
            time.sleep(1)


def _table1(given: Namespace) -> None:
    """`report --table1`: nothing is written."""
    if given.markdown and given.latex:
        raise Refused("report: --markdown and --latex: give one of them")
    from inheritune.console import Console
    from inheritune.report import latex_table1, markdown_table1, render_table1, table1_sheet

    sheet = table1_sheet([directory(run, "RUN") for run in given.run], price_per_device_hour=given.price)
    if given.markdown or given.latex:
        print((markdown_table1 if given.markdown else latex_table1)(sheet), end="")
        return
    console = Console()
    console.table(render_table1(sheet, width=console.width))
