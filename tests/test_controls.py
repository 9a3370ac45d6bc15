"""Controls by a word each, a grid of learning rates, and other data: on a tiny reference, as a run makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune import corpus, pipeline
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.pipeline import models
from inheritune.run_directory import read_json, read_jsonl
from inheritune.trained import Trained
from inheritune.training import Trainer
from test_pipeline import Silent, recipe, text

__all__ = ["text"]  # a fixture

WORDS = ["random", "random:2x", "last", "every-other", "distill", "half-width", "inherit@3", "stack:2x@3"]


@pytest.fixture(scope="module")
def beside(llama_directory: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of control."""
    out = tmp_path_factory.mktemp("beside") / "run"
    flags = ("--inherit.layers", "0-1", "--train.max_steps", "6", "--controls", json.dumps(WORDS))
    pipeline.run(recipe(llama_directory, text, *flags), out, console=Silent())
    return out


def test_every_control_has_its_own_directory_and_its_row(beside: Path) -> None:
    controls = read_json(beside / "result.json")["controls"]
    assert list(controls) == WORDS
    for word in WORDS:
        assert (beside / "controls" / word.replace(":", "-") / "model" / "config.json").exists()
    steps = {word: control["steps"] for word, control in controls.items()}
    assert steps == {word: 12 if ":2x" in word else 6 for word in WORDS}
    layers = {word: control["layers"] for word, control in controls.items()}
    assert layers == {word: {"half-width": 4}.get(word, 3 if "@3" in word else 2) for word in WORDS}


def test_the_same_data_in_the_same_order(beside: Path) -> None:
    """Block and pass of each step, and the first steps of a control that goes on for longer."""

    def places(folder: Path) -> list[tuple[int, int, int]]:
        return [(r["step"], r["pass"], r["block"]) for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == "step"]

    target = places(beside)
    for word in WORDS:
        assert places(beside / "controls" / word.replace(":", "-"))[:6] == target


def test_half_the_width_is_truly_narrower(beside: Path, llama_directory: Path) -> None:
    narrow = AutoModelForCausalLM.from_pretrained(beside / "controls" / "half-width" / "model")
    whole = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert narrow.config.hidden_size == whole.config.hidden_size // 2
    assert narrow.config.num_hidden_layers == whole.config.num_hidden_layers
    assert sum(p.numel() for p in narrow.model.layers.parameters()) < 0.35 * sum(
        p.numel() for p in whole.model.layers.parameters()
    )


def test_controls_start_from_what_they_are_called(
    llama_directory: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, dict[str, torch.Tensor]] = {}
    taught: dict[str, bool] = {}

    class Watched(Trainer):
        def run(self) -> Trained:
            starts[self.directory.name] = {name: value.clone() for name, value in self.model.state_dict().items()}
            taught[self.directory.name] = self.teacher is not None
            return super().run()

    monkeypatch.setattr(models, "Trainer", Watched)
    flags = ("--inherit.layers", "0-1", "--train.max_steps", "3", "--controls", json.dumps(WORDS))
    pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "target", console=Silent())
    reference = AutoModelForCausalLM.from_pretrained(llama_directory).state_dict()
    expected = {
        "target": (0, 1),
        "last": (2, 3),
        "every-other": (0, 2),
        "inherit@3": (0, 1, 2),
        "stack-2x@3": (0, 1, 0),
    }
    for name, layers in expected.items():
        for position, layer in enumerate(layers):
            weight = "mlp.up_proj.weight"
            assert torch.equal(
                starts[name][f"model.layers.{position}.{weight}"], reference[f"model.layers.{layer}.{weight}"]
            )
    for name in ("random-2x", "distill"):
        assert all(torch.equal(starts[name][key], starts["random"][key]) for key in starts["random"])
    assert {name for name, has in taught.items() if has} == {"distill"}


def test_each_model_gets_its_best_learning_rate(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--controls", "[random]", "--train.learning_rate", "[1e-9, 5e-3, 1e-4]", "--train.max_steps", "8")
    made, out = recipe(llama_directory, text, *flags), tmp_path / "run"
    with pytest.raises(Interrupted):
        pipeline.run(made, out, console=Silent(stop_after=12))
    result = pipeline.run(made, out, console=Silent())
    assert result["target"]["learning_rate"] == result["controls"]["random"]["learning_rate"] == 5e-3
    ledger = read_json(out / "ledger.json")
    entry = ledger["train target"]
    assert min(entry["development_losses"], key=entry["development_losses"].get) == "0.005"
    assert {f"train target at {rate}" for rate in ("1e-09", "0.005", "0.0001")} <= ledger.keys()
    assert entry["flops"] == ledger["train target at 0.005"]["flops"]
    assert entry["all_rates"]["flops"] == 3 * entry["flops"]
    folder = out / "learning_rates"
    assert (out / "metrics.jsonl").read_bytes() == (folder / "0.005" / "metrics.jsonl").read_bytes()
    assert not list(folder.glob("*/model"))
    assert not (folder / "1e-09" / "checkpoints").exists()
    alone = pipeline.run(
        recipe(llama_directory, text, *flags[:2], "--train.learning_rate", "5e-3", "--train.max_steps", "8"),
        tmp_path / "alone",
        console=Silent(),
    )
    assert result["target"]["validation_losses"] == alone["target"]["validation_losses"]


def test_repeated_tokens_against_fresh_ones(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--data.tokens", "1025", "--data.passes", "4", "--compare", '{"tokens": 4100}', "--controls", "[]")
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=Silent())
    other, target = result["controls"]["other-data"], result["target"]
    assert other["steps"] == target["steps"]
    assert other["tokens_trained"] == target["tokens_trained"]
    assert (target["passes"], other["passes"]) == (4, 1)
    assert target["unique_tokens"] == 1024
    assert other["unique_tokens"] == other["tokens_trained"]
    assert result["differences"]["other-data"]["documents"] > 3
    sets = [read_json(tmp_path / "run" / name / "manifest.json")["sets"] for name in ("data", "other-data/data")]
    assert sets[0]["held-out"] == sets[1]["held-out"]
    starts = [
        read_jsonl(tmp_path / "run" / name / "metrics.jsonl")[0]["losses"] for name in (".", "controls/other-data")
    ]
    assert starts[0] == starts[1], "both begin as the same model"


def test_a_learning_rate_that_diverges_is_not_the_best(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--controls", "[]", "--train.skipped_in_a_row", "2", "--train.max_steps", "12", "--train.learning_rate")
    made = recipe(llama_directory, text, *flags, "[1e30, 5e-3]")
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    assert result["target"]["learning_rate"] == 5e-3
    made = recipe(llama_directory, text, *flags, "[1e30, 1e29]")
    for _ in range(2):
        with pytest.raises(Failed, match="diverged at every learning rate"):
            pipeline.run(made, tmp_path / "every", console=Silent())


def test_other_data_is_judged_by_the_same_documents(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    made = recipe(llama_directory, text)
    corpus.prepare(made.data, str(llama_directory), tmp_path / "one")
    other = recipe(llama_directory, text, "--data.validation_tokens", "700")
    corpus.prepare(other.data, str(llama_directory), tmp_path / "two")
    flags = ("--data.sources", "[]", "--data.prepared", str(tmp_path / "one"), "--controls", "[]", "--data.passes", "1")
    compare = ("--compare", json.dumps({"prepared": str(tmp_path / "two")}))
    with pytest.raises(Refused, match="its held-out sets are not those of"):
        pipeline.run(recipe(llama_directory, text, *flags, *compare), tmp_path / "run", console=Silent())
    assert not (tmp_path / "run").exists()
    compare = ("--compare", json.dumps({"prepared": str(tmp_path / "one")}))
    result = pipeline.run(recipe(llama_directory, text, *flags, *compare), tmp_path / "run", console=Silent())
    assert result["controls"]["other-data"]["validation_losses"] == result["target"]["validation_losses"]


def test_a_control_that_another_one_is_already_is_left_out(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--inherit.layers", "2", "--train.max_steps", "3", "--controls", "[random@2, random, inherit@3, stack@2]")
    console = Silent()
    result = pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=console)
    assert set(result["controls"]) == {"random", "inherit@3", "stack@2"}
    assert "share" in result
    said = "The random@2 control would be the random control again at this depth; it is left out."
    assert [line for line in console.lines if "left out" in line] == [said]


def test_tails_that_fill_no_block_do_not_keep_data_from_being_compared(
    llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    """Passes over few tokens lose a tail each, so they are a step short of as many fresh tokens."""
    flags = ("--data.tokens", "7990", "--data.passes", "1", "--controls", "[]", "--train.batch_sequences", "2")
    compare = ("--compare", '{"tokens": 3995, "passes": 2}')
    made = recipe(llama_directory, text, *flags, *compare, "--train.micro_batch_sequences", "2")
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    assert result["target"]["steps"] == result["controls"]["other-data"]["steps"] == 124


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--compare", '{"tokens": 2000}'), "steps, the target takes 31; give more tokens or passes"),
        (("--compare", '{"tokens": 0}'), "compare.tokens is 0"),
        (("--compare", '{"passes": 0, "tokens": 4000}'), "compare.passes is 0"),
        (("--compare", '{"prepared": "x"}'), "compare.prepared is 'x'; allowed: null"),
        (("--data.prepared", "x", "--compare", '{"prepared": "x", "tokens": 5}'), "compare.tokens is 5; allowed: null"),
        (("--train.learning_rate", "[]"), "train.learning_rate is []"),
        (("--train.learning_rate", "[1e-3, 1e-3]"), "a list of such numbers, none of them twice"),
        (("--train.learning_rate", "[1e-3, 0]"), "above 0"),
        (("--train.learning_rate", "[1e-3, 1e-4]", "--train.final_learning_rate", "5e-4"), "final_learning_rate"),
        (("--train.learning_rate", "[1e-3, 1e-4]", "--data.development_share", "0"), "development set"),
        (("--controls", "[every-other]", "--inherit.layers", "every:2"), "as the target does; leave it out"),
        (("--controls", "[random@5]"), "random@5 is not possible, the reference has 4 layers"),
        (("--controls", "[random:1x]"), "2x to 100x after the colon"),
        (("--controls", "[random@1:2x]"), "or both in this order, :2x@4"),
        (("--controls", "[cut@2]"), "cut by itself: it is the target's start"),
        (("--controls", "[stack]", "--inherit.layers", "1"), "stack takes layers 0, as the target does; leave it out"),
        (("--train.max_steps", "2"), "train.warmup_steps is 2; allowed: fewer than train.max_steps (2)"),
        (
            ("--grow", "{}", "--compare", '{"tokens": 5}'),
            "compare is {'tokens': 5, 'passes': 1}; allowed: null with grow",
        ),
        (("--controls", "[distill]", "--train.objective.distill", "{}"), "without train.objective.distill"),
    ],
)
def test_what_is_refused_leaves_nothing(
    flags: tuple[str, ...], said: str, llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=Silent())
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_what_is_trained_on_is_not_judged_by(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    """Shards put together by hand, whose validation set is the beginning of the training set."""
    made = recipe(llama_directory, text)
    corpus.prepare(made.data, str(llama_directory), tmp_path / "data")
    manifest = read_json(tmp_path / "data" / "manifest.json")
    for file in (tmp_path / "data" / "train").iterdir():
        (tmp_path / "data" / "held-out" / file.name).write_bytes(file.read_bytes())
    manifest["sets"]["held-out"] = manifest["sets"]["train"]
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    flags = ("--data.sources", "[]", "--data.prepared", str(tmp_path / "data"))
    with pytest.raises(Refused, match="documents of held-out are also in its training set"):
        pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=Silent())
    assert not (tmp_path / "run").exists()
