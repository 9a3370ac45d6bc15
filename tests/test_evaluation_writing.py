"""Tasks written for the harness's own command: nothing of anybody else's in the directory is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation_mirror import write_mirror
from inheritune.errors import Refused
from inheritune.evaluation import parse_suite
from inheritune.evaluation.evaluating import Plan, plan
from inheritune.evaluation.writing import write_tasks


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def piqa(mirror: Path) -> Plan:
    return plan(parse_suite("piqa"), datasets=mirror, limit=2)


@pytest.fixture
def boolq(mirror: Path) -> Plan:
    return plan(parse_suite("boolq"), datasets=mirror, limit=None)


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}


def test_what_was_written_before_is_replaced_and_nothing_else(piqa: Plan, boolq: Plan, tmp_path: Path) -> None:
    write_tasks(piqa, tmp_path)
    assert set(content(tmp_path)) == {"piqa.yaml", "samples.json", "written.json"}
    (tmp_path / "my_task.yaml").write_text("mine", encoding="utf-8")
    write_tasks(boolq, tmp_path)
    assert set(content(tmp_path)) == {"boolq.yaml", "my_task.yaml", "written.json"}
    assert content(tmp_path)["my_task.yaml"] == "mine"
    assert json.loads(content(tmp_path)["written.json"]) == ["boolq.yaml"]
    write_tasks(boolq, tmp_path)
    assert set(content(tmp_path)) == {"boolq.yaml", "my_task.yaml", "written.json"}


@pytest.mark.parametrize("names", [("mine.yaml",), ("samples.json",), ("piqa.yaml",), ("folder/a.yaml",)])
def test_any_other_directory_is_refused(names: tuple[str, ...], piqa: Plan, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(Refused, match=r"--write_tasks .*: holds other files; give a new directory"):
        write_tasks(piqa, tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [*names]


def test_a_name_that_somebody_else_took_is_refused(piqa: Plan, boolq: Plan, tmp_path: Path) -> None:
    write_tasks(piqa, tmp_path)
    (tmp_path / "boolq.yaml").write_text("mine", encoding="utf-8")
    before = content(tmp_path)
    with pytest.raises(Refused, match=r"holds a boolq\.yaml that was not written by it"):
        write_tasks(boolq, tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("listed", ["{", "{}", "[1]", '["../mine.yaml"]', '["..", "."]', '["notes.txt"]'])
def test_a_list_that_is_not_ours_is_not_followed(listed: str, piqa: Plan, tmp_path: Path) -> None:
    directory = tmp_path / "tasks"
    directory.mkdir()
    for path in (tmp_path / "mine.yaml", directory / "notes.txt"):
        path.write_text("mine", encoding="utf-8")
    (directory / "written.json").write_text(listed, encoding="utf-8")
    with pytest.raises(Refused, match="holds other files"):
        write_tasks(piqa, directory)
    assert (tmp_path / "mine.yaml").exists()
    assert (directory / "notes.txt").exists()


def test_a_file_is_no_directory(piqa: Plan, tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("mine", encoding="utf-8")
    with pytest.raises(Refused, match="holds other files"):
        write_tasks(piqa, tmp_path / "tasks")
