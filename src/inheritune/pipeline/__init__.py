"""The stages in order: a whole recipe (`run`, stages.py), and single commands without one (direct.py)."""

from inheritune.pipeline.direct import inherit, prepare, scan
from inheritune.pipeline.stages import run

__all__ = ["inherit", "prepare", "run", "scan"]
