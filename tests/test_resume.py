"""Killed at any moment and started again by the same command, a run ends in the very same files.

`INHERITUNE_KILLS=100 pytest tests/test_resume.py -k random -s` (`make kill-test`) kills at a hundred moments.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_saver import save

from inheritune import checkpoint
from inheritune.checkpoint import Checkpointer, checkpoints
from inheritune.distributed import World
from inheritune.run_directory import read_json, read_jsonl

KILLS = int(os.environ.get("INHERITUNE_KILLS", "10"))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "inheritune.pipeline", "inheritune.cli"])
LIMIT = 120.0
FILES = ("model/model.safetensors", "controls/random/model/model.safetensors", "result.json")


def _command(words: list[str], kill_in: tuple[str, str, int] | None) -> None:
    """Run a command line in this process; killed from within at the n-th call of a function, if one is named."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
    torch.set_num_threads(1)
    if kill_in is not None:
        owner_name, name, count = kill_in
        module, _, attribute = owner_name.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, attribute) if attribute else owner
        real, calls = getattr(owner, name), []

        def killing(*arguments: object, **settings: object) -> object:
            calls.append(name)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **settings)

        setattr(owner, name, killing)
    from inheritune.cli import main

    os._exit(main(words))


def run(
    words: list[str], *, kill_after: float | None = None, kill_in: tuple[str, str, int] | None = None
) -> int | None:
    """Run a command line in a process of its own; its exit code, negative for the signal that ended it."""
    process = CONTEXT.Process(target=_command, args=(words, kill_in))
    process.start()
    process.join(kill_after if kill_after is not None else LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        assert kill_after is not None, "it hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def recipe(llama_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = random.Random(0)
    folder = tmp_path_factory.mktemp("recipe")
    words = [first + second for first in "bdgklmnprst" for second in ("a", "ein", "olu")]
    lines = [json.dumps({"text": " ".join(made.choices(words, k=60))}) for _ in range(200)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: tiny
reference: {llama_directory}
data: {{sources: [{folder / "text.jsonl"}], tokens: 4000, passes: 2, sequence_length: 32, validation_share: 0.1,
  development_share: 0.1, validation_tokens: 1500, development_tokens: 800, workers: 1}}
train: {{batch_sequences: 8, micro_batch_sequences: 4, learning_rate: 5e-3, warmup_steps: 2, validate_every_steps: 6,
  checkpoint_every_steps: 3, compute_dtype: float32, export: best}}
controls: [random, cut]
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, float]]:
    """A run that nobody kills, and the seconds it took."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(["--version"])  # the server that processes are forked from starts with the first
    started = time.monotonic()
    assert run(["run", str(recipe), "--out", str(out)]) == 0
    yield out, time.monotonic() - started
    shutil.rmtree(out)


def same(out: Path, straight: Path) -> None:
    """The same bytes, every step recorded once, nothing half written left."""
    for file in FILES:
        assert (out / file).read_bytes() == (straight / file).read_bytes(), file
    for folder in ("", "controls/random"):
        told, expected = (
            [
                (r["kind"], r["step"], r.get("loss"), r.get("losses"))
                for r in read_jsonl(place / folder / "metrics.jsonl")
            ]
            for place in (out, straight)
        )
        assert told == expected
        assert not list((out / folder / "checkpoints").glob(".*"))


def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    recipe: Path, straight: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = straight
    moments = random.Random(time.time_ns())
    kills = runs = 0
    while kills < KILLS:
        out = tmp_path / f"run{runs}"
        runs += 1
        stages: list[str] = []
        while True:
            delay = moments.uniform(0, 0.8 * seconds) if kills < KILLS else None
            code = run(["run", str(recipe), "--out", str(out)], kill_after=delay)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            stages.append(_stage(out))
        same(out, whole)
        print(f"run {runs}: killed {len(stages)} times ({', '.join(stages)}), same bytes")
        shutil.rmtree(out)
    print(f"{kills} kills in {runs} runs, every run ended in the same bytes")


def _stage(out: Path) -> str:
    """Where a killed run stood: the last thing that is there."""
    if (out / "controls").exists():
        place = out / "controls" / "random"
    elif (out / "metrics.jsonl").exists():
        place = out
    else:
        return "before training"
    with contextlib.suppress(Exception):
        return f"{'control' if place != out else 'target'} step {read_jsonl(place / 'metrics.jsonl')[-1]['step']}"
    return "starting"


@pytest.mark.parametrize(
    "kill_in",
    [
        ("inheritune.corpus", "prepare", 1),
        ("inheritune.surgery", "inherit", 1),
        ("inheritune.pipeline.models", "measure_all", 1),
        ("inheritune.training", "measure_objective", 4),  # while validating
        ("inheritune.checkpoint", "save_sharded", 2),  # while writing a checkpoint: before its tensors
        ("inheritune.checkpoint", "_compare", 3),  # its tensors are written
        ("inheritune.checkpoint", "write_json", 2),  # before it is marked as complete
        ("inheritune.checkpoint", "_flush", 4),  # between its renaming and the next one's
        ("inheritune.pipeline.models:Models", "export", 1),
        ("inheritune.pipeline.models:Models", "export", 2),
        ("inheritune.pipeline.stages", "finish", 1),
    ],
    ids=lambda kill: f"{kill[0].rpartition('.')[2]}.{kill[1]} {kill[2]}",
)
def test_killed_in_the_middle_of_it(
    kill_in: tuple[str, str, int], recipe: Path, straight: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(["run", str(recipe), "--out", str(out)], kill_in=kill_in) == -signal.SIGKILL
    assert run(["run", str(recipe), "--out", str(out)]) == 0
    same(out, straight[0])


GROWTH = [
    *("--grow", "{start: 2, step: 2, tolerance_nats: 0.5, decision_seeds: 2, pilot_steps: 2}"),
    *("--train.learning_rate", "[1e-3, 5e-3]", "--controls", "[random]"),
]


@pytest.fixture(scope="module")
def grown(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A growth that nobody kills: a pilot, a round with two seeds, each with two learning rates, a control."""
    out = tmp_path_factory.mktemp("grown") / "run"
    assert run(["run", str(recipe), *GROWTH, "--out", str(out)]) == 0
    assert len(read_jsonl(out / "growth.jsonl")) == 2
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill_in",
    [
        ("inheritune.pipeline.growing:Growing", "_keep_pilot", 1),
        ("inheritune.pipeline.growing:Growing", "_record", 2),
        ("inheritune.pipeline.growing:Growing", "_settle", 1),
        ("inheritune.pipeline.growing", "_linked", 2),
        ("inheritune.pipeline.models:Models", "export", 2),
        ("inheritune.pipeline.models:Models", "_choose", 1),
        ("inheritune.pipeline.models:Models", "losses", 3),
    ],
    ids=lambda kill: f"{kill[1]} {kill[2]}",
)
def test_killed_in_the_middle_of_a_growth(
    kill_in: tuple[str, str, int], recipe: Path, grown: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(["run", str(recipe), *GROWTH, "--out", str(out)], kill_in=kill_in) == -signal.SIGKILL
    assert run(["run", str(recipe), *GROWTH, "--out", str(out)]) == 0
    for file in FILES:
        assert (out / file).read_bytes() == (grown / file).read_bytes(), file
    told, expected = (
        [{**record, "seconds": None} for record in read_jsonl(place / "growth.jsonl")] for place in (out, grown)
    )
    assert told == expected
    assert not list(out.glob(".*.tmp"))


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    hostile = pickle.dumps(Hostile(trap))
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 3, lines.append)
    for step in (1, 2):
        checkpointer.save(step, {"weight": torch.full((3,), float(step))}, {})
        assert checkpointer.finish()
    last = tmp_path / "checkpoints" / "step_00000002"
    shard = next(last.glob("*.safetensors"))
    shard.write_bytes(hostile)
    (last / ".metadata").write_bytes(hostile)  # where torch.distributed.checkpoint's own storage keeps a pickle
    found = checkpointer.latest()
    assert found is not None
    assert found[0].name == "step_00000001"
    assert "damaged" in lines[0]
    # a forger who mends the checksum, too, gets no further
    state = read_json(last / "state.json")
    state["files"][shard.name] = checkpoint._sha256(shard)
    state["sha256"] = checkpoint._digest(state)
    (last / "state.json").write_text(json.dumps(state), encoding="utf-8")
    assert checkpointer.checked(last) == state
    with pytest.raises(Exception, match=r"cannot be loaded"):
        checkpointer.load(last, {"weight": torch.zeros(3)})
    assert not trap.exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "state", "edited", "other", "directory"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 3, lines.append)
    for step in (1, 2):
        checkpointer.save(step, {"weight": torch.full((300,), float(step))}, {"of": step})
        assert checkpointer.finish()
    last = tmp_path / "checkpoints" / "step_00000002"
    shard = next(last.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        shard.write_bytes(content[:-4])
    elif damage == "flipped":
        content[-7] ^= 1
        shard.write_bytes(content)
    elif damage == "missing":
        shard.unlink()
    elif damage == "state":
        (last / "state.json").write_text('{"step": 2', encoding="utf-8")
    elif damage == "edited":
        state = read_json(last / "state.json")
        (last / "state.json").write_text(json.dumps(state | {"of": 3}), encoding="utf-8")
    elif damage == "other":
        (last / "more.safetensors").write_bytes(b"")
    else:
        (last / "state.json").unlink()
        (last / "state.json").mkdir()
    found = checkpointer.latest()
    assert found is not None
    path, state = found
    assert (path.name, state["of"]) == ("step_00000001", 1)
    tensors = {"weight": torch.zeros(300)}
    checkpointer.load(path, tensors)
    assert torch.equal(tensors["weight"], torch.ones(300))
    assert len(lines) == 1
    assert str(last) in lines[0]


def test_where_all_are_damaged_training_begins_anew(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 3, lines.append)
    for step in (1, 2):
        checkpointer.save(step, {"weight": torch.zeros(3)}, {})
        assert checkpointer.finish()
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").write_text("", encoding="utf-8")
    assert checkpointer.latest() is None
    assert [line.rpartition("; ")[2] for line in lines] == [
        "the checkpoint before it is used.",
        "training begins anew.",
    ]


def test_what_is_read_again_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 3, lines.append)
    real = save

    def lying_disk(tensors: dict[str, torch.Tensor], **settings: object) -> object:
        return real({name: tensor + 1 for name, tensor in tensors.items()}, **settings)

    monkeypatch.setattr(checkpoint, "save_sharded", lying_disk)
    checkpointer.save(1, {"weight": torch.zeros(3)}, {})
    assert not checkpointer.finish()
    assert "weight reads otherwise than it was written" in lines[0]
    assert checkpointer.latest() is None


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 1, print)
    weight = torch.zeros(1_000_000)
    checkpointer.save(1, {"weight": weight, "scalar": torch.tensor(2.5)}, {})
    weight += 1  # training goes on while it is written
    assert checkpointer.finish()
    held = load_file(next((tmp_path / "checkpoints" / "step_00000001").glob("*.safetensors")))
    assert float(held["weight"].sum()) == 0
    assert float(held["scalar"]) == 2.5


def test_the_newest_whole_checkpoint_stays_and_damaged_ones_go(tmp_path: Path) -> None:
    lines: list[str] = []

    def opened(keep: int) -> Checkpointer:
        return Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), keep, lines.append)

    def save(checkpointer: Checkpointer, step: int) -> None:
        checkpointer.save(step, {"model.a": torch.ones(4)}, {})
        assert checkpointer.finish()

    def damage(step: int) -> None:
        file = next((tmp_path / "checkpoints" / f"step_{step:08d}").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"!")

    writer = opened(2)
    for step in (100, 200, 300):
        save(writer, step)
    damage(200)
    damage(300)
    again = opened(2)
    assert again.latest() is None
    save(again, 50)
    save(again, 250)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000050", "step_00000250"]
    found = opened(1).latest()
    assert found is not None
    assert found[1]["step"] == 250


def test_a_save_that_failed_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", World(0, 1, torch.device("cpu")), 2, lines.append)
    monkeypatch.setattr(Checkpointer, "_write", lambda *_: "No space left on device")
    checkpointer.save(1, {"model.a": torch.ones(4)}, {})
    assert [checkpointer.finish(), checkpointer.finish()] == [False, False]
    assert len(lines) == 1
