"""When a measurement between steps is due, and that nothing of it is left behind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from inheritune.between import Between
from inheritune.errors import Interrupted
from inheritune.scores import Line, Reading, Score
from test_training import model, weights

CPU = torch.device("cpu")


def copied(given: dict[str, torch.Tensor]) -> PreTrainedModel:
    made = model(seed=1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(given[name])
    return made


def between(measure: Callable[[PreTrainedModel, int, int], Reading]) -> Between:
    return Between(copied, measure)


def line(name: str, metric: str = "acc", **changed: Any) -> Line:
    """Of 10 rows, all of them evaluated."""
    known: dict[str, Any] = {"title": name, "shots": 0, "better": "higher", "tasks": (name,), "whole": True, "rows": 10}
    known |= {"rows_in_split": 10, "selection": None, "chance": None, "majority": None}
    return Line(name=name, metric=metric, **known | changed)


def score(value: float, error: float | None = None, **changed: Any) -> Score:
    known: dict[str, Any] = {"rescaled": None, "near": (), "cut_rows": 0, "beside": {}}
    return Score(value=value, standard_error=error, **known | changed)


def reading(scores: dict[str, float]) -> Reading:
    """Of scores by `LINE.METRIC`."""
    found = {name: tuple(name.split(".")) for name in scores}
    lines = tuple(line(name, metric) for name, metric in found.values())
    return Reading(lines, {found[name][0]: score(value) for name, value in scores.items()})


def states() -> tuple[Any, ...]:
    numbers: Any = np.random.get_state(legacy=False)
    return random.getstate(), numbers["state"]["key"].tolist(), numbers["state"]["pos"], torch.get_rng_state().tolist()


def stir() -> None:
    """Seed everything, and draw."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    random.random(), np.random.rand(), torch.rand(3)


@pytest.mark.parametrize(
    ("every", "before", "now", "last", "due"),
    [
        (None, 0, 10**9, False, False),
        (None, 0, 100, True, True),
        (300, 0, 299, False, False),
        (300, 200, 300, False, True),
        (300, 299, 400, False, True),
        (300, 300, 400, False, False),
        (300, 100, 1000, False, True),
        (300, 300, 400, True, True),
    ],
)
def test_due_at_the_first_step_that_reaches_a_multiple(
    every: int | None, before: int, now: int, last: bool, due: bool
) -> None:
    assert Between(copied, lambda *_: reading({}), every).is_due(before, now, last=last) is due


def test_a_model_of_its_own_is_measured() -> None:
    given = weights(model())
    before = {name: value.clone() for name, value in given.items()}

    def measure(network: PreTrainedModel, step: int, tokens: int) -> Reading:
        assert isinstance(network, LlamaForCausalLM)
        assert not any(module.training for module in network.modules())
        assert not network(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in weights(network).items())
        for parameter in network.parameters():
            parameter.zero_()
        return reading({"x.step": step, "y.tokens": tokens})

    assert between(measure).measured(given, CPU, 3, 400) == reading({"x.step": 3, "y.tokens": 400})
    assert all(torch.equal(value, before[name]) for name, value in given.items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [None, RuntimeError, Interrupted])
def test_random_states_are_as_they_were(error: type[BaseException] | None) -> None:
    def measure(*_: Any) -> Reading:
        stir()
        if error is not None:
            raise error("")
        return reading({})

    given, before = weights(model()), states()
    with pytest.raises(Interrupted) if error is Interrupted else contextlib.nullcontext():
        between(measure).measured(given, CPU, 1, 1)
    assert states() == before


@pytest.mark.gpu
def test_a_gpu_draws_on_where_it_was() -> None:
    device = torch.device("cuda", 0)
    given = weights(model())
    torch.rand(3, device=device)
    before = torch.cuda.get_rng_state(device)

    def measure(network: PreTrainedModel, *_: int) -> Reading:
        assert network.device == device
        torch.manual_seed(7)
        torch.rand(3, device=device)
        return reading({})

    assert between(measure).measured(given, device, 1, 1) == reading({})
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_what_fails_is_one_line() -> None:
    def measure(*_: Any) -> Reading:
        raise torch.OutOfMemoryError("CUDA out of\nmemory")

    assert between(measure).measured(weights(model()), CPU, 1, 1) == "OutOfMemoryError: CUDA out of memory"


def test_a_copy_that_cannot_be_made_is_one_line() -> None:
    made = Between(lambda _: (_ for _ in ()).throw(OSError("disk full")), lambda *_: reading({}))
    assert made.measured({}, CPU, 1, 1) == "OSError: disk full"


@pytest.mark.parametrize("generating", [False, True])
def test_it_is_left_at_a_forward_pass(generating: bool) -> None:
    passes: list[int] = []

    def measure(network: PreTrainedModel, *_: int) -> Reading:
        assert isinstance(network, LlamaForCausalLM)
        stir()
        network.register_forward_hook(lambda *_: passes.append(1))
        ids = torch.zeros(1, 4, dtype=torch.int64)
        if generating:
            network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, min_new_tokens=20)
        for _number in range(20):
            network(input_ids=ids)
        return reading({})

    given, before = weights(model()), states()
    assert between(measure).measured(given, CPU, 1, 1, stopped=lambda: len(passes) == 3) is None
    assert len(passes) == 3
    assert states() == before


def test_a_stop_passes_through_what_makes_a_failure_of_errors() -> None:
    """As the evaluation does with what the harness raises."""

    def measure(network: PreTrainedModel, *_: int) -> Reading:
        try:
            network(input_ids=torch.zeros(1, 4, dtype=torch.int64))
        except Interrupted:
            raise
        except Exception:
            pytest.fail("an error like any other")
        return reading({})

    assert between(measure).measured(weights(model()), CPU, 1, 1, stopped=lambda: True) is None


@pytest.mark.parametrize(
    ("one", "its", "said"),
    [
        (line("piqa"), score(0.52, 0.0353), "piqa 52.0% ±3.5"),
        (line("piqa"), score(0.52), "piqa 52.0%"),
        (
            line("piqa", rows=20, rows_in_split=1838, selection="the first 20 of 1,838 rows", whole=False),
            score(0.52, 0.0353, near=("chance", "majority"), beside={"acc_norm": (0.5, 0.1)}),
            "piqa 52.0% ±3.5 ~chance ~majority (the first 20 of 1,838 rows)",
        ),
        (
            line("mmlu", title="mmlu, 10 of 57 subjects", shots=5, whole=False),
            score(0.25, 0.01, cut_rows=4),
            "mmlu, 10 of 57 subjects, 5-shot 25.0% ±1.0 (4 of 10 rows cut to the context)",
        ),
        (line("hellaswag", "acc_norm"), score(0.3, 0.02), "hellaswag acc_norm 30.0% ±2.0"),
        (line("wikitext", "word_perplexity"), score(1234.5, 67.8), "wikitext word_perplexity 1,234 ±68"),
        (line("wikitext", "word_perplexity"), score(float("inf")), "wikitext word_perplexity inf"),
    ],
)
def test_a_score_is_told_with_its_error_and_its_rows(one: Line, its: Score, said: str) -> None:
    assert between(lambda *_: reading({})).in_words(Reading((one,), {one.name: its})) == said


def test_gaps_that_were_known_are_not_told_again() -> None:
    made = Between(copied, lambda *_: reading({}), gaps={"wsc": "no data", "mmlu": "no data"})
    lines = (
        line("piqa"),
        line("wsc", gap="no data"),
        line("mmlu", gap="mmlu_law: failed"),
        line("boolq", gap="boolq: failed"),
    )
    found = Reading(lines, {"piqa": score(0.5), "mmlu": score(0.25)})
    assert made.in_words(found) == "piqa 50.0%; mmlu 25.0%; mmlu_law: failed; boolq: failed"
