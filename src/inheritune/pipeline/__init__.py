"""The stages in order: a whole recipe (`run`, stages.py); single commands (direct.py, depth.py, evaluation.py)."""

from inheritune.pipeline.depth import choose_depth
from inheritune.pipeline.direct import inherit, prepare, scan
from inheritune.pipeline.evaluation import Asked, evaluate, list_datasets, write_tasks
from inheritune.pipeline.stages import run

__all__ = ["Asked", "choose_depth", "evaluate", "inherit", "list_datasets", "prepare", "run", "scan", "write_tasks"]
