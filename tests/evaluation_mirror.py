"""A mirror of evaluation data, made on the spot: a few short rows of each task, laid out as on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Rows = list[dict[str, Any]]

_GOALS = ("boil an egg", "dry a coat", "cut a rope", "find a star", "light a fire", "wash a cup", "bake bread", "sew")


def _piqa(count: int = 8) -> Rows:
    return [
        {
            "goal": goal,
            "sol1": f"Use {index} pots.",
            "sol2": "Ask a friend who knows how.",
            "label": index * index % 3 % 2,
        }
        for index, goal in enumerate(_GOALS[:count])
    ]


def _boolq() -> Rows:
    return [
        {"question": f"is {n} even", "passage": f"The number {n} is what it is.", "label": int(n % 3 > 0)}
        for n in range(9)
    ]


def _winogrande() -> Rows:
    who = [("Sarah", "Maria"), ("Tom", "Ann"), ("Kim", "Lee"), ("Max", "Eva")]
    return [
        {"sentence": f"{a} met {b} because _ was late.", "option1": a, "option2": b, "answer": "12"[index % 2]}
        for index, (a, b) in enumerate(who)
    ]


def _logiqa() -> Rows:
    return [
        {"label": "abcd"[n % 4], "context": f"All of {n} are red.", "question": "Which?", "options": list("wxyz")}
        for n in range(6)
    ]


def _lambada() -> Rows:
    return [{"text": f"He took the {thing} and gave her the {thing}"} for thing in ("cup", "book", "egg", "coat")]


def _pages() -> Rows:
    """Pages that do not repeat themselves: of equal windows with answers of other lengths the harness (0.4.13) mixes up
    the scores."""
    words = [f"cat {number * number} sat on mat {number}" for number in range(60)]
    return [{"page": " = Page =\n " + " ".join(words[first : first + 4 + first])} for first in (0, 9, 25)]


def _mmlu(subject: str, count: int) -> Rows:
    return [
        {"question": f"{subject} {n}?", "subject": subject, "choices": ["one", "two", "six", "ten"], "answer": n % 4}
        for n in range(count)
    ]


DATA: dict[str, dict[str, dict[str, Rows]]] = {
    "baber/piqa": {"default": {"validation": _piqa()}},
    "aps/super_glue": {"boolq": {"validation": _boolq()}},
    "allenai/winogrande": {"winogrande_xl": {"validation": _winogrande()}},
    "EleutherAI/logiqa": {"logiqa": {"test": _logiqa()}},
    "EleutherAI/lambada_openai": {"default": {"test": _lambada()}},
    "EleutherAI/wikitext_document_level": {"wikitext-2-raw-v1": {"test": _pages()}},
    "cais/mmlu": {
        subject: {"dev": _mmlu(f"dev {subject}", 5), "test": _mmlu(subject, 6 + index)}
        for index, subject in enumerate(("anatomy", "astronomy"))
    },
}
"""By data set, configuration and split its rows."""


def write_mirror(directory: Path, data: dict[str, dict[str, dict[str, Rows]]] | None = None) -> Path:
    """Write data sets as `hf download` leaves them: a Parquet file a split, and the card that names them."""
    for dataset, configurations in (DATA if data is None else data).items():
        write_dataset(directory / dataset, configurations)
    return directory


def write_dataset(directory: Path, configurations: dict[str, dict[str, Rows]]) -> None:
    """Write one data set."""
    listed = []
    for name, splits in configurations.items():
        files = []
        for split, rows in splits.items():
            path = directory / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
            files.append({"split": split, "path": str(path.relative_to(directory))})
        listed.append({"config_name": name, "data_files": files})
    (directory / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n", encoding="utf-8")
