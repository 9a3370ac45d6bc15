"""Small base language models out of large ones: inherit the reference's first layers, train them on few tokens.

The command line is `inheritune` (see `inheritune --help`); the same as a library are the names below, each a thin name
for a module's function. They are looked up when first asked for, so `import inheritune` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune.pipeline import (
        evaluate as evaluate,
        inherit as inherit,
        make_plan as make_plan,
        prepare as prepare,
        run as run,
        scan as scan,
    )
    from inheritune.recipe import load_recipe as load_recipe
    from inheritune.report import write_report as write_report

__version__ = "0.1.0"

# The report is `write_report`, not `report`: that is the module, which would hide a function of its name once imported.
_HOME = {
    "evaluate": ("inheritune.pipeline", "evaluate"),
    "inherit": ("inheritune.pipeline", "inherit"),
    "load_recipe": ("inheritune.recipe", "load_recipe"),
    "make_plan": ("inheritune.pipeline", "make_plan"),
    "prepare": ("inheritune.pipeline", "prepare"),
    "run": ("inheritune.pipeline", "run"),
    "scan": ("inheritune.pipeline", "scan"),
    "write_report": ("inheritune.report", "write_report"),
}

__all__ = ["__version__", "evaluate", "inherit", "load_recipe", "make_plan", "prepare", "run", "scan", "write_report"]


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first asked for (PEP 562).

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
