"""What a run writes into its target's model card, and that the hub's own library reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from families import seeded
from inheritune.cli import main
from inheritune.config import DataConfig
from inheritune.corpus.preparation import _settings
from inheritune.report import card_with_results, write_card
from inheritune.scores import Evaluation
from inheritune.surgery import save
from report_runs import evaluation
from test_report import MARKUP, change, make_run
from tiny import family

RECIPE = {
    "name": "half",
    "data": {
        "sources": [
            {"path": "hub:org/texts/part-*.jsonl", "weight": 2.0, "split": "train", "subset": None},
            {"path": f"texts/{MARKUP}.txt", "weight": 1.0, "split": "train", "subset": None},
        ],
        "sequence_length": 256,
        "relation": "subset",
        "exclude_seen": None,
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose target has a card as `save` writes it."""
    run = make_run(tmp_path / "run")
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (run / "reference.json").write_text('{"source": "org/large", "license": "apache-2.0"}', encoding="utf-8")
    differences = {"random": {"value": 0.808, "low": 0.79, "high": 0.82, "set": "held-out", "documents": 212}}
    change(run, differences=differences)
    (run / "model").rmdir()
    save(seeded(family("llama")), None, run / "model", {"initialisation": "random", "recipe": RECIPE})
    return run


def card(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]


def test_the_card_has_results_data_limits_licence_and_citation(run: Path) -> None:
    before = card(run)
    write_card(run)
    text = card(run)
    assert text.startswith(before.rstrip("\n"))
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[-5:] == ["## Results", "## Data", "## Limits", "## Licence", "## Citation"]
    results = section(text, "## Results")
    assert "| Loss, held-out (nats a token) | 2.412 | 9.872 | 2.583 | 3.391 |" in results
    assert "Random init − target: 0.808 (95% interval 0.790 to 0.820)" in results
    assert "Training time" not in results
    data = section(text, "## Data")
    assert "1.02M unique tokens, 4 passes, 4.10M tokens in all, in sequences of 256" in data
    assert "- hub:org/texts/part-\\*.jsonl (weight 2)" in data
    assert "It is a subset of what the reference was pre-trained on" in data
    assert "apache-2.0, that of the reference, org/large" in section(text, "## Licence")
    assert "eprint = {2404.08634}" in section(text, "## Citation")
    assert "sequences of at most 256 tokens" in section(text, "## Limits")


def test_without_inherited_weights_nothing_is_said_of_them(run: Path) -> None:
    change(run, init="random")
    write_card(run)
    assert "after the cut" not in section(card(run), "## Limits")
    assert "whose weights it holds" not in section(card(run), "## Licence")
    (run / "reference.json").unlink()
    write_card(run)
    limits = section(card(run), "## Limits")
    assert "reference" not in limits
    assert "It may say what is false" in limits


def test_a_reference_of_the_runs_own_is_nobody_elses(run: Path) -> None:
    recipe = {**RECIPE, "architecture": {"config": {"model_type": "llama"}, "vocabulary": 320}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (run / "reference.json").write_text(json.dumps({"source": f"{run}/reference/model"}), encoding="utf-8")
    write_card(run)
    text = card(run).partition("## Results")[2]
    assert "trained by the same run, from random init on the same training set" in section(card(run), "## Data")
    assert "the licence is its author" in section(card(run), "## Licence")
    assert "may have seen" not in text
    assert str(run) not in text


def test_a_card_in_another_encoding_keeps_the_run(run: Path) -> None:
    path = run / "model" / "README.md"
    path.write_bytes(path.read_bytes() + b"\xff\n")
    write_card(run)
    assert "## Results" in card(run)


def test_twice_gives_the_same_as_once(run: Path) -> None:
    write_card(run)
    once = card(run)
    write_card(run)
    assert card(run) == once


@pytest.mark.parametrize(
    ("relation", "said", "may_have_seen"),
    [("subset", "is a subset of", True), ("other", "is other text than", False), ("unknown", "is not stated", True)],
)
def test_the_relation_is_the_recipes_word(run: Path, relation: str, said: str, may_have_seen: bool) -> None:
    recipe = {**RECIPE, "data": RECIPE["data"] | {"relation": relation}}  # type: ignore[operator]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    write_card(run)
    assert said in section(card(run), "## Data")
    assert ("may have seen" in section(card(run), "## Limits")) == may_have_seen


def test_the_relation_changes_no_shards() -> None:
    assert _settings(DataConfig(relation="subset")) == _settings(DataConfig())


def test_a_relation_of_another_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "--data.relation", "same"]) == 2
    told = capsys.readouterr().err
    assert "relation" in told
    assert told.count("\n") == 1


def test_a_reference_without_a_licence_is_said(run: Path) -> None:
    (run / "reference.json").write_text('{"source": "org/large", "license": null}', encoding="utf-8")
    write_card(run)
    assert "states none" in section(card(run), "## Licence")


def test_the_hubs_library_reads_the_card_and_its_results(run: Path) -> None:
    write_card(run)
    with_scores = card_with_results(card(run), Evaluation.of(evaluation()), "target")
    path = run / "model" / "README.md"
    path.write_text(with_scores, encoding="utf-8")
    metadata = metadata_load(path)
    assert metadata is not None
    assert metadata["datasets"] == ["org/texts"]
    loaded = ModelCard.load(path)
    results = {result.dataset_type: result for result in loaded.data.eval_results or []}
    assert results["piqa"].metric_value == pytest.approx(61.2)
    assert loaded.data.pipeline_tag == "text-generation"
    assert yaml.safe_load(str(loaded.data)) == metadata  # what the library writes of it is what was read
    write_card(run)  # the run's sections and the evaluation's stay out of each other's way
    assert card(run) == with_scores


def test_a_run_without_a_card_or_with_damaged_records_is_no_error(run: Path) -> None:
    for name in ("recipe.yaml", "reference.json"):
        (run / name).write_text("[", encoding="utf-8")
    write_card(run)
    assert "is not stated" in section(card(run), "## Data")
    (run / "model" / "README.md").unlink()
    write_card(run)
    assert not (run / "model" / "README.md").exists()


def test_markup_in_the_records_is_text(run: Path) -> None:
    write_card(run)
    assert "<b>" not in card(run).partition("## Results")[2]
    assert json.dumps(MARKUP) not in section(card(run), "## Data")
