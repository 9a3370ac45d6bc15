"""What the page shows of a run: every record, or the gap where one should be, as the template takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import Refused
from inheritune.growth import layers_in_words
from inheritune.ledger import TOTAL, name_of_stem
from inheritune.report.account import MOST_TENSORS, account_of
from inheritune.report.axes import Scales, scales_of
from inheritune.report.curves import draw_curves, panels_of
from inheritune.report.figures import figures_of, numbers_behind
from inheritune.report.growth_figure import growth_panel, round_curves, rule, story, without_curve
from inheritune.report.numbers import NOT_APPLICABLE, count, flat, number_of, words
from inheritune.report.records import Record, Records, file_stem, grows, read_record, records_of
from inheritune.report.sections import (
    attention_section,
    commands,
    differences_sheet,
    evaluation_of,
    evaluation_section,
    layers_section,
    peaks_of,
    plan_section,
    sums_section,
)
from inheritune.report.table import colour_names, dict_of, models_of, table_rows, training_of
from inheritune.report.table4 import table4_rows
from inheritune.result import scores, title_of


@dataclass(frozen=True)
class Limits:
    """What a page takes of a run at most; what does not fit is in the run directory, and the page says so."""

    characters: int = 100_000
    """Of the recipe."""
    tensors: int = MOST_TENSORS
    units: tuple[str, ...] | None = None
    """The axes that curves are drawn on; None: all that there are."""


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


def _so_far(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A result, of a run that is not over with what was measured so far: of the reference and the cut, say."""
    if result.get("state") == "done" or "reference" in result or not (run / "losses").is_dir():
        return result
    found = {}
    for path in sorted((run / "losses").glob("*.json")):
        name = name_of_stem(path.stem)
        if name.startswith("round-"):  # they have a section of their own
            continue
        record = read_record(run, f"losses/{path.name}", dict, {})
        try:
            measured = scores(dict_of(record.get("sets")))
            found[name] = {"layers": record.get("layers"), "parameters": record.get("parameters"), **measured}
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            continue
    own: dict[str, Any] = {name: found.pop(name) for name in ("reference", "target") if name in found}
    return {**result, **own, "controls": found}


_NO_CONTROLS = ("reference", "cut", "target")
"""Models of a run that are no trained controls; a foreign file may be called so."""


def _control_files(run: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """For each trained control, random init last, its metrics file: those of the record, else those there are."""
    names = list(dict_of(result.get("controls")))
    if result.get("state") != "done":
        there = sorted(name_of_stem(path.name) for path in (run / "controls").glob("*/"))
        names = list(dict.fromkeys([*names, *there]))
    stems = {name: stem for name in names if name not in _NO_CONTROLS and (stem := file_stem(name)) is not None}
    return {name: f"controls/{stems[name]}/metrics.jsonl" for name in sorted(stems, key=lambda name: name == "random")}


def _matrix(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as a table, a row a stage; other entries are listed before; its totals are a table of their own."""
    record = {key: value for key, value in ledger.items() if key != TOTAL}
    stages = {str(name): dict(flat(_stage(stage))) for name, stage in record.items() if isinstance(stage, dict)}
    columns = list(dict.fromkeys(key for stage in stages.values() for key in stage))
    return {
        "columns": [{"seconds": "time", "flops": "FLOPs"}.get(name, name) for name in columns],
        "rows": [(words(name), [stage.get(key, NOT_APPLICABLE) for key in columns]) for name, stage in stages.items()],
        "single": flat({name: value for name, value in record.items() if not isinstance(value, dict)}),
    }


def _stage(entry: Record) -> dict[str, Any]:
    """A stage's entry without what the totals are made of: that is in them."""
    return {key: value for key, value in entry.items() if key != "consumption"}


def _growth(
    run: Path, records: Records, metrics: Mapping[str, list[Any]], gaps: dict[str, str], prefix: str
) -> dict[str, Any]:
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
        "wide": draw_curves([panel], prefix=f"{prefix}g-") if panel else None,
        "narrow": draw_curves([panel], narrow=True, prefix=f"{prefix}g-") if panel else None,
        "panel": panel,
        "numbers": numbers_behind([panel] if panel else []),
    }


def _model_path(run: Path, result: Mapping[str, Any]) -> tuple[str, bool]:
    """Where the trained model is, absolute, and whether it is there now."""
    path = run / "model" if not result.get("model") else Path(str(result["model"]))
    places = [path] if path.is_absolute() else [run / path, path]
    found = next((place for place in places if place.exists()), places[0])
    return str(found.resolve()), found.exists()


def flops_per_token(result: Record, ledger: Record, models: Iterable[str]) -> dict[str, float]:
    """What a token of each model's training takes, by the result or the ledger; where neither says, it is left out.

    Args:
        result: `result.json`'s record.
        ledger: `ledger.json`'s record.
        models: trained models by name.
    """
    found = {}
    for name in models:
        of_result = models_of(result).get(name, {})
        for record, tokens in ((of_result, "tokens_trained"), (training_of(name, result, ledger), "tokens")):
            spent, seen = number_of(record.get("flops")), number_of(record.get(tokens))
            if spent and seen and name not in found:
                found[name] = spent / seen
    return found


@dataclass(frozen=True)
class RunRecords:
    """What a run directory holds, read once; what is missing is empty, and named in `gaps`."""

    run: Path
    gaps: dict[str, str]
    result: Record
    recipe: str
    metrics: Mapping[str, list[Any]]
    """By trained model's name, the target first."""
    control_files: tuple[str, ...]
    environment: Record
    reference: Record
    inheritance: Record
    ledger: Record
    lines: Records
    scales: Scales

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.result.get("name") or self.run.resolve().name)

    @property
    def state(self) -> str | None:
        """A sentence on how far the run is; None of one that is done."""
        state = str(self.result.get("state") or "unknown")
        unfinished = {
            "running": "This run is still going on.",
            "preempted": "This run was interrupted and can go on.",
            "failed": "This run failed.",
            "trained": "The target is trained; controls were not asked for, or are still to come.",
        }
        return None if state == "done" else unfinished.get(state, "Whether this run finished is not recorded.")


_RECORDS = (
    *("recipe.yaml", "result.json", "metrics.jsonl", "growth.jsonl"),
    *(f"{name}.json" for name in ("environment", "plan", "reference", "inheritance", "ledger", "evaluation")),
)
"""Of a run at least one of these is there, however far it came."""


def check_runs(runs: Iterable[Path]) -> None:
    """Refuse what is no run directory, before anything is written.

    Raises:
        Refused: one of `runs` is no directory, or holds no record of a run.
    """
    for run in runs:
        if not run.is_dir() or not any((run / name).exists() for name in _RECORDS):
            raise Refused(f"{run}: not a run directory; give the directory that `inheritune run` wrote")


def read_run(run: Path) -> RunRecords:
    """A run's records.

    Raises:
        Refused: `run` is no run directory.
    """
    check_runs([run])
    gaps: dict[str, str] = {}
    result = _so_far(run, read_record(run, "result.json", dict, gaps))
    recipe = read_record(run, "recipe.yaml", str, gaps)
    controls = _control_files(run, result)
    files = {"target": "metrics.jsonl", **controls}
    metrics = {name: read_record(run, file, list, gaps) for name, file in files.items()}
    names = ("environment", "reference", "inheritance", "ledger")
    records = {name: read_record(run, f"{name}.json", dict, gaps) for name in names}
    lines = records_of(run, result, gaps)
    scales = scales_of(metrics, flops_per_token(result, records["ledger"], metrics))
    return RunRecords(
        run, gaps, result, recipe, metrics, tuple(controls.values()), lines=lines, scales=scales, **records
    )


def run_content(read: RunRecords, limits: Limits, prefix: str = "") -> dict[str, Any]:
    """What the template of a run shows.

    Args:
        read: the run's records.
        limits: what it may take.
        prefix: of the ids on the page, where there are several runs.
    """
    run, result, gaps, ledger = read.run, read.result, dict(read.gaps), read.ledger
    panels = panels_of(result, read.metrics)
    path, model_exists = _model_path(run, result)
    header, *rows = table_rows(result, ledger)
    models = models_of(result)
    init = str(read.inheritance.get("init") or result.get("init") or "inherit")
    share = dict_of(result.get("share"))
    # The verdict names a share that is shown; the reason why one is not shown needs its figures.
    facts = [None if share.get("shown") else share.get("text"), dict_of(result.get("tokens_to_match")).get("text")]
    totals = sums_section(ledger)
    if totals is None and ledger and result.get("state") == "done":
        gaps["total"] = "ledger.json has no totals: an earlier version wrote it"
    evaluation_gaps: dict[str, str] = {}
    evaluation = evaluation_of(run, {})
    figures = figures_of(panels, read.scales, prefix, limits.units)
    return {
        "id": prefix,
        "gaps": gaps,
        "name": read.name,
        "verdict": str(result.get("verdict") or ""),
        "state": read.state,
        "facts": [str(text) for text in facts if text],
        "models": [(title_of(key), _meaning(key, init), str(model.get("name") or "")) for key, model in models.items()],
        "differences": differences_sheet(result),
        "table4": table4_rows(read.lines),
        "judge": read.lines.judge,
        "growth": _growth(run, read.lines, read.metrics, gaps, prefix) if grows(run, result) else None,
        "header": header,
        "colours": [*colour_names(models).values()],
        "rows": rows,
        "sets": [(str(name), dict_of(size)) for name, size in dict_of(result.get("sets")).items()],
        "figures": figures,
        "curves_left_out": bool(panels) and not figures,
        "control_files": read.control_files,
        "above": [(panel.name, panel.above) for panel in panels if panel.above],
        "numbers": numbers_behind(panels, read.scales),
        "evaluation": evaluation_section(run, evaluation_gaps),
        "evaluation_gap": evaluation_gaps.get("evaluation.json", ""),
        "evaluated": (run / "evaluation.json").exists(),
        "layers": layers_section(run, gaps),
        "attention": attention_section(run, gaps),
        "plan": plan_section(run, ledger, peaks_of(read.metrics), gaps),
        "model": path,
        "usage": usage(path, read.recipe),
        "model_exists": model_exists,
        "commands": commands(run, read.environment, evaluation, recipe=bool(read.recipe)),
        "recipe": read.recipe[: limits.characters],
        "recipe_cut": len(read.recipe) > limits.characters,
        "account": account_of(read.inheritance, limits.tensors),
        "reference": flat(read.reference),
        "environment": flat(read.environment),
        "ledger": _matrix(ledger),
        "totals": totals,
        "count": count,
    }


def usage(model: str, recipe: str) -> list[str]:
    """Three lines of Python that load a model's directory and sample from it.

    Args:
        model: the directory.
        recipe: the run's recipe.yaml, or nothing: a model is begun with a word of the text that it was trained on.
    """
    begin = "def " if "python-source" in recipe else "The "
    return [
        "from transformers import pipeline",
        f"generate = pipeline('text-generation', {model!r})",
        f"print(generate({begin!r}, max_new_tokens=60, do_sample=True)[0]['generated_text'])",
    ]
