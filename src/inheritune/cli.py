"""The command line: a command is parse, then one call. Libraries are imported by the command that needs them.

Exit codes: 0 done; 2 refused before anything was written; 1 failed later, resumable; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from inheritune import __version__
from inheritune.errors import InherituneError, Interrupted, Refused

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

USAGE = """usage: inheritune COMMAND [ARGUMENTS]

Makes a small language model out of a large one: keeps its first layers and trains them on few tokens.

commands:
{commands}

inheritune COMMAND --help shows a command's arguments; inheritune --version the version.
Start here: inheritune run demo
"""


_FILE_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.EEXIST),
)
"""What the file system may refuse for reasons outside this program; any other is a fault in it, and shown whole."""


@dataclass(frozen=True)
class Command:
    """A command: what it takes in words, what it does in a line, and the function that parses and calls."""

    arguments: str
    summary: str
    call: Callable[[list[str]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Expected errors are printed as one line to standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
        rows = [f"  {f'{name} {command.arguments}':<{width}}  {command.summary}" for name, command in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(rows)), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"inheritune {__version__}")
        return 0
    try:
        command = _command(words[0])
        signal.signal(signal.SIGTERM, _terminated)
        command.call(words[1:])
    except Interrupted as stop:
        if not stop.said:
            print(f"inheritune: {stop}; the same command goes on from there", file=sys.stderr)
        return stop.exit_code
    except InherituneError as error:
        text = str(error).replace("\n", " ").replace("\r", " ")  # a name that a user gives may hold them
        if not error.said:
            print(f"inheritune: {text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("inheritune: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _FILE_SYSTEM_ERRORS:
            raise
        where = error.filename or "output"
        kept = "what was finished is kept: mend it and give the same command again"
        print(f"inheritune: {where}: {error.strerror}; {kept}", file=sys.stderr)
        return 1
    return 0


def main_entry() -> None:
    """The console script."""
    code = main()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the interpreter's own end
    sys.exit(code)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM", 128 + signal.SIGTERM)


def _command(name: str) -> Command:
    if name not in COMMANDS:
        import difflib

        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise Refused(f"unknown command {name!r}{hint} (commands: {', '.join(COMMANDS)})")
    return COMMANDS[name]


def _quiet() -> None:
    """Without transformers' own progress bars: a command shows one of its own where there is something to wait for.

    And without what torchao, imported by transformers wherever it is installed, tells its developers when it loads.
    """
    import logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _parser(name: str, kind: type[Any]) -> ArgumentParser:
    """A command's parser: one flag a key of its config, and `--out`."""
    from inheritune.recipe import build_parser

    parser = build_parser(kind, f"inheritune {name}", COMMANDS[name].summary)
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    return parser


def _plain(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse words by a parser without a config."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        required = re.search(r"arguments are required: (.*)", str(error))
        if required is not None:
            flags = re.findall(r"--\w+", parser.format_usage())
            names = [f"--{name}" if f"--{name}" in flags else name.upper() for name in required.group(1).split(", ")]
            raise Refused(f"{parser.prog}: {' and '.join(names)} missing (see {parser.prog} --help)") from None
        text = " ".join(str(error).split())
        wrong = re.match(r'Parser key "(\w+)": .*(?:Got value|Given value): (.*)', text)
        if wrong is not None:
            text = f"--{wrong.group(1)} cannot be {wrong.group(2)!r}"
        raise Refused(f"{parser.prog}: {text} (see {parser.prog} --help)") from None


def _directory(word: str, argument: str = "--out") -> Path:
    """A directory's name as a path, be it there or not."""
    try:
        if not word:
            raise ValueError("empty")
        path = Path(word).expanduser()
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null byte; RuntimeError: a ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{argument} {word!r}: cannot name a directory ({reason}); give another") from None
    return path


def _bare_parser(name: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    summary = COMMANDS[name].summary
    return ArgumentParser(exit_on_error=False, prog=f"inheritune {name}", description=summary, allow_abbrev=False)


def _run_until(name: str, until: str) -> Callable[[list[str]], None]:
    """`run`, `train` and `grow`: a recipe, overridden by flags, up to a stage."""

    def call(words: list[str]) -> None:
        from inheritune.config import Recipe
        from inheritune.recipe import packaged_recipes, parse, read_recipe

        parser = _parser(name, Recipe)
        parser.add_argument("recipe", type=str, help=f"a YAML file, or one of: {', '.join(packaged_recipes())}")
        _, first = parse(parser, Recipe, words, {}, f"inheritune {name}", complete=False)
        values, where = read_recipe(first.recipe)
        if name == "grow" and values.get("grow") is None:
            values["grow"] = {}
        recipe, namespace = parse(parser, Recipe, words, values, where)
        if name == "grow" and recipe.grow is None:
            raise Refused(f"{where}: --grow null leaves nothing to grow by; leave it out for the defaults")
        if name == "train" and recipe.grow is not None:
            raise Refused(f"{where}: grows; give `inheritune grow`, or `inheritune run` for its controls, too")
        _quiet()
        from inheritune import pipeline

        pipeline.run(recipe, _directory(namespace.out) if namespace.out is not None else None, until=until)

    return call


def _plan(words: list[str]) -> None:
    from inheritune.config import Recipe
    from inheritune.devices import MEASURED, NAMES
    from inheritune.recipe import build_parser, packaged_recipes, parse, read_recipe

    parser = build_parser(Recipe, "inheritune plan", COMMANDS["plan"].summary)
    parser.add_argument("recipe", type=str, help=f"a YAML file, or one of: {', '.join(packaged_recipes())}")
    parser.add_argument(
        "--device",
        type=str,
        default=MEASURED,
        help=f"{', '.join(NAMES)}: by a data sheet, by a stated figure a core, or this machine, measured (default)",
    )
    parser.add_argument("--devices", type=int, default=1, help="how many of it")
    parser.add_argument("--price", type=float | None, default=None, help="of an hour of one device, in any currency")
    parser.add_argument(
        "--claim",
        type=float | None,
        default=None,
        help="hours that the target's training is said to take; refused where no program could be so fast",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    _, first = parse(parser, Recipe, words, {}, "inheritune plan", complete=False)
    values, where = read_recipe(first.recipe)
    recipe, given = parse(parser, Recipe, words, values, where)
    _quiet()
    from inheritune import pipeline
    from inheritune.console import Console

    console = Console()
    asked = pipeline.Circumstances(given.device, given.devices, given.price, given.claim)
    plan = pipeline.make_plan(recipe, asked, console=console)
    if given.json:
        import json

        print(json.dumps(plan, indent=2))
        return
    from inheritune.report import render_plan

    console.table(render_plan(plan, width=console.width))


def _prepare(words: list[str]) -> None:
    from inheritune.config import DataConfig, SourceConfig
    from inheritune.recipe import parse

    parser = _parser("prepare", DataConfig)
    parser.add_argument("source", type=str, nargs="*", help="files, globs, directories, hub:ORG/NAME or python-source")
    parser.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="the reference (a directory or a hub id) whose tokenizer to use",
    )
    parser.add_argument(
        "--document_separator", type=str | None, default=None, help="what separates documents of plain-text SOURCEs"
    )
    config, namespace = parse(parser, DataConfig, words, {}, "inheritune prepare")
    if namespace.out is None or namespace.tokenizer is None:
        raise Refused(f"prepare: --{'out' if namespace.out is None else 'tokenizer'} is missing")
    # A shell passes '\\n' on as two characters; nobody separates documents by a backslash and an n.
    separator = namespace.document_separator
    separator = separator.replace("\\n", "\n") if separator is not None else None
    given = [SourceConfig(path=path, document_separator=separator) for path in namespace.source]
    import dataclasses

    _quiet()
    from inheritune import pipeline

    pipeline.prepare(
        dataclasses.replace(config, sources=[*config.sources, *given]), namespace.tokenizer, _directory(namespace.out)
    )


def _inherit(words: list[str]) -> None:
    parser = _bare_parser("inherit")
    parser.add_argument("reference", type=str, help="a directory, a GGUF file, a hub id or packaged:demo")
    parser.add_argument(
        "--layers",
        type=str | None,
        default=None,
        help="which layers to keep, counted from 0: 13 (the first 13), half, 0-11,25, every:2, last:13, "
        "first:12+last:1; measured on --data: influence:13 (the 13 that turn the hidden state most one by one) or "
        "angular:13 (all but the one stretch that turns it least)",
    )
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    parser.add_argument(
        "--init",
        type=str,
        default="inherit",
        help="inherit; for controls: random, stack, or parts of the reference such as attention+block_norms, of "
        "attention, mlp, block_norms, embeddings, final_norm, head",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what --init draws at random")
    parser.add_argument(
        "--scan", action="store_true", help="measure what every prefix scores on --data before any training"
    )
    parser.add_argument("--data", type=str | None, default=None, help="a directory that inheritune prepare wrote")
    parser.add_argument(
        "--sequence_length", type=int | None, default=None, help="--scan: tokens a sequence (default: at most 1024)"
    )
    parser.add_argument(
        "--positions",
        type=str | None,
        default=None,
        help="--scan: how many positions are scored, a sample, or all (default: 16384)",
    )
    parser.add_argument("--revision", type=str | None, default=None, help="the reference's revision on the hub")
    parser.add_argument(
        "--reference_file", type=str | None, default=None, help="of a hub id or a directory, its GGUF file to take"
    )
    parser.add_argument(
        "--reference_dtype",
        type=Literal["float32", "bfloat16"] | None,
        default=None,
        help="of a GGUF file, what it is dequantised to (default: float32)",
    )
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help="whether code of the reference may be run"
    )
    given = _plain(parser, words)
    if given.layers is None and not given.scan:
        raise Refused("inherit: --layers is missing (see inheritune inherit --help)")
    if given.out is None and not given.scan:
        raise Refused("inherit: --out is missing (see inheritune inherit --help)")
    if given.scan and given.data is None:
        raise Refused(
            "inherit: --scan measures on prepared text; give --data, a directory that inheritune prepare wrote"
        )
    if given.sequence_length is not None and (given.sequence_length < 2 or not given.scan):
        raise Refused("inherit: --sequence_length must be 2 or more, and belongs to --scan")
    positions = given.positions
    if positions is not None and (not re.fullmatch("all|0*[1-9][0-9]{0,17}", positions, re.ASCII) or not given.scan):
        raise Refused("inherit: --positions must be a number of 1 or more, or all, and belongs to --scan")
    if not 0 <= given.seed < 2**63:
        raise Refused("inherit: --seed must be 0 or more, below 2**63")
    out = _directory(given.out) if given.out is not None else None
    data = _directory(given.data, "--data") if given.data is not None else None
    _quiet()
    from inheritune import pipeline

    shared = ("sequence_length", "revision", "reference_file", "reference_dtype", "trust_remote_code")
    common = {name: getattr(given, name) for name in shared}
    if positions is not None:
        common["positions"] = None if positions == "all" else int(positions)
    if given.layers is not None and out is not None:
        own = {name: getattr(given, name) for name in ("init", "seed", "scan")}
        pipeline.inherit(given.reference, given.layers, out, data=data, **own, **common)
    elif data is not None:
        pipeline.scan(given.reference, data, layers=given.layers, out=out, **common)


def _depth(words: list[str]) -> None:
    parser = _bare_parser("depth")
    parser.add_argument("reference", type=str, help="a directory, a GGUF file, a hub id or packaged:demo")
    parser.add_argument(
        "--data", type=str, required=True, help="a directory that inheritune prepare wrote, with a development set"
    )
    parser.add_argument(
        "--max_parameters", "--max-parameters", type=str | None, default=None, help="of the target, such as 1.5B"
    )
    parser.add_argument(
        "--max_memory",
        "--max-memory",
        type=str | None,
        default=None,
        help="of a step of its training, one sequence at a time, such as 24GB or 80GiB",
    )
    parser.add_argument(
        "--probe_tokens",
        "--probe-tokens",
        type=str,
        default="2M",
        help="what the probe may cost, in tokens of training the deepest candidate (default: 2M); 0: no training",
    )
    parser.add_argument(
        "--sequence_length", type=int | None, default=None, help="tokens a sequence (default: at most 512)"
    )
    parser.add_argument("--batch_sequences", type=int, default=8, help="sequences a step of the probe (default: 8)")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of the probe (default: 3e-4)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of blocks, and of the untrained network")
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    parser.add_argument("--revision", type=str | None, default=None, help="the reference's revision on the hub")
    parser.add_argument(
        "--reference_file", type=str | None, default=None, help="of a hub id or a directory, its GGUF file to take"
    )
    parser.add_argument(
        "--reference_dtype",
        type=Literal["float32", "bfloat16"] | None,
        default=None,
        help="of a GGUF file, what it is dequantised to (default: float32)",
    )
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help="whether code of the reference may be run"
    )
    given = _plain(parser, words)
    if given.sequence_length is not None and given.sequence_length < 2:
        raise Refused("depth: --sequence_length must be 2 or more")
    if not 0 <= given.seed < 2**63:
        raise Refused("depth: --seed must be 0 or more, below 2**63")
    from inheritune.config import TokenCount
    from inheritune.depth import parse_bytes

    amounts: dict[str, Callable[[str], int]] = {"max_parameters": TokenCount, "max_memory": parse_bytes}
    budget = {name: _amount(name, getattr(given, name), convert) for name, convert in amounts.items()}
    probe_tokens = _amount("probe_tokens", given.probe_tokens, TokenCount)
    data = _directory(given.data, "--data")
    out = _directory(given.out) if given.out is not None else None
    _quiet()
    from inheritune import pipeline

    own = ("sequence_length", "batch_sequences", "learning_rate", "seed")
    shared = ("revision", "reference_file", "reference_dtype", "trust_remote_code")
    pipeline.choose_depth(
        given.reference,
        data,
        out=out,
        max_parameters=budget["max_parameters"],
        max_memory=budget["max_memory"],
        probe_tokens=probe_tokens or 0,
        **{name: getattr(given, name) for name in (*own, *shared)},
    )


def _amount(name: str, text: str | None, convert: Callable[[str], int]) -> int | None:
    """A flag's amount as a number."""
    if text is None:
        return None
    try:
        return int(convert(text))
    except ValueError:
        forms = "24GB or 80GiB" if name == "max_memory" else "500K, 90M or 1.5B"
        raise Refused(f"depth: --{name} cannot be {text!r}; give a number such as {forms}") from None


def _evaluate(words: list[str]) -> None:
    parser = _bare_parser("evaluate")
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
    given = _plain(parser, words)
    datasets = _directory(given.datasets, "--datasets") if given.datasets is not None else None
    _quiet()
    from inheritune import pipeline

    if given.list_datasets:
        print("\n".join(pipeline.list_datasets(given.suite)))
        return
    if given.write_tasks is not None:
        out = _directory(given.write_tasks, "--write_tasks")
        print(pipeline.write_tasks(given.suite, out, datasets=datasets, limit=given.limit))
        return
    if not given.model:
        raise Refused("evaluate: MODEL is missing (see inheritune evaluate --help)")
    own = ("suite", "limit", "batch_size", "device", "dtype", "revision", "trust_remote_code")
    asked = pipeline.Asked(datasets=datasets, **{name: getattr(given, name) for name in own})
    pipeline.evaluate(
        given.model,
        asked,
        out=_directory(given.out) if given.out is not None else None,
        **{name: getattr(given, name) for name in ("against", "checkpoints", "latex", "card")},
    )


def _report(words: list[str]) -> None:
    parser = _bare_parser("report")
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
    given = _plain(parser, words)
    _check_report(given)
    if given.table1:
        _table1(given)
        return
    runs = [_directory(run, "RUN") for run in given.run]
    out = _directory(given.out) if given.out is not None else None
    kinds = [kind for kind in ("markdown", "latex", "svg", "pdf") if getattr(given, kind)]
    if given.watch:
        _watch(runs, given.port or 0)
        return
    from inheritune.console import Console
    from inheritune.report import check_runs, render_table4, write_comparison, write_exports, write_report

    check_runs(runs)
    if out is not None and out.exists() and not out.is_dir():
        raise Refused(f"--out {out}: a file, not a directory; give another")
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


def _watch(runs: list[Path], port: int) -> None:
    """`report --watch`: until Ctrl-C; where nobody sees the terminal, until the runs are over."""
    import time

    from inheritune.console import Console, live_line
    from inheritune.report import live, served

    console = Console()
    with served(runs, port) as address, contextlib.suppress(KeyboardInterrupt):
        console.line(f"Watching at {address} (Ctrl-C ends)")
        while True:
            found = [live(run) for run in runs]
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

    sheet = table1_sheet([_directory(run, "RUN") for run in given.run], price_per_device_hour=given.price)
    if given.markdown or given.latex:
        print((markdown_table1 if given.markdown else latex_table1)(sheet), end="")
        return
    console = Console()
    console.table(render_table1(sheet, width=console.width))


COMMANDS = {
    "run": Command(
        "RECIPE", "the whole recipe: prepare, inherit, train or grow, controls, report", _run_until("run", "report")
    ),
    "plan": Command("RECIPE --device a6000", "what a recipe costs: FLOPs, memory, hours, energy, money", _plan),
    "prepare": Command("SOURCE...", "text to token shards", _prepare),
    "inherit": Command("REFERENCE --layers 13", "surgery alone: a Hugging Face directory and its proof", _inherit),
    "depth": Command(
        "REFERENCE --data SHARDS", "how many layers to inherit, and which: measured, probed, with reasons", _depth
    ),
    "train": Command("RECIPE", "prepare, inherit and train the target, without controls", _run_until("train", "train")),
    "grow": Command(
        "RECIPE",
        "rounds of more layers until one matches, no controls (`run` of a recipe with `grow` trains both)",
        _run_until("grow", "train"),
    ),
    "evaluate": Command("MODEL... --suite table2", "the poster's tasks through lm-evaluation-harness", _evaluate),
    "report": Command("RUN...", "a run's page and table 4 again; several on one page; watched; table 1", _report),
}
