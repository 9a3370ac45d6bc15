"""What a run adds to the model card of its target: results with their errors, data, limits, licence, citation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from inheritune.report.content import RunRecords, read_run
from inheritune.report.exports import measures_sheet
from inheritune.report.model_card import with_section
from inheritune.report.numbers import count, decimals, plain
from inheritune.report.records import UNREADABLE
from inheritune.report.sheets import in_markdown
from inheritune.report.table import dict_of, escaped, table_rows
from inheritune.report.table4 import markdown_table4
from inheritune.result import title_of
from inheritune.run_directory import write_atomic

RELATIONS = {
    "subset": "It is a subset of what the reference was pre-trained on, as its recipe says (`data.relation: subset`).",
    "other": "It is other text than the reference was pre-trained on, as its recipe says (`data.relation: other`).",
    "unknown": "How it relates to what the reference was pre-trained on is not stated (`data.relation: unknown`).",
}
"""By `data.relation` what the card says."""
_CITATION = """```bibtex
@misc{sanyal2024inheritune,
  author = {Sanyal, Sunny and Sanghavi, Sujay and Dimakis, Alexandros G.},
  title = {Pre-training Small Base {LMs} with Fewer Tokens},
  year = {2024},
  eprint = {2404.08634},
  archivePrefix = {arXiv}
}
```"""


def write_card(run: Path) -> None:
    """Put a finished run's results into `model/README.md`, where there is one; twice gives the same as once.

    Args:
        run: the run directory.

    Raises:
        OSError: the card cannot be read or written.
    """
    path = run / "model" / "README.md"
    if path.exists():
        text = path.read_bytes().decode("utf-8", "replace")
        write_atomic(path, card_of_run(text, read_run(run)))


def card_of_run(card: str, one: RunRecords) -> str:
    """A card with a run's sections in it, in place of those that it had.

    Args:
        card: `README.md`.
        one: the run's records.
    """
    ending = "\r\n" if "\r\n" in card else "\n"
    for heading, lines in (
        ("## Results", _results(one)),
        ("## Data", _data(one)),
        ("## Limits", _limits(one)),
        ("## Licence", _licence(one)),
        ("## Citation", _citation(one)),
    ):
        card = with_section(card, heading, "\n\n".join(lines), ending)
    return card


def _results(one: RunRecords) -> Iterator[str]:
    if verdict := one.result.get("verdict"):
        yield escaped(str(verdict))
    # Of time nothing: two runs of a recipe give the same card.
    rows = [row for row in table_rows(one.result) if row.label != "Training time"]
    yield in_markdown(measures_sheet("On held-out text", rows)).rstrip("\n")
    if differences := dict_of(one.result.get("differences")):
        lines = []
        for name, value in differences.items():
            found = dict_of(value)
            spread = f"{decimals(found.get('low'))} to {decimals(found.get('high'))}"
            lines.append(f"- {title_of(name)} − target: {decimals(found.get('value'))} (95% interval {spread})")
        yield "Loss, nats a token, paired over documents:\n\n" + "\n".join(map(escaped, lines))
    yield "With 95% intervals, by a bootstrap over documents:\n\n" + markdown_table4(one.run).rstrip("\n")


def _data(one: RunRecords) -> Iterator[str]:
    recipe = _recipe(one)
    data = dict_of(recipe.get("data"))
    target = dict_of(one.result.get("target"))
    yield (
        f"Trained on {count(target.get('unique_tokens'))} unique tokens, {plain(target.get('passes'))} "
        f"{'pass' if target.get('passes') == 1 else 'passes'}, "
        f"{count(target.get('tokens_trained'))} tokens in all, in sequences of {plain(data.get('sequence_length'))}."
    )
    listed = data.get("sources")
    sources = [source for source in listed if isinstance(source, dict)] if isinstance(listed, list) else []
    if sources:
        yield "Sources:\n\n" + "\n".join(f"- {_source(source, len(sources))}" for source in sources)
    elif data.get("prepared"):
        yield f"Prepared beforehand: {escaped(Path(str(data['prepared'])).name)}."
    if _trained_reference(one):
        yield "The reference was trained by the same run, from random init on the same training set."
    else:
        yield RELATIONS.get(str(data.get("relation") or "unknown"), RELATIONS["unknown"])
    sizes = {str(name): dict_of(size) for name, size in dict_of(one.result.get("sets")).items() if name != "train"}
    if sizes:
        sets = (f"{name} ({count(size.get('documents'))} documents)" for name, size in sizes.items())
        yield escaped(
            f"Held out by the content of its documents, so that no exact copy was trained on: {', '.join(sets)}."
        )


def _source(source: dict[str, Any], number: int) -> str:
    details = [f"{key} {source[key]}" for key in ("subset", "split") if source.get(key) not in (None, "train")]
    details += [f"weight {plain(source.get('weight'))}"] if number > 1 else []
    return escaped(f"{source.get('path')}" + (f" ({', '.join(details)})" if details else ""))


def _limits(one: RunRecords) -> Iterator[str]:
    target, data = dict_of(one.result.get("target")), dict_of(_recipe(one).get("data"))
    inherits = _inherits(one)
    yield (
        "Here it was trained to continue text, and nothing else"
        + ("; of what its reference was taught beyond that, parts may be left" if inherits else "")
        + ". It may say what is false or harmful."
    )
    if inherits:
        yield (
            f"It saw {count(target.get('unique_tokens'))} unique tokens after the cut: what these do not hold, it may "
            "have lost."
        )
    same = "held-out text of the same sources" if one.lines.judge == "held-out" else "the validation sets named above"
    yield f"Its losses are on {same}, and say nothing of other text."
    seen = one.reference.get("source") and not _trained_reference(one)
    if seen and data.get("relation") != "other" and not data.get("exclude_seen"):
        yield "The reference may have seen the held-out text, on which the losses of both are then too low."
    yield f"Trained on sequences of at most {plain(data.get('sequence_length'))} tokens; longer ones were not tried."


def _licence(one: RunRecords) -> Iterator[str]:
    licence, source = one.reference.get("license"), one.reference.get("source")
    if _trained_reference(one):
        yield "The reference was trained by the same run, from random init; the licence is its author’s to state."
    elif not source or not _inherits(one):
        yield "Trained from random init; the licence is its author’s to state."
    elif licence:
        yield f"{escaped(str(licence))}, that of the reference, {escaped(str(source))}, whose weights it holds."
    else:
        yield f"The reference, {escaped(str(source))}, states none; what its authors permit holds for this model, too."


def _inherits(one: RunRecords) -> bool:
    """Whether the target holds weights of a reference."""
    init = one.inheritance.get("init") or one.result.get("init") or "inherit"
    return bool(one.reference.get("source")) and init != "random"


def _trained_reference(one: RunRecords) -> bool:
    """Whether the run trained its own reference, in its own directory: nobody's else, and by no name to cite."""
    return bool(_recipe(one).get("architecture")) and not _recipe(one).get("reference")


def _citation(one: RunRecords) -> Iterator[str]:
    source = one.reference.get("source") if not _trained_reference(one) else None
    also = f", and the reference, {escaped(str(source))}" if source else ""
    yield f"The recipe is that of arXiv 2404.08634; please cite it{also}."
    yield _CITATION


def _recipe(one: RunRecords) -> dict[str, Any]:
    try:
        return dict_of(yaml.safe_load(one.recipe))
    except UNREADABLE:
        return {}
