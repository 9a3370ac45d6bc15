"""The command line: a command is parse, then one call. Libraries are imported by the command that needs them.

Exit codes: 0 done; 2 refused before anything was written; 1 failed later, resumable; 130 Ctrl-C; 143 SIGTERM.
"""

from inheritune.cli.commands import COMMANDS, main, main_entry

__all__ = ["COMMANDS", "main", "main_entry"]
