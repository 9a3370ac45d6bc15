"""The commands by name, and how each ends: exit codes, and errors as one line."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from inheritune import __version__
from inheritune.cli.layers import depth, inherit
from inheritune.cli.parsing import SUMMARIES
from inheritune.cli.recipes import plan, prepare, run_until
from inheritune.cli.results import evaluate, report
from inheritune.errors import InherituneError, Interrupted, Refused, printable

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


_CALLS = {
    "run": run_until("run", "report"),
    "plan": plan,
    "prepare": prepare,
    "inherit": inherit,
    "depth": depth,
    "train": run_until("train", "train"),
    "grow": run_until("grow", "train"),
    "evaluate": evaluate,
    "report": report,
}
COMMANDS = {name: Command(*words, _CALLS[name]) for name, words in SUMMARIES.items()}


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
        text = printable(str(error)).replace("\n", " ").replace("\r", " ")  # a name that a user gives may hold them
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
