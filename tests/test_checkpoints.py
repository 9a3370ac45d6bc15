"""A run's checkpoints as models: all of them found, each exported as the run would have, nothing in the run touched."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune import checkpoint, pipeline
from inheritune.distributed import single
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.pipeline import checkpoints
from inheritune.pipeline.checkpoints import checkpoint_directories, export_checkpoint
from inheritune.run_directory import read_json
from test_growing import forced
from test_pipeline import Silent, recipe, text

__all__ = ["text"]  # a fixture

ALL = ("--train.keep_checkpoints", "all", "--train.checkpoint_every_steps", "10", "--controls", "[]")
KEYS = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "dtype": "bfloat16"}


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


def same_model(out: Path, model: Path) -> None:
    """The same files, but for the card, in whose title the directory's name is."""
    found, expected = (
        {name: data for name, (_, data) in content(one).items() if name != "README.md"} for one in (out, model)
    )
    assert found == expected
    assert (out / "README.md").exists()


@pytest.fixture(scope="module")
def half(llama_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny reference in bfloat16, so that an export rounds."""
    out = tmp_path_factory.mktemp("half") / "reference"
    AutoModelForCausalLM.from_pretrained(llama_directory, dtype=torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(llama_directory).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def finished(half: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    pipeline.run(recipe(half, text, *ALL), out, console=Silent())
    return out


def test_all_are_found_with_what_they_were_trained_on(finished: Path) -> None:
    found = checkpoint_directories(finished)
    steps = read_json(finished / "ledger.json")["train target"]["steps"]
    assert [one.step for one in found] == [*range(10, steps, 10), steps]
    assert [one.tokens for one in found[:-1]] == [one.step * 8 * 32 for one in found[:-1]]
    assert found[-1].tokens == read_json(finished / "result.json")["tokens_trained"]
    assert {(one.training, one.learning_rate) for one in found} == {("target", None)}


def test_the_last_is_the_runs_own_model(finished: Path, tmp_path: Path) -> None:
    before = content(finished)
    export_checkpoint(finished, checkpoint_directories(finished)[-1], tmp_path / "out")
    same_model(tmp_path / "out", finished / "model")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert content(finished) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_one_has_the_weights_of_its_step(finished: Path, tmp_path: Path) -> None:
    first = checkpoint_directories(finished)[0]
    export_checkpoint(finished, first, tmp_path / "out")
    (shard,) = first.path.glob("*.safetensors")
    held = load_file(shard)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in exported.named_parameters():
        assert torch.equal(value, held[f"model.{name}"].to(torch.bfloat16)), name


@pytest.mark.parametrize(
    "flags", [("--inherit.init", "attention+mlp"), ("--inherit.layers", "angular:2"), ("--train.export", "last")]
)
def test_whatever_the_target_starts_from(
    flags: tuple[str, ...], llama_directory: Path, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pipeline.run(recipe(llama_directory, text, "--controls", "[]", *flags), run, console=Silent(), until="train")
    found = checkpoint_directories(run)
    assert len(found) == 2  # as many as are kept
    export_checkpoint(run, found[-1], tmp_path / "out")
    same_model(tmp_path / "out", run / "model")


def test_a_model_from_an_architecture(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--reference", "null", "--controls", "[]", "--architecture.vocabulary", "300"]
    made = recipe(text, text, *flags, "--architecture.config", json.dumps(KEYS))
    pipeline.run(made, run, console=Silent())
    export_checkpoint(run, checkpoint_directories(run)[-1], tmp_path / "out")
    same_model(tmp_path / "out", run / "model")


def test_of_several_learning_rates_that_of_the_best_stays(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ("--controls", "[]", "--train.learning_rate", "[1e-9, 5e-3]")
    pipeline.run(recipe(llama_directory, text, *flags), run, console=Silent(), until="train")
    found = checkpoint_directories(run)
    assert {(one.training, one.learning_rate) for one in found} == {("target", 5e-3)}
    export_checkpoint(run, found[-1], tmp_path / "out")
    same_model(tmp_path / "out", run / "model")


def test_rounds_have_theirs_where_all_are_kept(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a growth from an architecture: the reference is the run's own."""
    forced(monkeypatch, False, False)
    run = tmp_path / "run"
    grow = {"start": 1, "step": 1, "most": 2, "choice": "last", "pilot_steps": 0}
    flags = ["--reference", "null", "--architecture.vocabulary", "300", "--grow", json.dumps(grow)]
    keys = json.dumps(KEYS | {"num_hidden_layers": 3})
    made = recipe(text, text, *ALL, *flags, "--architecture.config", keys)
    pipeline.run(made, run, console=Silent(), until="train")
    found = checkpoint_directories(run)
    assert list(dict.fromkeys(one.training for one in found)) == ["round-1", "round-2"]
    for layers in (1, 2):
        last = [one for one in found if one.training == f"round-{layers}"][-1]
        export_checkpoint(run, last, tmp_path / str(layers))
        same_model(tmp_path / str(layers), run / "rounds" / str(layers) / "model")


def test_a_round_under_way_has_its_own(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    run, grow = tmp_path / "run", {"start": 1, "step": 2, "pilot_steps": 0, "decision_seeds": 2, "tolerance_nats": 10}
    flags = ("--controls", "[]", "--grow", json.dumps(grow))
    with pytest.raises(Interrupted):
        pipeline.run(recipe(llama_directory, text, *flags), run, console=Silent(stop_after=37))
    found = checkpoint_directories(run)
    assert [(one.training, one.step) for one in found] == [("round-1-seed-1", 5), ("round-1-seed-1", 6)]
    export_checkpoint(run, found[-1], tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 1


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_damaged_one_is_not_exported(copied: Path, tmp_path: Path) -> None:
    last = checkpoint_directories(copied)[-1]
    (shard,) = last.path.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Failed, match="damaged, its checksum differs"):
        export_checkpoint(copied, last, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_the_runs_is_passed_over(copied: Path) -> None:
    before = checkpoint_directories(copied)
    for name in ("rounds/4-old", "rounds/4-seed-x", "rounds/notes", "learning_rates/nan", "learning_rates/old"):
        shutil.copytree(copied / "checkpoints", copied / name / "checkpoints")
    (copied / "rounds" / "4").touch()
    (copied / "learning_rates" / "0.001").touch()
    (copied / "learning_rates" / "notes.txt").touch()
    assert checkpoint_directories(copied) == before


def test_one_exporter_for_all_of_a_run(finished: Path, tmp_path: Path) -> None:
    """What a model starts from is not left in the next one."""
    export, found = checkpoints.exporter(finished), checkpoint_directories(finished)
    for one in (found[-1], found[0], found[-1]):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        export(one, tmp_path / "out")
    same_model(tmp_path / "out", finished / "model")


def test_a_relative_reference_is_found_from_the_run(copied: Path, half: Path, tmp_path: Path) -> None:
    """It may have been started in another working directory."""
    known = read_json(copied / "reference.json")
    (copied / "reference.json").write_text(json.dumps(known | {"source": "models/half"}))
    last = checkpoint_directories(copied)[-1]
    with pytest.raises(Refused, match=r"models/half: no such directory.*, from here or from"):
        export_checkpoint(copied, last, tmp_path / "out")
    shutil.copytree(half, copied / "models" / "half")
    export_checkpoint(copied, last, tmp_path / "out")
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(copied / "model/model.safetensors").keys()
    )


@pytest.mark.parametrize("record", ["[]", "{}", "nonsense", '{"step": 1}'])
def test_a_damaged_record_is_one_line(record: str, copied: Path) -> None:
    path = checkpoint_directories(copied)[0].path
    (path / "state.json").write_text(record)
    with pytest.raises(Failed, match=r"state\.json: damaged") as failed:
        checkpoint_directories(copied)
    assert "\n" not in str(failed.value)


def test_what_a_run_is_writing_stays(copied: Path, tmp_path: Path) -> None:
    writing = copied / "checkpoints" / ".step_00000099.tmp"
    writing.mkdir()
    export_checkpoint(copied, checkpoint_directories(copied)[-1], tmp_path / "out")
    assert writing.exists()


def test_one_that_goes_meanwhile_is_left_out(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.checkpoints

    def listed(directory: Path) -> list[Path]:
        found = real(directory)
        for path in found[:1]:
            shutil.rmtree(path)
        return found

    before = checkpoint_directories(copied)
    monkeypatch.setattr(checkpoints, "checkpoints", listed)
    assert checkpoint_directories(copied) == before[1:]


def test_a_directory_that_holds_something_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="exists and is not an empty directory"):
        export_checkpoint(finished, checkpoint_directories(finished)[-1], tmp_path)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no run directory \(it holds no recipe\.yaml\)"):
        checkpoint_directories(tmp_path)


def test_another_reference_is_refused(copied: Path, tmp_path: Path) -> None:
    record = read_json(copied / "reference.json")
    (copied / "reference.json").write_text(json.dumps(record | {"fingerprint": "0"}))
    with pytest.raises(Refused, match="its weights changed since"):
        export_checkpoint(copied, checkpoint_directories(copied)[-1], tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused(copied: Path, tmp_path: Path) -> None:
    last = checkpoint_directories(copied)[-1]
    other = dataclasses.replace(last, path=copied / "checkpoints" / "step_00000001")
    writer = checkpoint.Checkpointer(copied / "checkpoints", single(), 99, pytest.fail)
    writer.save(1, {"model.model.norm.weight": torch.zeros(32)}, {"tokens": 1})
    assert writer.finish()
    with pytest.raises(Failed, match="cannot be loaded"):
        export_checkpoint(copied, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
