"""Evaluation while a target trains: what it is given, that training takes no notice, that a killed run loses none."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from evaluation_mirror import DATA, write_mirror
from inheritune import cli, pipeline, recipe as recipes
from inheritune.between import Between
from inheritune.config import EvaluateConfig
from inheritune.distributed import joined
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.evaluation import during_training
from inheritune.evaluation.language_model import EvaluatedModel
from inheritune.metrics import Progress
from inheritune.pipeline import evaluating
from inheritune.reference import Reference, find
from inheritune.run_directory import read_json, read_jsonl
from inheritune.scores import Reading
from inheritune.tokens import Prepared, open_prepared
from inheritune.training import Trainer
from ranks import start, values
from test_between import line, reading, score
from test_distributed import CONFIG as RANKS_CONFIG, model as ranks_model
from test_growing import forced
from test_pipeline import Silent, recipe, text
from test_training import CONFIG, LENGTH, data, model, weights

__all__ = ["data", "text"]  # fixtures

Record = dict[str, Any]
Weights = dict[str, torch.Tensor]
Measure = Callable[[PreTrainedModel, int, int], Reading]


def with_dropout() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5))


def rude(network: PreTrainedModel, step: int, tokens: int) -> Reading:
    """Seeds and draws, and uses the model up; what it scores is the model's."""
    ids = torch.arange(8)[None]
    score = float(network(input_ids=ids).logits.double().sum())
    random.seed(step)
    np.random.seed(step)
    torch.manual_seed(step)
    random.random(), np.random.rand()
    with torch.enable_grad():
        network.train().requires_grad_(True)(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return reading({"text.sum": score, "all.tokens": tokens})


def trainer_of(
    directory: Path,
    data: Prepared,
    measure: Measure | None,
    *,
    every: int | None = 300,
    make: Callable[[], PreTrainedModel] = model,
    told: Callable[[Progress], None] = lambda _progress: None,
    **settings: Any,
) -> Trainer:
    """A training of 7 steps, of 128 tokens each but for the last, of 64; with `every` it is measured after 3, 5, 7."""
    directory.mkdir(parents=True, exist_ok=True)

    def copy(given: Weights) -> PreTrainedModel:
        made = make()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(given[name])
        return made

    config = dataclasses.replace(CONFIG, **settings.pop("config", {}))
    return Trainer(
        model=make(),
        prepared=data,
        config=config,
        directory=directory,
        sequence_length=LENGTH,
        passes=2,
        progress=told,
        between=Between(copy, measure, every) if measure is not None else None,
        **{"report": lambda _line: None, **settings},
    )


def records(directory: Path, *, evaluations: bool = True) -> list[Record]:
    """What was recorded, without what depends on time and memory."""
    timed = ("tokens_per_second", "mfu", "memory_bytes")
    held = read_jsonl(directory / "metrics.jsonl")
    kept = [one for one in held if evaluations or one["kind"] != "evaluation"]
    return [{name: value for name, value in one.items() if name not in timed} for one in kept]


def evaluations(directory: Path) -> list[Record]:
    return [one for one in records(directory) if one["kind"] == "evaluation"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("make", [model, with_dropout])
def test_training_takes_no_notice(
    tmp_path: Path, data: Prepared, make: Callable[[], PreTrainedModel], late: bool
) -> None:
    ends = {}
    for name, measure in (("without", None), ("with", rude)):
        random.seed(3)
        np.random.seed(3)
        trainer = trainer_of(tmp_path / name, data, measure, make=make, read_late=late)
        trainer.run()
        drawn = random.random(), float(np.random.rand()), torch.rand(3).tolist()
        assert all(module.training for module in trainer.model.modules())
        gradients = [parameter.grad is None for parameter in trainer.model.parameters()]
        (shard,) = (tmp_path / name / "checkpoints" / "step_00000007").glob("*.safetensors")
        ends[name] = (weights(trainer.model) | load_file(shard), drawn, gradients)  # the optimiser's moments, too
    (held, *drawn_and_left), (expected, *as_before) = ends["with"], ends["without"]
    assert drawn_and_left == as_before
    assert held.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in held.items())
    assert records(tmp_path / "with", evaluations=False) == records(tmp_path / "without")
    assert [one["step"] for one in evaluations(tmp_path / "with")] == [3, 5, 7]


@pytest.mark.parametrize(
    ("every", "steps"), [(300, [3, 5, 7]), (128, [1, 2, 3, 4, 5, 6, 7]), (10**6, [7]), (None, [7])]
)
def test_it_is_asked_when_tokens_reach_a_multiple_and_at_the_end(
    tmp_path: Path, data: Prepared, every: int | None, steps: list[int]
) -> None:
    asked: list[tuple[int, ...]] = []

    def measure(_network: PreTrainedModel, *place: int) -> Reading:
        asked.append(place)
        return reading({})

    trainer_of(tmp_path, data, measure, every=every).run()
    assert asked == [(step, min(step * 128, 832)) for step in steps]


def test_it_is_recorded_and_told_with_what_it_takes_to_believe_it(tmp_path: Path, data: Prepared) -> None:
    lines: list[str] = []
    some: Record = {"rows": 20, "rows_in_split": 1838, "selection": "the first 20 of 1,838 rows", "whole": False}
    found = Reading(
        (
            line("piqa", chance=0.5, majority=0.6, **some),
            line(
                "mmlu", title="mmlu, 10 of 57 subjects", shots=5, whole=False, gap="no data (and 46 more of its tasks)"
            ),
            line("wikitext", "word_perplexity"),
            line("wsc", gap="no data"),
        ),
        {
            "piqa": score(0.52, 0.035, near=("chance",), beside={"acc_norm": (0.5, 0.125)}),
            "mmlu": score(0.25, 0.01, cut_rows=3),
            "wikitext": score(float("inf")),
        },
    )
    trainer = trainer_of(tmp_path, data, lambda *_: found, every=None, report=lines.append)
    trainer.between = dataclasses.replace(unwrapped(trainer.between), gaps=found.gaps)
    trainer.run()
    (record,) = evaluations(tmp_path)
    details = record.pop("lines")
    assert record == {
        "kind": "evaluation",
        "step": 7,
        "tokens": 832,
        "scores": {"piqa.acc": 0.52, "piqa.acc_norm": 0.5, "mmlu.acc": 0.25, "wikitext.word_perplexity": None},
        "errors": {"piqa.acc": 0.035, "piqa.acc_norm": 0.125, "mmlu.acc": 0.01, "wikitext.word_perplexity": None},
        "gaps": {"mmlu": "no data (and 46 more of its tasks)", "wsc": "no data"},
    }
    assert list(details) == ["piqa", "mmlu", "wikitext"]
    assert details["piqa"] == {"title": "piqa", "shots": 0, "metric": "acc", "chance": 0.5, "majority": 0.6} | some | {
        "near": ["chance"],
        "cut_rows": 0,
    }
    assert (details["mmlu"]["title"], details["mmlu"]["shots"], details["mmlu"]["cut_rows"]) == (
        "mmlu, 10 of 57 subjects",
        5,
        3,
    )
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    assert lines == [
        "  evaluation will have a gap at mmlu: no data (and 46 more of its tasks)",
        "  evaluation will have a gap at wsc: no data",
        "  evaluated after step 7, 832 tokens: piqa 52.0% ±3.5 ~chance (the first 20 of 1,838 rows); "
        "mmlu, 10 of 57 subjects, 5-shot 25.0% ±1.0 (3 of 10 rows cut to the context); wikitext word_perplexity inf",
    ]


@pytest.mark.parametrize("goes_on", [False, True])
def test_gaps_are_told_once_and_before_the_first_step(tmp_path: Path, data: Prepared, goes_on: bool) -> None:
    if goes_on:
        killed(trainer_of(tmp_path, data, rude, told=stop_at(2)))
    said: list[str] = []
    trainer = trainer_of(
        tmp_path, data, rude, report=said.append, told=lambda progress: said.append(str(progress.step))
    )
    trainer.between = dataclasses.replace(unwrapped(trainer.between), gaps={"wsc": "no data"})
    trainer.run()
    (at,) = (index for index, text in enumerate(said) if "wsc" in text)
    assert said[at] == "  evaluation will have a gap at wsc: no data"
    assert at < said.index("3" if goes_on else "1")


def test_it_gets_the_weights_of_the_moment(tmp_path: Path, data: Prepared) -> None:
    given: dict[int, Weights] = {}

    def measure(network: PreTrainedModel, step: int, _tokens: int) -> Reading:
        given[step] = weights(network)
        return reading({})

    trainer = trainer_of(tmp_path, data, measure, every=128, config={"keep_checkpoints": "all"})
    trainer.run()
    for step in (2, 4, 6, 7):
        (shard,) = (tmp_path / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
        held = load_file(shard)
        assert all(torch.equal(held[f"model.{name}"], value) for name, value in given[step].items())
    assert not torch.equal(given[1]["model.norm.weight"], given[2]["model.norm.weight"])


@pytest.mark.parametrize("late", [False, True])
def test_its_time_is_not_the_steps(tmp_path: Path, data: Prepared, late: bool) -> None:
    def slow(*_: Any) -> Reading:
        time.sleep(2)
        return reading({})

    assert trainer_of(tmp_path, data, slow, every=600, read_late=late).run().seconds < 2


def test_what_fails_leaves_a_gap(tmp_path: Path, data: Prepared) -> None:
    straight = trainer_of(tmp_path / "straight", data, None)
    straight.run()
    lines: list[str] = []

    def failing(_network: PreTrainedModel, step: int, _tokens: int) -> Reading:
        if step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reading({"x.acc": 1.0})

    trainer = trainer_of(tmp_path / "run", data, failing, report=lines.append)
    trainer.run()
    assert [one["step"] for one in evaluations(tmp_path / "run")] == [3, 7]
    assert "Not evaluated after step 5 (OutOfMemoryError: CUDA out of memory); training goes on." in lines
    assert all(torch.equal(value, weights(trainer.model)[name]) for name, value in weights(straight.model).items())


def unwrapped(between: Between | None) -> Between:
    assert between is not None
    return between


def stop_at(step: int) -> Callable[[Progress], None]:
    """Sends SIGTERM when a step is told."""

    def told(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return told


class Killed(BaseException):
    """Ends a training as a kill does: nothing of ours catches it."""


def killed(trainer: Trainer) -> None:
    with pytest.raises((Killed, Interrupted)):
        trainer.run()
    for thread in threading.enumerate():  # a kill would end it; what it wrote by then is there
        if thread.name == "checkpoint":
            thread.join()


@pytest.mark.parametrize("saved", [2, 3, 7])
@pytest.mark.parametrize("moment", ["in it", "told to stop in it", "after it"])
@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_killed_run_has_each_evaluation_once(
    tmp_path: Path, data: Prepared, at: int, moment: str, saved: int
) -> None:
    """Checkpoints come every so many steps: at the evaluation, or before it, besides the one that it makes itself."""
    config = {"checkpoint_every_steps": saved}
    trainer_of(tmp_path / "straight", data, rude, config=config).run()

    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        if step == at and moment == "in it":
            raise Killed
        if step == at and moment == "told to stop in it":
            os.kill(os.getpid(), signal.SIGTERM)
        return rude(network, step, tokens)

    def told(progress: Progress) -> None:
        if progress.step == at + 1 and moment == "after it":
            raise Killed

    out = tmp_path / "run"
    first = trainer_of(out, data, measure, told=told, config=config)
    if at == 7 and moment == "after it":  # nothing comes there
        first.run()
    else:
        killed(first)
    again = trainer_of(out, data, rude, config=config)
    again.run()
    assert records(out) == records(tmp_path / "straight")
    third = trainer_of(out, data, lambda *_: pytest.fail("evaluated again"), config=config)
    third.run()
    assert records(out) == records(tmp_path / "straight")


def test_a_stop_goes_before_an_evaluation_which_is_made_up_for(tmp_path: Path, data: Prepared) -> None:
    trainer_of(tmp_path / "straight", data, rude).run()
    asked: list[int] = []

    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        asked.append(step)
        return rude(network, step, tokens)

    with pytest.raises(Interrupted, match="stopped after step 3 of 7, checkpoint written"):
        trainer_of(tmp_path / "run", data, measure, told=stop_at(3)).run()
    assert asked == []
    trainer_of(tmp_path / "run", data, measure).run()
    assert asked == [3, 5, 7]
    assert records(tmp_path / "run") == records(tmp_path / "straight")


@pytest.mark.parametrize("every_steps", [2, 100])
def test_a_checkpoint_comes_before_an_evaluation(tmp_path: Path, data: Prepared, every_steps: int) -> None:
    """A kill in the middle of it costs no step; the checkpoint is one of those that are kept."""
    config = {"checkpoint_every_steps": every_steps, "keep_checkpoints": 2}

    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        if step == 5:
            raise Killed
        return rude(network, step, tokens)

    killed(trainer_of(tmp_path, data, measure, config=config))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}" for step in ((4, 5) if every_steps == 2 else (3, 5))]
    steps: list[int] = []
    trainer_of(tmp_path, data, rude, config=config, told=lambda progress: steps.append(progress.step)).run()
    assert steps == [6, 7]
    assert [one["step"] for one in evaluations(tmp_path)] == [3, 5, 7]


def endless(network: PreTrainedModel, *_: int) -> Reading:
    """Told to stop after its first forward pass; goes on until it is left."""
    for number in range(1000):
        network(input_ids=torch.arange(8)[None])
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("not left")


@pytest.mark.parametrize("at", [3, 7])
def test_a_stop_leaves_an_evaluation_which_is_made_up_for(tmp_path: Path, data: Prepared, at: int) -> None:
    """That an evaluation is made up for, which a stop may leave as well; the steps that were done are kept."""
    config = {"checkpoint_every_steps": 100}
    trainer_of(tmp_path / "straight", data, rude, config=config).run()

    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        return endless(network) if step == at else rude(network, step, tokens)

    for _ in range(2):  # at the step, and where the run goes on
        with pytest.raises(Interrupted, match=f"stopped after step {at} of 7, checkpoint written") as stopped:
            trainer_of(tmp_path / "run", data, measure, config=config).run()
        assert stopped.value.exit_code == 143
        assert at not in [one["step"] for one in evaluations(tmp_path / "run")]
    trainer_of(tmp_path / "run", data, rude, config=config).run()
    assert records(tmp_path / "run") == records(tmp_path / "straight")


@pytest.mark.parametrize("at", [3, 7])
def test_a_stop_at_an_evaluations_end_is_heeded_there(tmp_path: Path, data: Prepared, at: int) -> None:
    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        found = rude(network, step, tokens)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with pytest.raises(Interrupted, match=f"stopped after step {at} of 7, checkpoint written"):
        trainer_of(tmp_path, data, measure).run()
    assert [one["step"] for one in evaluations(tmp_path)] == [3, 5, 7][: [3, 5, 7].index(at) + 1]


@dataclasses.dataclass(frozen=True)
class OnARank:
    """What a training on a rank came to."""

    weights: dict[str, np.ndarray[Any, Any]]
    asked: list[int]
    differing: list[str]
    """Of the copies measured at the last step, tensors that are not the trained ones."""
    records: list[Record]


def train_on_ranks(directory: Path, data: Path) -> dict[str, OnARank]:
    """On a rank: with and without, replicated and sharded."""
    found = {}
    with joined() as world:
        for parallel in ("ddp", "fsdp"):
            for name, measured in ((parallel, True), (f"{parallel} without", False)):
                asked: list[int] = []
                given: Weights = {}

                def copy(held: Weights) -> PreTrainedModel:
                    made = ranks_model(seed=1)
                    with torch.no_grad():
                        for key, parameter in made.named_parameters():
                            parameter.copy_(held[key])
                    return made

                def measure(
                    network: PreTrainedModel, step: int, tokens: int, asked: list[int] = asked, given: Weights = given
                ) -> Reading:
                    asked.append(step)
                    given |= weights(network)
                    return rude(network, step, tokens)

                (directory / name).mkdir(exist_ok=True)
                trainer = Trainer(
                    ranks_model(),
                    open_prepared(data),
                    dataclasses.replace(RANKS_CONFIG, parallel=parallel),
                    directory / name,
                    LENGTH,
                    2,
                    report=lambda _line: None,
                    progress=lambda _progress: None,
                    world=world,
                    between=Between(copy, measure, 300) if measured else None,
                )
                trainer.run()
                whole = {key: value.clone() for key, value in trainer.exported()}
                differing = [key for key, value in given.items() if not torch.equal(value, whole[key])]
                arrays = {key: value.numpy() for key, value in whole.items()}
                found[name] = OnARank(arrays, asked, differing, records(directory / name))
    return found


def test_ranks_wait_while_the_first_evaluates(tmp_path: Path, data: Prepared) -> None:
    main, other = values(2, train_on_ranks, tmp_path, data.directory)
    for parallel in ("ddp", "fsdp"):
        assert (main[parallel].asked, other[parallel].asked) == ([3, 5, 7], [])
        assert main[parallel].differing == []
        without = main[f"{parallel} without"]
        for name, value in without.weights.items():
            np.testing.assert_array_equal(main[parallel].weights[name], value)
        kept = [one for one in main[parallel].records if one["kind"] != "evaluation"]
        assert kept == without.records
        assert len(main[parallel].records) == len(kept) + 3


def stopped_on_ranks(directory: Path, data: Path, parallel: Literal["ddp", "fsdp"]) -> None:
    """On a rank: a training whose first evaluation is told to stop, on rank 0, where it takes place."""
    with joined() as world:
        Trainer(
            ranks_model(),
            open_prepared(data),
            dataclasses.replace(RANKS_CONFIG, parallel=parallel, checkpoint_every_steps=100),
            directory,
            LENGTH,
            2,
            report=lambda _line: None,
            progress=lambda _progress: None,
            world=world,
            between=Between(lambda _held: ranks_model(), endless, 300),
        ).run()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_ranks_end_where_an_evaluation_is_left(tmp_path: Path, data: Prepared, parallel: str) -> None:
    for _ in range(2):  # at the step, and where the run goes on
        outcomes = start(2, stopped_on_ranks, tmp_path, data.directory, parallel)
        assert [(one.error, one.exit_code) for one in outcomes] == [("Interrupted", 143)] * 2
        assert all("stopped after step 3 of 7, checkpoint written" in one.text for one in outcomes)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    assert evaluations(tmp_path) == []


def logits_sum(network: PreTrainedModel, words: PreTrainedTokenizerBase) -> float:
    ids = words("ba dein golu", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(network(input_ids=ids).logits.double().sum())


@dataclasses.dataclass(frozen=True)
class SumOfLogits:
    """In the harness's place: the sum of a text's logits."""

    gaps: dict[str, str]

    def __call__(self, network: PreTrainedModel, words: PreTrainedTokenizerBase, out: Path, /) -> Reading:
        assert not out.exists()
        out.mkdir(parents=True)
        return reading({"text.sum": logits_sum(network, words)})


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EvaluateConfig, Reference | None]]:
    """In the harness's place the sum of a text's logits; what it was made with."""
    made: list[tuple[EvaluateConfig, Reference | None]] = []

    def evaluator(config: EvaluateConfig, reference: Reference | None) -> evaluating.Evaluator:
        made.append((config, reference))
        return SumOfLogits({"wsc": "no data"})

    monkeypatch.setattr(evaluating, "evaluator", evaluator)
    return made


ASKED = ("--evaluate", "{every_tokens: 2K, suite: quick}")


def test_a_run_evaluates_its_target_as_it_will_be_exported(
    llama_directory: Path, text: Path, tmp_path: Path, harness: list[Any]
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "run"
    pipeline.run(recipe(llama_directory, text), plain, console=Silent())
    assert harness == []
    console = Silent()
    pipeline.run(recipe(llama_directory, text, *ASKED), out, console=console)
    ((config, _),) = harness
    assert config == EvaluateConfig(every_tokens=config.every_tokens, suite="quick")
    found = evaluations(out)
    steps = [one["step"] for one in found]
    assert [one["tokens"] // 2000 for one in found] == [1, 2, 3, 3]
    assert steps[-1] == read_json(out / "ledger.json")["train target"]["steps"]
    assert evaluations(out / "controls" / "random") == []
    exported = AutoModelForCausalLM.from_pretrained(out / "model")
    words = find(str(out / "model")).tokenizer
    assert words is not None
    assert found[-1]["scores"] == {"text.sum": logits_sum(exported, words)}
    assert len({one["scores"]["text.sum"] for one in found}) == len(found)
    assert sorted(path.name for path in (out / "evaluations").iterdir()) == [f"step_{step:08d}" for step in steps]
    assert any(text.startswith("  evaluated after step") and "text sum" in text for text in console.lines)
    assert [text for text in console.lines if "wsc" in text] == ["  evaluation will have a gap at wsc: no data"]
    for file in ("model/model.safetensors", "controls/random/model/model.safetensors", "result.json"):
        assert (out / file).read_bytes() == (plain / file).read_bytes(), file


def test_an_architecture_is_evaluated_by_its_own_tokenizer(text: Path, tmp_path: Path, harness: list[Any]) -> None:
    keys = '{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}'
    flags = ["--reference", "null", "--controls", "[]", "--architecture.vocabulary", "300"]
    made = recipe(text, text, *flags, "--architecture.config", keys, "--evaluate", "{}")
    pipeline.run(made, tmp_path / "run", console=Silent())
    assert harness[0][1] is None
    words = find(str(tmp_path / "run" / "model")).tokenizer
    assert words is not None
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert [one["scores"] for one in evaluations(tmp_path / "run")] == [{"text.sum": logits_sum(exported, words)}]


def test_every_round_is_evaluated_and_no_pilot(
    llama_directory: Path, text: Path, tmp_path: Path, harness: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, False, False)
    out, grow = tmp_path / "run", {"start": 1, "step": 1, "most": 2, "tolerance_nats": 10, "pilot_steps": 2}
    flags = ("--grow", json.dumps(grow), "--controls", "[]", "--evaluate", "{}")
    pipeline.run(recipe(llama_directory, text, *flags), out, console=Silent(), until="train")
    for layers in (1, 2):
        folder = out / "rounds" / str(layers)
        exported = AutoModelForCausalLM.from_pretrained(folder / "model")
        words = find(str(folder / "model")).tokenizer
        assert words is not None
        assert [one["scores"] for one in evaluations(folder)] == [{"text.sum": logits_sum(exported, words)}]
    assert len(list(out.rglob("evaluations"))) == 2


def command(*words: str) -> int:
    """On a rank: a command line, with something in the harness's place that only the first rank may ask for."""

    def evaluator(*_: Any) -> evaluating.Evaluator:
        assert os.environ["RANK"] == "0"
        return SumOfLogits({})

    mock.patch.object(evaluating, "evaluator", evaluator).start()
    return cli.main(words)


def test_a_run_over_ranks_evaluates_what_it_exports(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(recipes.dump(recipe(llama_directory, text, "--controls", "[]", "--train.parallel", "fsdp", *ASKED)))
    assert values(2, command, "run", str(file), "--out", str(out)) == [0, 0]
    found = evaluations(out)
    assert [one["tokens"] // 2000 for one in found] == [1, 2, 3, 3]
    words = find(str(out / "model")).tokenizer
    assert words is not None
    assert found[-1]["scores"] == {"text.sum": logits_sum(AutoModelForCausalLM.from_pretrained(out / "model"), words)}


def test_it_may_be_asked_for_later_and_no_more(
    llama_directory: Path, text: Path, tmp_path: Path, harness: list[Any]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        pipeline.run(recipe(llama_directory, text), out, console=Silent(stop_after=5))
    with pytest.raises(Interrupted):
        pipeline.run(recipe(llama_directory, text, *ASKED), out, console=Silent(stop_after=10))
    assert len(evaluations(out)) == 1
    pipeline.run(recipe(llama_directory, text), out, console=Silent(), until="train")
    assert len(evaluations(out)) == 1


def test_what_the_harness_refuses_is_refused_before_anything_is_written(
    llama_directory: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> evaluating.Evaluator:
        raise Refused("evaluate.suite: 'quik'")

    monkeypatch.setattr(evaluating, "evaluator", refusing)
    with pytest.raises(Refused, match="'quik'"):
        pipeline.run(recipe(llama_directory, text, *ASKED), tmp_path / "run", console=Silent())
    assert not (tmp_path / "run").exists()


def test_a_reference_without_a_tokenizer_is_refused(llama_directory: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        os.link(llama_directory / name, tmp_path / name)
    with pytest.raises(Refused, match=r"^evaluate: tasks are text, and .* has no tokenizer; set evaluate to null$"):
        evaluating.evaluator(EvaluateConfig(), find(str(tmp_path)))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the name that a recipe may give it; two of MMLU's subjects are in it, and no wsc."""
    write_mirror(tmp_path / "home" / "hub", {name: DATA[name] for name in ("baber/piqa", "cais/mmlu")})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return "~/hub"


@pytest.fixture
def words(llama_directory: Path) -> PreTrainedTokenizerBase:
    found = find(str(llama_directory)).tokenizer
    assert found is not None
    return found


def test_the_harness_scores_are_marked(
    mirror: str, llama_directory: Path, words: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    evaluator = during_training(EvaluateConfig(suite="piqa,mmlu:2,wsc", datasets=mirror, limit=3))
    assert list(evaluator.gaps) == ["mmlu", "wsc"]
    assert evaluator.gaps["mmlu"].endswith("(and 54 more of its tasks)")
    assert "hf download" in evaluator.gaps["wsc"]
    network = AutoModelForCausalLM.from_pretrained(llama_directory)
    found = evaluator(network, words, tmp_path / "kept")
    assert found.gaps == evaluator.gaps
    record = found.record()
    assert list(record["scores"]) == ["piqa.acc", "piqa.acc_norm", "mmlu.acc"]
    assert record["errors"].keys() == record["scores"].keys()
    assert all(error is None or error >= 0 for error in record["errors"].values())
    piqa, mmlu = record["lines"]["piqa"], record["lines"]["mmlu"]
    assert (piqa["rows"], piqa["rows_in_split"], piqa["selection"]) == (3, 8, "the first 3 of 8 rows")
    assert (mmlu["title"], mmlu["shots"], mmlu["rows"]) == ("mmlu, 2 of 57 subjects", 2, 6)
    assert not piqa["whole"]
    assert not mmlu["whole"]
    said = Between(lambda _: network, lambda *_: found, gaps=evaluator.gaps).in_words(found)
    assert "(the first 3 of 8 rows)" in said
    assert "mmlu, 2 of 57 subjects, 2-shot " in said
    assert "wsc" not in said


def test_a_task_that_fails_leaves_a_gap(
    mirror: str, llama_directory: Path, words: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = during_training(EvaluateConfig(suite="piqa,mmlu:0", datasets=mirror))
    network, limit = AutoModelForCausalLM.from_pretrained(llama_directory), 1
    plain, asked = EvaluatedModel.loglikelihood, []

    def failing(self: EvaluatedModel, *given: Any, **settings: Any) -> Any:
        asked.append(1)
        if len(asked) > limit:
            raise RuntimeError("out of memory")
        return plain(self, *given, **settings)

    monkeypatch.setattr(EvaluatedModel, "loglikelihood", failing)
    found = evaluator(network, words, tmp_path)
    assert list(found.scores) == ["piqa"]
    assert "mmlu_anatomy" in found.gaps["mmlu"]
    assert "out of memory" in found.gaps["mmlu"]
    limit = 0
    with pytest.raises(Failed, match=r"piqa: .*out of memory"):
        evaluator(network, words, tmp_path)


def test_a_stop_leaves_the_harness(mirror: str, llama_directory: Path, words: PreTrainedTokenizerBase) -> None:
    evaluator = during_training(EvaluateConfig(suite="piqa,mmlu:0", datasets=mirror))
    network, passes = AutoModelForCausalLM.from_pretrained(llama_directory), []
    network.register_forward_hook(lambda *_: passes.append(1))
    made = Between(lambda _: network, lambda given, *_: evaluator(given, words, Path("kept")))
    assert made.measured({}, torch.device("cpu"), 1, 1, stopped=lambda: len(passes) == 2) is None
    assert len(passes) == 2
