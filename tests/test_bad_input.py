"""Bad input, from the command line: one clear line, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from inheritune import checkpoint, surgery
from inheritune.cli import main
from inheritune.run_directory import lock, read_json

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class Ground:
    """A directory with a good recipe, its text and its reference, and ways to spoil them."""

    def __init__(self, root: Path, reference: Path) -> None:
        self.root = root
        self.text = root / "text.jsonl"
        made = random.Random(0)
        lines = [json.dumps({"text": " ".join(made.choices(WORDS, k=50))}) for _ in range(120)]
        self.text.write_text("\n".join(lines))
        self.reference = root / "reference"
        shutil.copytree(reference, self.reference)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(
            f"name: ground\nreference: {self.reference}\n"
            f"data: {{sources: [{self.text}], tokens: 2000, sequence_length: 32, validation_share: 0.1, "
            "development_share: 0.1, validation_tokens: 500, development_tokens: 500, workers: 1}\n"
            "train: {batch_sequences: 4, micro_batch_sequences: 4, warmup_steps: 1, checkpoint_every_steps: 1, "
            "compute_dtype: float32}\n"
        )
        self.out = root / "out"

    def run(self, *flags: str) -> int:
        return main(["run", str(self.recipe), "--out", str(self.out), *flags])


@pytest.fixture
def ground(tmp_path: Path, llama_directory: Path) -> Ground:
    return Ground(tmp_path, llama_directory)


def empty_text(ground: Ground) -> None:
    ground.text.write_text("")


def no_text(ground: Ground) -> None:
    ground.text.unlink()


def not_gzip(ground: Ground) -> None:
    (ground.root / "text.jsonl.gz").write_bytes(ground.text.read_bytes())


def cut_gzip(ground: Ground) -> None:
    (ground.root / "text.jsonl.gz").write_bytes(gzip.compress(ground.text.read_bytes())[:-20])


def not_parquet(ground: Ground) -> None:
    (ground.root / "text.parquet").write_bytes(b"no parquet at all")


def undecodable(ground: Ground) -> None:
    ground.text.write_bytes(ground.text.read_bytes() + b'\n{"text": "\xff\xfe"}')


def bad_line(ground: Ground) -> None:
    ground.text.write_text(ground.text.read_text() + '\n{"text": "unfinished')


def no_field(ground: Ground) -> None:
    ground.text.write_text(ground.text.read_text() + '\n{"txt": "misnamed"}')


def no_weights(ground: Ground) -> None:
    (ground.reference / "model.safetensors").unlink()


def truncated_weights(ground: Ground) -> None:
    file = ground.reference / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


class Unsafe:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/inheritune-was-here",)


def unsafe_pickle(ground: Ground) -> None:
    (ground.reference / "model.safetensors").unlink()
    (ground.reference / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Unsafe()}))


def no_model(ground: Ground) -> None:
    (ground.reference / "config.json").unlink()


def foreign_tokenizer(ground: Ground) -> None:
    file = ground.reference / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    entry = {"id": 5000, "content": "<|far|>", "special": True}
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], **entry})
    file.write_text(json.dumps(tokenizer))


def no_vocabulary(ground: Ground) -> None:
    (ground.reference / "tokenizer.json").unlink()


def huge_number(ground: Ground) -> None:
    ground.text.write_text(ground.text.read_text() + '\n{"text": "a", "n": ' + "9" * 5000 + "}")


def odd_config(ground: Ground) -> None:
    file = ground.reference / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": "four"}))


def no_heads(ground: Ground) -> None:
    file = ground.reference / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 0}))


def both_directions(ground: Ground) -> None:
    (ground.reference / "config.json").write_text('{"model_type": "bert"}')


def weights_are_a_directory(ground: Ground) -> None:
    (ground.reference / "model.safetensors").unlink()
    (ground.reference / "model.safetensors").mkdir()


def empty_index(ground: Ground) -> None:
    (ground.reference / "model.safetensors").unlink()
    (ground.reference / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def lost_tensor(ground: Ground) -> None:
    """Of a layer that the target does not keep."""
    file = ground.reference / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})


def eight_bits(ground: Ground) -> None:
    file = ground.reference / "model.safetensors"
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def shard_is_a_directory(ground: Ground) -> None:
    (ground.reference / "model.safetensors").unlink()
    name = "model-00001-of-00001.safetensors"
    (ground.reference / name).mkdir()
    (ground.reference / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


def no_numbers(ground: Ground) -> None:
    """In what every target takes."""
    file = ground.reference / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, file, {"format": "pt"})


def bad_lineage(ground: Ground) -> None:
    (ground.reference / "inheritune.json").write_text("{")


def bad_prepared(ground: Ground) -> None:
    (ground.root / "prepared").mkdir()
    (ground.root / "prepared" / "manifest.json").write_text("{")


def nothing(ground: Ground) -> None:
    """All is well but for the flags."""


CASES: list[tuple[Callable[[Ground], None], list[str], list[str]]] = [
    (no_text, [], ["text.jsonl", "no such"]),
    (empty_text, [], ["text.jsonl", "empty"]),
    (not_gzip, ["--data.sources", '["{root}/text.jsonl.gz"]'], ["text.jsonl.gz", "gzip"]),
    (cut_gzip, ["--data.sources", '["{root}/text.jsonl.gz"]'], ["text.jsonl.gz"]),
    (not_parquet, ["--data.sources", '["{root}/text.parquet"]'], ["text.parquet", "Parquet"]),
    (undecodable, [], ["text.jsonl:121", "UTF-8"]),
    (bad_line, [], ["text.jsonl:121", "JSON"]),
    (no_field, [], ["text.jsonl:121", "text"]),
    (nothing, ["--data.sources", '["{root}/*.nothing"]'], ["*.nothing"]),
    (nothing, ["--data.tokens", "10M"], ["tokens", "10,000,000"]),
    (nothing, ["--data.validation_share", "0.000001"], ["validation", "validation_share"]),
    (
        nothing,
        ["--data.sequence_length", "1000", "--train.warmup_steps", "0"],
        ["data.sequence_length", "1000", "128 positions"],
    ),
    (nothing, ["--inherit.layers", "0"], ["layers", "0"]),
    (nothing, ["--inherit.layers", "5"], ["layers", "5", "4"]),
    (nothing, ["--inherit.layers", "some"], ["layers", "some"]),
    (nothing, ["--train.learning_rate", "0"], ["train.learning_rate", "above 0"]),
    (nothing, ["--train.learning_rate", ".nan"], ["train.learning_rate", "a number"]),
    (nothing, ["--inherit.layers", "0-1+1"], ["layers", "0-1+1", "layer 0 twice"]),
    (nothing, ["--inherit.layers", "influence:5"], ["layers", "influence:5", "4 layers"]),
    (nothing, ["--inherit.layers", "angular:0"], ["layers", "angular:0", "4 layers"]),
    (nothing, ["--inherit.layers", "first:3+last:2"], ["layers", "first:3+last:2", "layer 2 twice"]),
    (nothing, ["--inherit.init", "atention"], ["inherit.init", "atention", "did you mean 'attention'"]),
    (nothing, ["--controls", "[stak]"], ["controls", "stak", "cut, random, stack"]),
    (nothing, ["--controls", "[inherit]"], ["controls", "inherit", "the target itself"]),
    (nothing, ["--reference", "{root}/nowhere"], ["nowhere"]),
    (nothing, ["--reference", "org/model-that-is-not-cached"], ["org/model-that-is-not-cached"]),
    (no_weights, [], ["reference", "weights"]),
    (truncated_weights, [], ["model.safetensors"]),
    (unsafe_pickle, [], ["pytorch_model.bin", "system"]),
    (no_model, [], ["config.json"]),
    (foreign_tokenizer, [], ["tokenizer", "320 rows"]),
    (nothing, ["--data.passes", "2", "--data.pases", "3"], ["--data.pases", "data.passes"]),
    (nothing, ["--reference", "a" * 5000], ["aaa", "no such directory"]),
    (nothing, ["--data.sources", "a" * 5000], ["aaa", "no such file"]),
    (nothing, ["--data.validation_sets", '{"manifest.json": {"path": "{root}/text.jsonl"}}'], ["'manifest.json'"]),
    (
        nothing,
        ["--data.validation_sets", '{"same": {"path": "{root}/text.jsonl"}}'],
        ["stands in data.validation_sets"],
    ),
    (nothing, ["--controls", "random"], ["controls is 'random'", "written [random]"]),
    (no_vocabulary, [], ["reference", "tokenizer"]),
    (huge_number, [], ["text.jsonl:121", "not JSON"]),
    (odd_config, [], ["config.json", "num_hidden_layers"]),
    (no_heads, [], ["config.json"]),
    (both_directions, [], ["both directions", "bert"]),
    (weights_are_a_directory, [], ["no weights"]),
    (empty_index, [], ["index.json", "names no file"]),
    (bad_lineage, [], ["inheritune.json", "not JSON"]),
    (lost_tensor, [], ["model.layers.3.mlp.up_proj.weight is missing"]),
    (eight_bits, [], ["quantised", "float8_e4m3fn"]),
    (shard_is_a_directory, [], ["model-00001-of-00001.safetensors is missing"]),
    (nothing, ["--data.prepared", "{root}/text.jsonl"], ["text.jsonl", "Not a directory"]),
    (nothing, ["--reference", "{root}/nowhere.gguf"], ["nowhere.gguf: no such file"]),
    (nothing, ["--reference", "{root}/\udcff"], ["its name is not UTF-8", "rename it"]),
    (nothing, ["--data.sources", "[]"], ["data.sources is empty"]),
    (nothing, ["--data.tokens", "1K", "--data.tokens", "1.5"], ["data.tokens is '1.5'"]),
    (bad_prepared, ["--data.prepared", "{root}/prepared"], ["prepared", "damaged"]),
    (nothing, ["--data.prepared", "{root}/nowhere"], ["nowhere", "no manifest.json"]),
]


@pytest.mark.parametrize(("spoil", "flags", "said"), CASES, ids=[f"{c[0].__name__}{c[1][-1:]}" for c in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    spoil: Callable[[Ground], None],
    flags: list[str],
    said: list[str],
    ground: Ground,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(ground)
    code = ground.run(*(flag.replace("{root}", str(ground.root)) for flag in flags))
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    complaint = [line for line in captured.err.splitlines() if line.startswith("inheritune: ")]
    assert len(complaint) == 1
    assert captured.err.rstrip().endswith(complaint[0]), "the complaint is the last line"
    for part in said:
        assert part in complaint[0]
    assert "Traceback" not in captured.err
    assert not ground.out.exists()
    assert not Path("/tmp/inheritune-was-here").exists()


def test_a_directory_in_use(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    with lock(ground.out):
        assert ground.run() == 2
    assert "in use by another run" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "a\0b", "a" * 300, "\udcff", "text.jsonl/out", "/proc/nowhere/out"])
def test_an_impossible_directory(out: str, ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{ground.root}/{out}" if out and out[0] != "/" else out
    assert main(["run", str(ground.recipe), "--out", place]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("flags", [["--data.tokens", "10M"], ["--train.warmup_steps", "1000"]])
def test_directories_above_a_refused_run_are_not_left_behind(flags: list[str], ground: Ground) -> None:
    before = sorted(ground.root.rglob("*"))
    assert main(["run", str(ground.recipe), "--out", str(ground.root / "a" / "b" / "run"), *flags]) == 2
    assert sorted(ground.root.rglob("*")) == before


def test_a_name_with_a_line_break_is_one_line_all_the_same(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    assert ground.run("--reference", "no\nwhere") == 2
    assert capsys.readouterr().err.splitlines() == ["inheritune: no where: no such directory, and no hub id (ORG/NAME)"]


def test_a_flag_is_judged_beside_the_recipe_not_the_defaults(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--train.final_learning_rate", "0.01", "--train.learning_rate", "0.1", "--reference", "nowhere/at/all"]
    ground.recipe.write_text(ground.recipe.read_text().replace("train: {", "train: {learning_rate: 0.1, "))
    assert ground.run(*flags[:2], *flags[4:]) == 2
    assert "nowhere/at/all" in capsys.readouterr().err


def test_text_is_looked_for_before_a_reference_is_dequantised(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*_: Any) -> None:
        raise AssertionError("the reference was looked for")

    monkeypatch.setattr("inheritune.reference.find", found)
    no_text(ground)
    assert ground.run() == 2
    assert "text.jsonl: no such file" in capsys.readouterr().err


def test_weights_that_are_no_numbers(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    no_numbers(ground)
    out = ground.root / "cut"
    assert main(["inherit", str(ground.reference), "--layers", "2", "--out", str(out)]) == 2
    assert "model.norm.weight holds NaN or infinity; its file is damaged" in capsys.readouterr().err
    assert not out.exists()


def test_a_reference_without_a_loss_is_said(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    """What its target leaves out is not finite."""
    file = ground.reference / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    assert ground.run("--inherit.layers", "2") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the reference's loss on held-out is not finite" in last


def test_what_a_killed_write_left_goes(ground: Ground) -> None:
    ground.out.mkdir()
    left = ground.out / ".ledger.json.123.tmp"
    left.write_text("{")
    with lock(ground.out):
        assert not left.exists()


def test_a_damaged_record_is_named(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    assert ground.run() == 0
    last = checkpoint.checkpoints(ground.out / "checkpoints")[-1]
    for record in (ground.out / "losses" / "target.json", ground.out / "model" / "config.json"):
        record.unlink()
    (ground.out / "result.json").write_text("{")
    assert ground.run() == 1
    assert "result.json: damaged" in capsys.readouterr().err
    (ground.out / "result.json").unlink()
    shutil.rmtree(ground.out / "model")
    shard = next(last.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert ground.run() == 0
    assert f"{shard}: damaged, its checksum differs; the checkpoint before it is used." in capsys.readouterr().err
    (ground.out / "data" / "manifest.json").write_text("{")
    (ground.out / "result.json").unlink()
    capsys.readouterr()
    assert ground.run() == 1
    assert "manifest.json: damaged" in capsys.readouterr().err


def test_a_directory_of_another_recipe(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    assert ground.run("--data.passes", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in ground.out.rglob("*")}
    assert ground.run("--data.passes", "3") == 2
    assert "data.passes: 1 there, 3 here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in ground.out.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "did you mean 'run'"),
        (["run"], "inheritune run: RECIPE is missing"),
        (["run", "dmeo"], "did you mean 'demo'"),
        (["inherit"], "inheritune inherit: REFERENCE missing"),
        (["inherit", "x"], "--layers"),
        (["inherit", "x", "--layers", "2"], "--out is missing"),
        (["prepare", "x.txt"], "is missing"),
        (["report", "/nonexistent"], "/nonexistent"),
        (["report"], "RUN missing"),
    ],
)
def test_a_wrong_command_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_full_disk_later_keeps_what_was_finished(
    ground: Ground, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = HuggingFaceStorageWriter.write_data, 0

    def full(writer: HuggingFaceStorageWriter, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(28, "No space left on device")
        return real(writer, *arguments)

    def full_too(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model")

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", full)
    monkeypatch.setattr(surgery, "save", full_too)
    assert ground.run() == 1
    err = capsys.readouterr().err
    assert "checkpoint not written (No space left on device); what is there is kept" in err
    assert "inheritune: model: No space left on device" in err
    assert "Traceback" not in err
    assert read_json(ground.out / "result.json")["state"] == "failed"
    assert [path.name for path in checkpoint.checkpoints(ground.out / "checkpoints")] == [
        "step_00000001",
        "step_00000002",
    ]
    monkeypatch.undo()
    assert ground.run() == 0
    assert read_json(ground.out / "result.json")["state"] == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_a_checkpoint(ground: Ground, number: int, code: int) -> None:
    command = [sys.executable, "-c", "from inheritune.cli import main_entry; main_entry()"]
    words = ["run", str(ground.recipe), "--out", str(ground.out), "--data.passes", "2000"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoint.checkpoints(ground.out / "checkpoints") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip().splitlines()[-1].endswith("checkpoint written; the same command goes on from there")
    assert "Traceback" not in err
    assert read_json(ground.out / "result.json")["state"] == "preempted"
