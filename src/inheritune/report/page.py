"""The page: every record of a run directory, or the gap where one should be, handed to the template."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inheritune.errors import Failed, Refused
from inheritune.report.account import account_of
from inheritune.report.curves import STANDALONE_STYLE, Panel, draw_curves, panels_of
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals, flat, words
from inheritune.report.table import colour_names, dict_of, models_of, table_rows
from inheritune.result import title_of
from inheritune.run_directory import read_json, read_jsonl, write_atomic

# A page stays under 1 MB however large the run: what does not fit is in the run directory, and the page says so (the
# account of the tensors has a limit of its own).
_MOST_TEXT = 100_000  # characters
_MOST_LISTED = 40
_MEANINGS = {
    "reference": "the large model",
    "cut": "the layers the target keeps, untrained",
    "target": "those layers, trained",
    "inherit": "the layers the target keeps, trained on the same tokens",
    "random": "the target’s architecture from random init, trained on the same tokens",
    "stack": "the first ⌈n/2⌉ layers repeated to the target’s n, trained on the same tokens",
}
_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".yaml": lambda path: path.read_text(encoding="utf-8"),
}
_TEMPLATES = Path(__file__).parent.parent / "templates"


def _read(run: Path, name: str, kind: type, gaps: dict[str, str]) -> Any:
    """A record of the run, or an empty one of its kind with the reason noted under the file's name in `gaps`."""
    path = run / name
    try:
        if not path.exists():
            gaps[name] = f"{name} is not in the run directory"
            return kind()
        record = _READERS[path.suffix](path)
    except (ValueError, OSError, Failed) as error:
        gaps[name] = f"{name} cannot be read: {error}"
        return kind()
    if not isinstance(record, kind) or not record:
        gaps[name] = f"{name} holds no record"
        return kind()
    return record


def _meaning(name: str, init: str) -> str:
    """What a model is, in a few words.

    Args:
        name: the model's.
        init: what the target started from, an init word.
    """
    if name == "target" and init != "inherit":
        return f"trained from init {init}"
    if name == "cut" and init != "inherit":
        return f"the target’s start (init {init}), untrained"
    sum_of_parts = f"{name} inherited, the rest from random init; trained on the same tokens"
    return _MEANINGS.get(name, sum_of_parts)


def _differences(result: Mapping[str, Any]) -> dict[str, Any]:
    """Target against each trained control: the rows of its table, in the order of the columns, and what it is about."""
    found = {name: dict_of(value) for name, value in dict_of(result.get("differences")).items()}
    rows = [(name, found[name]) for name in models_of(result) if name in found]
    first = rows[0][1] if rows else {}
    return {
        "rows": [
            (
                title_of(name),
                decimals(entry.get("value")),
                f"{decimals(entry.get('low'))} to {decimals(entry.get('high'))}",
            )
            for name, entry in rows
        ],
        "set": str(first.get("set") or ""),
        "documents": first.get("documents"),
    }


def _control_files(run: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """For each trained control, random init last, its metrics file: those of the record, else those there are."""
    names = [name for name in dict_of(result.get("controls")) if name != "cut"]
    if not names and result.get("state") != "done" and (run / "controls").is_dir():
        names = sorted(path.name for path in (run / "controls").iterdir())
    # A record names files here: none outside the run directory.
    names = [name for name in names if re.fullmatch(r"[a-z_]+(\+[a-z_]+)*", name)]
    return {name: f"controls/{name}/metrics.jsonl" for name in sorted(names, key=lambda name: name == "random")}


def _matrix(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as a table, a row a stage; entries that are no stage are listed before it."""
    stages = {str(name): dict(flat(stage)) for name, stage in ledger.items() if isinstance(stage, dict)}
    columns = list(dict.fromkeys(key for stage in stages.values() for key in stage))
    return {
        "columns": [{"seconds": "time", "flops": "FLOPs"}.get(name, name) for name in columns],
        "rows": [(words(name), [stage.get(key, NOT_APPLICABLE) for key in columns]) for name, stage in stages.items()],
        "single": flat({name: value for name, value in ledger.items() if not isinstance(value, dict)}),
    }


def _numbers(panels: list[Panel]) -> dict[str, Any]:
    """The points of the curves as one table, thinned to about `_MOST_LISTED` rows, the last one among them."""
    lines = [(panel.name, title_of(model), dict(points)) for panel in panels for model, points in panel.lines.items()]
    tokens = sorted({x for _, _, points in lines for x in points})
    kept = [*tokens[: -1 : math.ceil(len(tokens) / _MOST_LISTED) or 1], *tokens[-1:]]
    return {
        "sets": [(panel.name, len(panel.lines)) for panel in panels],
        "labels": [label for _, label, _ in lines],
        "rows": [(count(x), [decimals(points.get(x)) for _, _, points in lines]) for x in kept],
    }


def _model_path(run: Path, result: Mapping[str, Any]) -> tuple[str, bool]:
    """Where the trained model is, absolute, and whether it is there now."""
    path = run / "model" if not result.get("model") else Path(str(result["model"]))
    places = [path] if path.is_absolute() else [run / path, path]
    found = next((place for place in places if place.exists()), places[0])
    return str(found.resolve()), found.exists()


def _page(run: Path) -> tuple[dict[str, Any], str | None]:
    """What the template shows, and the wide figure as a file of its own (None where there are no curves)."""
    gaps: dict[str, str] = {}
    result = _read(run, "result.json", dict, gaps)
    recipe = _read(run, "recipe.yaml", str, gaps)
    controls = _control_files(run, result)
    files = {"target": "metrics.jsonl", **controls}
    metrics = {name: _read(run, file, list, gaps) for name, file in files.items()}
    records = {
        name: _read(run, f"{name}.json", dict, gaps) for name in ("environment", "reference", "inheritance", "ledger")
    }
    panels = panels_of(result, metrics)
    wide = draw_curves(panels) if panels else None
    state = str(result.get("state") or "unknown")
    unfinished = {
        "running": "This run is still going on.",
        "preempted": "This run was interrupted and can go on.",
        "failed": "This run failed.",
    }
    path, model_exists = _model_path(run, result)
    header, *rows = table_rows(result, records["ledger"])
    models = models_of(result)
    init = str(records["inheritance"].get("init") or result.get("init") or "inherit")
    share = dict_of(result.get("share"))
    # The verdict names a share that is shown; the reason why one is not shown needs its figures.
    facts = [None if share.get("shown") else share.get("text"), dict_of(result.get("tokens_to_match")).get("text")]
    return {
        "gaps": gaps,
        "name": str(result.get("name") or run.resolve().name),
        "verdict": str(result.get("verdict") or ""),
        "state": None if state == "done" else unfinished.get(state, "Whether this run finished is not recorded."),
        "facts": [str(text) for text in facts if text],
        "models": [(title_of(key), _meaning(key, init), str(model.get("name") or "")) for key, model in models.items()],
        "differences": _differences(result),
        "header": header,
        "colours": [*colour_names(models).values()],
        "rows": rows,
        "sets": [(str(name), dict_of(size)) for name, size in dict_of(result.get("sets")).items()],
        "wide": wide,
        "narrow": draw_curves(panels, narrow=True) if panels else None,
        "control_files": [*controls.values()],
        "above": [(panel.name, panel.above) for panel in panels if panel.above],
        "description": " ".join(panel.description for panel in panels),
        "numbers": _numbers(panels),
        "model": path,
        "usage": usage(path),
        "model_exists": model_exists,
        "repeat": f"inheritune run {shlex.quote(str((run / 'recipe.yaml').resolve()))} --out NEW",
        "recipe": recipe[:_MOST_TEXT],
        "recipe_cut": len(recipe) > _MOST_TEXT,
        "account": account_of(records["inheritance"]),
        "reference": flat(records["reference"]),
        "environment": flat(records["environment"]),
        "ledger": _matrix(records["ledger"]),
        "count": count,
    }, wide


def usage(model: str) -> list[str]:
    """Three lines of Python that load a model's directory and sample from it."""
    return [
        "from transformers import pipeline",
        f"generate = pipeline('text-generation', {model!r})",
        "print(generate('def ', max_new_tokens=60, do_sample=True)[0]['generated_text'])",
    ]


def write_report(run: Path) -> Path:
    """Write `run/report.html`, one self-contained page, and `run/curves.svg`; the page's path.

    Any record may be missing or unreadable: the page marks it as a gap. The same records give the same bytes.

    Raises:
        Refused: `run` is no directory.
        OSError: the page cannot be written (disk full, no permission); the old one is then untouched.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not run.is_dir():
        raise Refused(f"{run}: not a run directory; give the directory that `inheritune run` wrote")
    templates = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content, figure = _page(run)
    if figure is not None:
        write_atomic(run / "curves.svg", figure.replace(">", f">{STANDALONE_STYLE}", 1) + "\n")
    page = run / "report.html"
    write_atomic(page, environment.get_template("report.html.j2").render(content) + "\n")
    return page
