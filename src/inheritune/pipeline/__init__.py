"""The stages in order: a whole recipe (`run`, stages.py); single commands (direct, depth, evaluation and plan.py)."""

from inheritune.pipeline.depth import choose_depth
from inheritune.pipeline.direct import inherit, prepare, scan
from inheritune.pipeline.evaluation import Asked, evaluate, list_datasets, write_tasks
from inheritune.pipeline.plan import Circumstances, make_plan
from inheritune.pipeline.stages import run

__all__ = [
    "Asked",
    "Circumstances",
    "choose_depth",
    "evaluate",
    "inherit",
    "list_datasets",
    "make_plan",
    "prepare",
    "run",
    "scan",
    "write_tasks",
]
