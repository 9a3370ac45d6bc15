"""A run's reference, found again: the revision and the weights of its record, wherever the run lies now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inheritune import reference as references
from inheritune.errors import Refused
from inheritune.pipeline.recorded import recorded_reference
from inheritune.reference import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(run: Path, **record: Any) -> None:
    (run / "reference.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, llama_directory: Path) -> list[tuple[str, str | None, bool]]:
    """What is looked for; whatever it is, a small model is found."""
    words: list[tuple[str, str | None, bool]] = []

    def found(source: str, revision: str | None, trust_remote_code: bool, *_: Any) -> references.Reference:
        words.append((source, revision, trust_remote_code))
        return find(str(llama_directory))

    monkeypatch.setattr(references, "find", found)
    return words


def test_the_recorded_commit_goes_before_the_recipes_branch(
    tmp_path: Path, asked: list[tuple[str, str | None, bool]]
) -> None:
    write(tmp_path, source="org/name", revision=COMMIT)
    recorded_reference(tmp_path, reference="org/name", revision="main", trust_remote_code=True)
    assert asked == [("org/name", COMMIT, True)]


def test_without_a_record_the_recipe_says_it(tmp_path: Path, asked: list[tuple[str, str | None, bool]]) -> None:
    recorded_reference(tmp_path, reference="org/name", revision="main", trust_remote_code=False)
    assert asked == [("org/name", "main", False)]
    assert recorded_reference(tmp_path, reference=None, revision=None, trust_remote_code=False) is None


def test_one_that_the_run_trained_is_where_the_run_is(
    tmp_path: Path, asked: list[tuple[str, str | None, bool]]
) -> None:
    (tmp_path / "reference" / "model").mkdir(parents=True)
    write(tmp_path, source="runs/before_it_moved/reference/model", revision=None)
    recorded_reference(tmp_path, reference=None, revision=None, trust_remote_code=False)
    assert asked == [(str(tmp_path / "reference" / "model"), None, False)]


def test_the_hub_is_not_asked_for_what_was_a_directory(
    tmp_path: Path, asked: list[tuple[str, str | None, bool]]
) -> None:
    write(tmp_path, source="org/name", revision=None)
    with pytest.raises(Refused, match=r"org/name: no such directory.*, from here or from"):
        recorded_reference(tmp_path, reference="org/name", revision=None, trust_remote_code=False)
    assert asked == []


def test_other_weights_are_refused(tmp_path: Path, llama_directory: Path) -> None:
    known = find(str(llama_directory)).fingerprint
    for fingerprint in (known, "0"):
        write(tmp_path, source=str(llama_directory), revision=None, fingerprint=fingerprint)
        if fingerprint == known:
            found = recorded_reference(tmp_path, reference=None, revision=None, trust_remote_code=False)
            assert found is not None
            assert found.fingerprint == known
        else:
            with pytest.raises(Refused, match="its weights changed since"):
                recorded_reference(tmp_path, reference=None, revision=None, trust_remote_code=False)


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text("{", encoding="utf-8")
    with pytest.raises(Refused, match=r"reference\.json: damaged"):
        recorded_reference(tmp_path, reference=None, revision=None, trust_remote_code=False)
