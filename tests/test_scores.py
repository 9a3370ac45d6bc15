"""Whom a model is judged beside and compared with, among those of several runs and of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from inheritune.scores import Model, Role, compared, own_name, reference_of


def model(name: str, role: Role = "model", run: str | None = None) -> Model:
    return Model(name, role, name, name, 1, 1, run=run)


def run(name: str, *roles: Role) -> list[Model]:
    return [model(f"{name}/{role} {place}", role, f"runs/{name}") for place, role in enumerate(roles)]


def pairs(*models: Model) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in compared(models)]


def test_a_model_has_the_reference_of_its_run() -> None:
    a, b = run("a", "target", "reference", "control"), run("b", "target", "reference")
    for one in (*a, *b):
        found = reference_of(one, [*a, *b])
        own = a[1] if one in a else b[1]
        assert found == (None if one == own else own)
    assert reference_of(model("other"), [*a, *b]) is None  # two, neither its own
    assert reference_of(model("other"), a) == a[1]
    assert reference_of(run("c", "target")[0], a) is None


def test_one_of_no_run_is_everybodys_who_has_none() -> None:
    named, a, b = model("named", "reference"), run("a", "target", "reference"), run("b", "target")
    everyone = [*a, *b, model("other"), named]
    found = {one.name: found.name for one in everyone if (found := reference_of(one, everyone))}
    assert found == {"a/target 0": "a/reference 1", "b/target 0": "named", "other": "named"}


def test_plain_models_are_compared_with_the_first() -> None:
    assert pairs(model("a"), model("b"), model("c")) == [("a", "b"), ("a", "c")]
    named = model("named", "reference")
    assert pairs(model("a"), model("b"), named) == [("a", "named"), ("b", "named"), ("a", "b")]
    assert pairs(model("a")) == []
    assert pairs(named) == []


def test_a_runs_models_are_compared_within_it_and_targets_across() -> None:
    a, b = run("a", "target", "reference", "control"), run("b", "target", "control")
    assert pairs(*a, *b, model("other")) == [
        ("a/target 0", "a/reference 1"),
        ("a/control 2", "a/reference 1"),
        ("other", "a/reference 1"),
        ("a/target 0", "a/control 2"),
        ("b/target 0", "b/control 1"),
        ("a/target 0", "b/target 0"),
        ("a/target 0", "other"),
    ]


def test_of_checkpoints_the_last_is_compared_with_the_reference() -> None:
    done = run("a", "checkpoint", "checkpoint", "checkpoint", "target", "reference")
    assert pairs(*done) == [("a/target 3", "a/reference 4"), ("a/checkpoint 2", "a/reference 4")]
    assert pairs(*run("a", "checkpoint", "checkpoint", "reference")) == [("a/checkpoint 1", "a/reference 2")]
    assert pairs(*run("a", "checkpoint", "checkpoint")) == []


def test_names_of_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [own_name(source) for source in ("a/b/", "a/model", "org/name", "model", ".")] == [
        *("b", "a", "name"),
        *(tmp_path.name,) * 2,
    ]
