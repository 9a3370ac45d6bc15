"""What the commands' parsers share: flags, names of directories, and errors of jsonargparse as one line of ours."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inheritune.errors import Refused, is_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SUMMARIES = {
    "run": ("RECIPE", "the whole recipe: prepare, inherit, train or grow, controls, report"),
    "plan": ("RECIPE --device a6000", "what a recipe costs: FLOPs, memory, hours, energy, money"),
    "prepare": ("SOURCE...", "text to token shards"),
    "inherit": ("REFERENCE --layers 13", "surgery alone: a Hugging Face directory and its proof"),
    "depth": ("REFERENCE --data SHARDS", "how many layers to inherit, and which: measured, probed, with reasons"),
    "train": ("RECIPE", "prepare, inherit and train the target, without controls"),
    "grow": (
        "RECIPE",
        "rounds of more layers until one matches, no controls (`run` of a recipe with `grow` trains both)",
    ),
    "evaluate": ("MODEL... --suite table2", "the poster's tasks through lm-evaluation-harness"),
    "report": ("RUN...", "a run's page and table 4 again; several on one page; watched; table 1"),
}
"""Every command, in the order in which help shows them: what it takes in words, and what it does in a line."""


def quiet() -> None:
    """Without transformers' own progress bars: a command shows one of its own where there is something to wait for.

    And without what torchao, imported by transformers wherever it is installed, tells its developers when it loads.
    """
    import logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def config_parser(name: str, kind: type[Any]) -> ArgumentParser:
    """A command's parser: one flag a key of its config, and `--out`."""
    from inheritune.recipe import build_parser

    parser = build_parser(kind, f"inheritune {name}", SUMMARIES[name][1])
    parser.add_argument("--out", type=str | None, default=None, help="the directory that is written")
    return parser


def bare_parser(name: str) -> ArgumentParser:
    """A command's parser without a config."""
    from jsonargparse import ArgumentParser

    summary = SUMMARIES[name][1]
    return ArgumentParser(exit_on_error=False, prog=f"inheritune {name}", description=summary, allow_abbrev=False)


def add_reference_flags(parser: ArgumentParser) -> None:
    """The flags that say, beside its name, which model a reference is."""
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


def plain(parser: ArgumentParser, words: list[str]) -> Namespace:
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


def directory(word: str, argument: str = "--out") -> Path:
    """A directory's name as a path, be it there or not."""
    try:
        if not word:
            raise ValueError("empty")
        if not is_text(word):
            raise ValueError("it is not UTF-8, which the records are")
        path = Path(word).expanduser()
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null byte; RuntimeError: a ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{argument} {word!r}: cannot name a directory ({reason}); give another") from None
    return path
