"""An evaluation in a model card: `model-index` in the front matter, which the hub shows, and a section of the text.

Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. The rest of the card stays byte for byte; that
the front matter says the same as before, `model-index` apart, is checked before anything is returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inheritune.errors import Refused
from inheritune.report.evaluation import is_share, line_title, markdown_evaluation
from inheritune.report.numbers import number_of
from inheritune.scores import Evaluation, Line, Score, own_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_KEY = "model-index"
_HEADING = "## Evaluation"
# As the hub finds it (huggingface_hub.repocard.REGEX_YAML_BLOCK), an empty one included.
_FRONT_MATTER = re.compile(r"(\s*---(?:\r\n|\r|\n))((?:[\S\s]*?(?:\r\n|\r|\n))??)(---[ \t]*(?:\r\n|\n|$))")
_NAMES = {"acc": "accuracy", "acc_norm": "normalised accuracy"}


def model_index(
    evaluation: Evaluation, model_name: str, datasets: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """`model-index` for one of the models; empty where it has no score.

    The model is named there by its directory, for `target` says nothing on the hub (see `own_name`).
    Accuracies are in percent. A metric's name says so, and shots, missing rows and the standard error with it, because
    the name is all that the hub shows beside the value; its `args` have them as numbers.

    Args:
        evaluation: what is shown.
        model_name: one of its models.
        datasets: by line's name, which data it is (`TaskScores.dataset`): `path` on the hub, `name` of the
            configuration, `split`. Without it a line is of a data set of its task's name. Of a group the configuration
            is left out: it is that of its first task alone.

    Raises:
        Refused: the evaluation has no such model.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index

    models = {model.name: model for model in evaluation.models}
    if model_name not in models:
        raise Refused(f"{model_name}: not a model of this evaluation, which has {', '.join(models) or 'none'}")
    scores = evaluation.scores.get(model_name, {})
    results = [
        result
        for line in evaluation.lines
        if (score := scores.get(line.name)) is not None
        for result in _results(line, score, (datasets or {}).get(line.name, {}))
    ]
    # Results on one data set share an entry, and the name of the first; every metric names its own line.
    return eval_results_to_model_index(own_name(models[model_name].source), results) if results else []


def _results(line: Line, score: Score, dataset: Mapping[str, Any]) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    values = {line.metric: (score.value, score.standard_error), **score.beside}
    for metric, (value, error) in values.items():
        number, spread = _rounded(metric, value), _rounded(metric, error)
        if number is None:
            continue  # YAML would have a perplexity beyond all bounds as a word
        yield EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=str(dataset.get("path") or line.tasks[0]),
            dataset_name=line_title(line),
            dataset_config=dataset.get("name") if len(line.tasks) == 1 else None,
            dataset_split=dataset.get("split"),
            metric_type=metric,
            metric_value=number,
            metric_name=_metric_name(line, metric, spread),
            metric_args=_arguments(line, score, metric, spread),
        )


def _rounded(metric: str, value: float | None) -> float | None:
    """A finite number in the unit that is shown, without the digits that binary fractions add."""
    number = number_of(value)
    return None if number is None else round((100 if is_share(metric) else 1) * number, 4)


def _metric_name(line: Line, metric: str, error: float | None) -> str:
    """`accuracy in %, piqa, the first 100 rows, 0-shot, standard error 1.1`."""
    name = _NAMES.get(metric, metric.replace("_", " "))
    parts = [f"{name} in %" if is_share(metric) else name, line_title(line), f"{line.shots}-shot"]
    return ", ".join([*parts, *([] if error is None else [f"standard error {error:.3g}"])])


def _arguments(line: Line, score: Score, metric: str, error: float | None) -> dict[str, Any]:
    """What a metric's value depends on, and what it is to be held against."""
    levels = {"chance": line.chance, "majority": line.majority} if metric == line.metric else {}
    found: dict[str, Any] = {"num_few_shot": line.shots, "standard_error": error, "rows": line.rows}
    found |= {name: _rounded(metric, level) for name, level in levels.items()}
    if not line.whole:
        found |= {"rows_in_split": line.rows_in_split, "limited": line_title(line)}
    if score.cut_rows:
        found["rows_cut"] = score.cut_rows
    return {name: value for name, value in found.items() if value is not None}


def card_with_results(
    card_text: str,
    evaluation: Evaluation,
    model_name: str,
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """A model card with an evaluation in it, in place of the one that it had; twice gives the same as once.

    Args:
        card_text: README.md, with or without front matter.
        evaluation: all of its models are in the text.
        model_name: the one that the card is of; `model-index` is of this one.
        datasets: as for `model_index`.

    Raises:
        Refused: the evaluation has no such model, or the card's front matter cannot be changed in one place.
    """
    index = model_index(evaluation, model_name, datasets)
    # What a file may begin with stays in front, where the hub looks for it.
    mark = "\ufeff" if card_text.startswith("\ufeff") else ""
    ending = "\r\n" if "\r\n" in card_text else "\n"
    front, text = _with_index(card_text.removeprefix(mark), index, ending)
    return mark + front + with_section(text, _HEADING, markdown_evaluation(evaluation), ending)


def _with_index(card: str, index: list[dict[str, Any]], ending: str) -> tuple[str, str]:
    """The card's front matter with this `model-index`, none if it is empty; and the text after it."""
    import yaml

    added = yaml.safe_dump({_KEY: index}, sort_keys=False, allow_unicode=True) if index else ""
    added = added.replace("\n", ending)
    found = _FRONT_MATTER.match(card)
    if found is None:
        return (f"---{ending}{added}---{ending}{'' if card.startswith(ending) else ending}" if added else ""), card
    opening, block, closing = found.groups()
    try:
        before = yaml.safe_load(block) or {}
        start, end = _place(block)
    except (yaml.YAMLError, AttributeError) as error:
        raise Refused(f"the model card's front matter is no YAML mapping: {' '.join(str(error).split())}") from error
    changed = f"{block[:start]}{added}{block[end:]}"
    rest = {key: value for key, value in before.items() if key != _KEY}
    if _loaded(changed) != rest | ({_KEY: index} if index else {}):
        raise Refused(
            f"the model card's front matter cannot be changed in one place; write {_KEY} as a key at the left, "
            "without anchors, or take it out"
        )
    closing += "" if closing.endswith("\n") else ending
    return f"{opening}{changed}{closing}", card[found.end() :]


def _loaded(block: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(block) or {}
    except yaml.YAMLError:
        return None


def _place(block: str) -> tuple[int, int]:
    """Where `model-index` stands in the front matter, whole lines; the end where there is none.

    Raises:
        yaml.YAMLError, AttributeError: it is no mapping.
    """
    import yaml

    root = yaml.compose(block, Loader=yaml.SafeLoader)
    if root is None:
        return len(block), len(block)
    if not isinstance(root, yaml.MappingNode):
        raise AttributeError("it is something else")
    for key, value in root.value:
        if key.value == _KEY:
            start = block.rfind("\n", 0, key.start_mark.index) + 1
            end = _end(value)
            line = block.find("\n", max(end - 1, 0))
            return start, len(block) if line < 0 else line + 1
    return len(block), len(block)


def _end(node: Any) -> int:
    """Where the last value within a node ends: a block's own end lies behind the comments that follow it."""
    inner = node.value if isinstance(node.value, list) and not node.flow_style else []
    children = [child for each in inner for child in (each if isinstance(each, tuple) else (each,))]
    return max((_end(child) for child in children), default=node.end_mark.index)


def with_section(text: str, heading: str, body: str, ending: str) -> str:
    """A card's text with a section in place of the one of its heading, or at the end.

    Args:
        text: the card's, or the whole card.
        heading: of the second level: `## Results`.
        body: what stands below it.
        ending: of lines.
    """
    section = f"{heading}\n\n{body}".rstrip("\n").replace("\n", ending) + ending
    lines = text.splitlines(keepends=True)
    headings, fence = _headings(lines)
    start = next((place for place, _, title in headings if title == heading), None)
    if start is None:
        before = text if text.endswith(ending) or not text else text + ending
        before += f"{fence}{ending}" if fence else ""  # code that nothing ends would go on over the section
        blank = "" if not before.strip() or before.endswith(ending * 2) else ending
        return f"{before}{blank}{section}"
    end = next((place for place, level, _ in headings if place > start and level <= 2), None)
    before = "".join(lines[:start])
    return f"{before}{section}" + (f"{ending}{''.join(lines[end:])}" if end is not None else "")


def _headings(lines: list[str]) -> tuple[list[tuple[int, int, str]], str]:
    """Each heading's line, level, and text without what may close it; and the fence of code that nothing ends."""
    found, fence, paragraph = [], "", False
    for place, line in enumerate(lines):
        text, after_text = line.rstrip("\r\n"), paragraph
        paragraph = False
        if mark := re.match(r" {0,3}(`{3,}|~{3,})(.*)", text):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif fence:
            continue
        elif title := re.match(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$", text):
            found.append((place, len(title[1]), f"{title[1]} {title[2] or ''}"))
        elif after_text and re.fullmatch(r" {0,3}(=+|-+)[ \t]*", text):  # elsewhere it is a rule, or nothing
            found.append((place - 1, 1 if "=" in text else 2, lines[place - 1].strip()))
        else:
            paragraph = bool(text.strip())
    return found, fence
