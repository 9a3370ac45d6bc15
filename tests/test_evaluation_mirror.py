"""Evaluation data in a mirror of the hub: found, missing, and what of a task changes for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluation_mirror import DATA, write_dataset, write_mirror
from inheritune.errors import Refused
from inheritune.evaluation.mirror import (
    Mirror,
    Missing,
    changes,
    examples_split,
    fetch_command,
    open_mirror,
    unwritable_cache,
)

PIQA = {
    "task": "piqa",
    "dataset_path": "baber/piqa",
    "dataset_name": None,
    "training_split": "train",
    "validation_split": "validation",
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    return Mirror(write_mirror(tmp_path_factory.mktemp("mirror")))


def missing(config: dict[str, Any], shots: int, mirror: Mirror) -> str:
    with pytest.raises(Missing) as error:
        changes(config, shots, mirror)
    return str(error.value)


def test_path_and_absent_splits_change_and_nothing_else(mirror: Mirror) -> None:
    found = changes(PIQA, 0, mirror)
    assert found["dataset_path"] == str((mirror.directory / "baber/piqa").resolve())
    assert found["training_split"] is None
    assert set(found) == {"dataset_path", "training_split", "dataset_kwargs"}
    assert changes(PIQA | {"dataset_kwargs": {"streaming": False}}, 0, mirror)["dataset_kwargs"]["streaming"] is False


def test_the_librarys_cache_is_by_content(mirror: Mirror, tmp_path: Path) -> None:
    """Or a directory whose files changed would be read as it was."""

    def cache(root: Path) -> str:
        return str(changes(PIQA, 0, Mirror(root))["dataset_kwargs"]["cache_dir"])

    copy = tmp_path / "copy"
    shutil.copytree(mirror.directory, copy)
    assert cache(copy) == cache(mirror.directory)
    file = next((copy / "baber/piqa").rglob("*.parquet"))
    file.write_bytes(file.read_bytes() + b" ")
    assert cache(copy) != cache(mirror.directory)


def test_a_split_that_examples_come_from_must_be_there(mirror: Mirror) -> None:
    said = missing(PIQA, 3, mirror)
    assert said.startswith(f"baber/piqa has no split train in {mirror.directory / 'baber/piqa'}: it has validation; ")
    assert said.endswith(f"hf download --repo-type dataset baber/piqa --local-dir {mirror.directory / 'baber/piqa'}")


def test_examples_of_their_own_split(mirror: Mirror) -> None:
    mmlu = {
        "dataset_path": "cais/mmlu",
        "dataset_name": "anatomy",
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
    }
    assert examples_split(mmlu) == "dev"
    own = {"dataset_path", "dataset_kwargs"}
    assert set(changes(mmlu, 5, mirror)) == own
    assert set(changes(mmlu | {"fewshot_split": "train"}, 0, mirror)) == {*own, "fewshot_split"}
    within = mmlu | {"fewshot_config": {"split": "train"}}
    assert changes(within, 0, mirror)["fewshot_config"] == {"split": None}
    assert examples_split(within) == "train"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_path": "nyu-mll/glue"}, "nyu-mll/glue is not in "),
        ({"dataset_path": "cais/mmlu", "dataset_name": "law"}, "cais/mmlu (law) is not whole in "),
        ({"test_split": "test"}, "baber/piqa has no split test in "),
        ({"dataset_path": None}, "its data does not come from the hub"),
    ],
)
def test_what_is_missing_is_said(mirror: Mirror, change: dict[str, Any], said: str) -> None:
    found = missing(PIQA | change, 0, mirror)
    assert found.startswith(said)
    assert "\n" not in found


def test_the_hubs_own_cache_is_a_mirror(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "datasets--baber--piqa"
    for commit in ("aaa", "bbb"):
        write_dataset(cache / "snapshots" / commit, DATA["baber/piqa"])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("aaa\n", encoding="utf-8")
    for root in (tmp_path, tmp_path / "hub"):
        assert Mirror(root).find("baber/piqa") == cache / "snapshots" / "aaa"
    shutil.rmtree(cache / "refs")
    assert Mirror(tmp_path).find("baber/piqa").parent == cache / "snapshots"
    assert changes(PIQA, 0, Mirror(tmp_path))["dataset_path"].startswith(str(cache.resolve()))


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(Refused) as error:
        open_mirror(tmp_path / "nowhere")
    assert "no such directory" in str(error.value)
    assert open_mirror(None) is None


def test_a_command_can_be_pasted() -> None:
    assert fetch_command("a/b", "my data").endswith("--local-dir 'my data/a/b'")


def test_an_unusable_cache_is_not_blamed_on_the_mirror(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/cache"))
    error = FileNotFoundError(2, "No such file or directory", "/proc/cache")
    expected = "/proc/cache: No such file or directory; set HF_DATASETS_CACHE to a directory that can be written"
    assert unwritable_cache(error) == expected
    assert unwritable_cache(PermissionError(13, "Permission denied", "/x")) == expected.replace(
        "/proc/cache: No such file or directory", "/x: Permission denied"
    )
    assert unwritable_cache(FileNotFoundError(2, "No such file or directory", "/data/piqa.parquet")) is None
    assert unwritable_cache(ValueError("no such configuration")) is None
