"""The page: every record of a run directory, or the gap where one should be, handed to the template."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.errors import Refused
from inheritune.growth import layers_in_words
from inheritune.ledger import TOTAL, name_of_stem
from inheritune.report.account import account_of
from inheritune.report.curves import STANDALONE_STYLE, Panel, draw_curves, panels_of
from inheritune.report.growth_figure import growth_panel, round_curves, rule, story, without_curve
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals, flat, words
from inheritune.report.records import Records, file_stem, grows, read_record, records_of
from inheritune.report.sums import sums_sheet
from inheritune.report.table import colour_names, dict_of, models_of, table_rows
from inheritune.report.table4 import table4_rows
from inheritune.result import title_of
from inheritune.run_directory import write_atomic

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
    "last": "as many of the reference’s last layers, trained on the same tokens",
    "every-other": "as many of the reference’s layers, evenly spread, trained on the same tokens",
    "distill": "the target’s architecture from random init, trained on the same tokens to predict like the reference",
    "half-width": "as deep as the reference and half as wide, from random init, trained on the same tokens",
    "other-data": "the target, trained on other data",
}
_TEMPLATES = Path(__file__).parent.parent / "templates"


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
    word, _, layers = name.partition("@")
    base, _, times = word.partition(":")
    sum_of_parts = f"{base} inherited, the rest from random init; trained on the same tokens"
    meaning = _MEANINGS.get(base, sum_of_parts)
    meaning += f"; for {times} the steps" if times else ""
    return meaning + (f"; of {layers_in_words(layers)}" if layers else "")


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
        names = sorted(name_of_stem(path.name) for path in (run / "controls").iterdir())
    stems = {name: stem for name in names if (stem := file_stem(name)) is not None}
    return {name: f"controls/{stems[name]}/metrics.jsonl" for name in sorted(stems, key=lambda name: name == "random")}


def _matrix(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as a table, a row a stage, and its sums; entries that are neither are listed before it."""
    stages = {
        str(name): dict(flat({key: value for key, value in stage.items() if key != "consumption"}))
        for name, stage in ledger.items()
        if isinstance(stage, dict) and name != TOTAL
    }
    columns = list(dict.fromkeys(key for stage in stages.values() for key in stage))
    return {
        "columns": [{"seconds": "time", "flops": "FLOPs"}.get(name, name) for name in columns],
        "rows": [(words(name), [stage.get(key, NOT_APPLICABLE) for key in columns]) for name, stage in stages.items()],
        "single": flat({name: value for name, value in ledger.items() if not isinstance(value, dict)}),
        "sums": sums_sheet(dict_of(ledger.get(TOTAL))),
    }


def _numbers(panels: list[Panel]) -> dict[str, Any]:
    """The points of the curves as one table, thinned to about `_MOST_LISTED` rows, the last one among them."""
    lines = [(panel.title(model), dict(points)) for panel in panels for model, points in panel.lines.items()]
    places = sorted({x for _, points in lines for x in points})
    kept = [*places[: -1 : math.ceil(len(places) / _MOST_LISTED) or 1], *places[-1:]]
    return {
        "across": panels[0].across if panels else "",
        "sets": [(panel.name, len(panel.lines)) for panel in panels],
        "labels": [label for label, _ in lines],
        "rows": [(count(x), [decimals(points.get(x)) for _, points in lines]) for x in kept],
    }


def _growth(run: Path, records: Records, metrics: Mapping[str, list[Any]], gaps: dict[str, str]) -> dict[str, Any]:
    """The section of a run whose target grows: its rounds, and their figure."""
    rounds = round_curves(run, records)
    if text := without_curve(rounds):
        gaps["rounds"] = text
    if "metrics.jsonl" in gaps and not (run / "metrics.jsonl").exists() and records.final is None:
        gaps["metrics.jsonl"] = "which round becomes the target is not known yet; metrics.jsonl is that round’s"
    told = story(records, rounds)
    panel = growth_panel(records, rounds, {name: lines for name, lines in metrics.items() if name != "target"})
    return {
        "rounds": told,
        "decided": [(f"Round {one.title}, {layers_in_words(one.layers)}", one.text) for one in told if one.text],
        "rule": rule(records),
        "wide": draw_curves([panel], prefix="g-") if panel else None,
        "narrow": draw_curves([panel], narrow=True, prefix="g-") if panel else None,
        "panel": panel,
        "numbers": _numbers([panel] if panel else []),
    }


def _model_path(run: Path, result: Mapping[str, Any]) -> tuple[str, bool]:
    """Where the trained model is, absolute, and whether it is there now."""
    path = run / "model" if not result.get("model") else Path(str(result["model"]))
    places = [path] if path.is_absolute() else [run / path, path]
    found = next((place for place in places if place.exists()), places[0])
    return str(found.resolve()), found.exists()


def _page(run: Path) -> dict[str, Any]:
    """What the template shows."""
    gaps: dict[str, str] = {}
    result = read_record(run, "result.json", dict, gaps)
    recipe = read_record(run, "recipe.yaml", str, gaps)
    controls = _control_files(run, result)
    files = {"target": "metrics.jsonl", **controls}
    metrics = {name: read_record(run, file, list, gaps) for name, file in files.items()}
    records = {
        name: read_record(run, f"{name}.json", dict, gaps)
        for name in ("environment", "reference", "inheritance", "ledger")
    }
    lines = records_of(run, result, gaps)
    panels = panels_of(result, metrics)
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
        "table4": table4_rows(lines),
        "judge": lines.judge,
        "growth": _growth(run, lines, metrics, gaps) if grows(run, result) else None,
        "header": header,
        "colours": [*colour_names(models).values()],
        "rows": rows,
        "sets": [(str(name), dict_of(size)) for name, size in dict_of(result.get("sets")).items()],
        "wide": draw_curves(panels) if panels else None,
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
    }


def usage(model: str) -> list[str]:
    """Three lines of Python that load a model's directory and sample from it."""
    return [
        "from transformers import pipeline",
        f"generate = pipeline('text-generation', {model!r})",
        "print(generate('def ', max_new_tokens=60, do_sample=True)[0]['generated_text'])",
    ]


def write_report(run: Path) -> Path:
    """Write `run/report.html`, one self-contained page, `run/curves.svg`, `growth.svg` of a growth; the page's path.

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
    content = _page(run)
    for name, figure in (("curves.svg", content["wide"]), ("growth.svg", (content["growth"] or {}).get("wide"))):
        if figure is not None:
            write_atomic(run / name, figure.replace(">", f">{STANDALONE_STYLE}", 1) + "\n")
    page = run / "report.html"
    write_atomic(page, environment.get_template("report.html.j2").render(content) + "\n")
    return page
