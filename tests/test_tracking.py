"""Trackers: TensorBoard for real; W&B and Trackio by stand-ins that note their calls, and for real where installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from inheritune.errors import Failed, Refused
from inheritune.tracking import Tracker, check_tracker, open_tracker

CONFIG = {"name": "half", "train": {"learning_rate": 1e-3, "max_steps": None}, "controls": ["random"]}


def opened(name: str, directory: Path, step: int = 0, told: list[str] | None = None) -> Tracker:
    directory.mkdir(exist_ok=True)
    told = [] if told is None else told
    tracker = open_tracker(name, directory, "half/target", CONFIG, step, report=told.append)
    assert tracker is not None
    return tracker


class StandIn(ModuleType):
    """A module in a library's place, whose runs note what they are given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, origin="a test")
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0
        self.first_step = 0
        self.error: Exception | None = None

    def init(self, **given: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.started.append(given)
        return SimpleNamespace(starting_step=self.first_step, log=self.log, finish=self.finish)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.error is not None:
            raise self.error
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1
        if self.error is not None:
            raise self.error


class StandInWandb(StandIn):
    """W&B's module: a run, and what decides whether a key is needed."""

    mode = "online"
    key = True
    logins = 0

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        self.logins += 1
        return self.key

    def Settings(self, **given: Any) -> dict[str, Any]:  # noqa: N802  (the library's name)
        return given


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandInWandb:
    module = StandInWandb("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn("trackio")
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_no_tracker(tmp_path: Path) -> None:
    check_tracker("none")
    assert open_tracker("none", tmp_path, "half/target", CONFIG, 0, report=pytest.fail) is None
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = r"^train\.tracker: absent_tracker is not installed; pip install 'inheritune\[absent_tracker\]'$"
    with pytest.raises(Refused, match=line):
        check_tracker("absent_tracker")
    (tmp_path / "absent_tracker").mkdir()  # such as W&B's own folder, `wandb`
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused, match=line):
        check_tracker("absent_tracker")


def events(directory: Path) -> Any:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(directory / "tensorboard")).Reload()


def test_tensorboard_shows_each_step_once_though_the_run_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    check_tracker("tensorboard")
    killed = opened("tensorboard", tmp_path / "run")
    for step in range(6):
        killed.log({"step/loss": 10 + step}, step)
    killed.close()
    resumed = opened("tensorboard", tmp_path / "run", 3)
    for step in range(4, 8):
        resumed.log({"step/loss": 20 + step, "step/seconds": 0.5}, step)
    resumed.close()
    shown = events(tmp_path / "run")
    losses = [(event.step, event.value) for event in shown.Scalars("step/loss")]
    assert losses == [(0, 10), (1, 11), (2, 12), (3, 13), (4, 24), (5, 25), (6, 26), (7, 27)]
    assert [event.value for event in shown.Scalars("step/seconds")] == [0.5] * 4
    (recipe,) = shown.Tensors("recipe/text_summary")
    text = recipe.tensor_proto.string_val[0].decode()
    assert json.loads(text) == CONFIG
    assert all(line.startswith("    ") for line in text.split("\n"))  # Markdown's mark of preformatted text


def test_tensorboard_begins_anew_without_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for value in (1.0, 2.0):
        tracker = opened("tensorboard", tmp_path / "run")
        tracker.log({"validation/held-out": value}, 0)
        tracker.close()
    assert [event.value for event in events(tmp_path / "run").Scalars("validation/held-out")] == [2.0]


def test_wandb_gets_the_run(wandb: StandInWandb, tmp_path: Path) -> None:
    tracker = opened("wandb", tmp_path / "run")
    tracker.log({"step/loss": 2.0}, 1)
    tracker.close()
    (given,) = wandb.started
    assert given["project"] == "inheritune"
    assert (given["group"], given["name"]) == ("half", "half/target")
    assert given["config"] == CONFIG
    assert given["dir"] == str(tmp_path / "run")
    assert given["reinit"] == "create_new"
    assert given["settings"]["console"] == "off"
    assert given["settings"]["finish_timeout"] > 0  # 0 is for ever
    assert wandb.logged == [({"step/loss": 2.0}, 1)]
    assert wandb.finished == 1


def test_wandb_goes_on_in_the_same_run(wandb: StandInWandb, tmp_path: Path) -> None:
    opened("wandb", tmp_path / "run").close()
    wandb.first_step = 6
    resumed = opened("wandb", tmp_path / "run", 3)
    for step in (4, 5, 6, 7):
        resumed.log({"step/loss": 2.0}, step)
    opened("wandb", tmp_path / "other").close()
    first, second, other = wandb.started
    assert first["id"] == second["id"]
    assert first["id"] != other["id"]
    assert first["resume"] == second["resume"] == "allow"
    assert [step for _, step in wandb.logged] == [6, 7]


def test_wandb_project_of_the_environment(wandb: StandInWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    opened("wandb", tmp_path / "run")
    assert wandb.started[0]["project"] == "mine"


def test_wandb_without_a_key_is_refused_and_never_asks(wandb: StandInWandb, tmp_path: Path) -> None:
    wandb.key = False
    with pytest.raises(Refused, match=r"^train\.tracker: wandb has no API key here; run `wandb login`, or set "):
        check_tracker("wandb")
    with pytest.raises(
        Failed, match=r"^train\.tracker: wandb has no API key here"
    ):  # a refusal would take the run directory away
        opened("wandb", tmp_path / "run")
    assert wandb.started == []


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_needs_no_key_offline(mode: str, wandb: StandInWandb, tmp_path: Path) -> None:
    wandb.mode, wandb.key = mode, False
    check_tracker("wandb")
    opened("wandb", tmp_path / "run")
    assert wandb.logins == 0
    assert len(wandb.started) == 1


def test_wandb_login_that_raises_is_refused(wandb: StandInWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    def login(*, prompt: bool) -> bool:
        raise ValueError("API key must\nhave 40 characters")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(Refused, match=r"cannot log in \(ValueError: API key must have 40 characters\); run"):
        check_tracker("wandb")


def test_trackio_gets_the_run_and_goes_on_in_it(
    trackio: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = trackio.init

    def init(**given: Any) -> Any:
        print("* Trackio project initialized")
        return noted(**given)

    monkeypatch.setattr(trackio, "init", init)
    tracker = opened("trackio", tmp_path / "run")
    tracker.log({"step/loss": 2.0}, 1)
    tracker.close()
    opened("trackio", tmp_path / "run", 1)
    opened("trackio", tmp_path / "other")
    first, second, other = trackio.started
    assert first == second
    assert (first["project"], first["group"], first["config"]) == ("inheritune", "half", CONFIG)
    assert first["name"].startswith("half/target-")
    assert first["name"] != other["name"]  # one store holds the runs of all directories
    assert first["resume"] == "allow"
    assert trackio.logged == [({"step/loss": 2.0}, 1)]
    assert trackio.finished == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_that_cannot_start_is_one_line(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    module = request.getfixturevalue(name)
    module.error = ConnectionError("no route\n  to host")
    with pytest.raises(Failed, match=rf"^train\.tracker: {name} cannot start \(ConnectionError: no route to host\); "):
        opened(name, tmp_path / "run")


def test_tensorboard_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(Failed, match=r"^train\.tracker: tensorboard cannot start \(\w+: [^\n]*\); go on with [^\n]*$"):
        opened("tensorboard", tmp_path)


def test_an_error_while_logging_is_told_once_and_ends_the_tracker(trackio: StandIn, tmp_path: Path) -> None:
    told: list[str] = []
    tracker = opened("trackio", tmp_path / "run", told=told)
    tracker.log({"step/loss": 2.0}, 1)
    trackio.error = OSError("disk full")
    tracker.log({"step/loss": 2.0}, 2)
    tracker.close()
    assert told == ["Tracker trackio failed (OSError: disk full); metrics.jsonl goes on without it."]
    assert trackio.finished == 1
    trackio.error = None
    tracker.log({"step/loss": 2.0}, 3)
    assert [step for _, step in trackio.logged] == [1]


def test_an_error_at_the_end_is_told(trackio: StandIn, tmp_path: Path) -> None:
    told: list[str] = []
    tracker = opened("trackio", tmp_path / "run", told=told)
    trackio.error = OSError("disk full")
    tracker.close()
    assert len(told) == 1


PROGRAM = """
import sys
from pathlib import Path
from inheritune.tracking import check_tracker, open_tracker

name, directory = sys.argv[1], Path(sys.argv[2])
check_tracker(name)
for step in (0, 2):
    tracker = open_tracker(name, directory, "half/target", {"train": {"seed": 7}}, step, report=sys.exit)
    for later in range(step + 1, step + 4):
        tracker.log({"step/loss": 2.0 / later}, later)
        tracker.log({"validation/held-out": 3.0}, later)
    tracker.close()
"""


def run_for_real(name: str, directory: Path, **environment: str) -> None:
    """A training killed after step 3, and its resumption from step 2, with the library itself and no network."""
    home = {"HOME": str(directory), "HF_HOME": str(directory / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(directory)],
        env=os.environ | home | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    run_for_real("wandb", tmp_path, WANDB_MODE="offline")
    identity = json.loads((tmp_path / "tracker.json").read_text())["id"]
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        assert f"-{identity}" in run.name
        held = (run / f"run-{identity}.wandb").read_bytes()
        assert b"step/loss" in held
        assert b"half/target" in held


@pytest.mark.slow
def test_wandb_itself_without_a_key(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    with pytest.raises(AssertionError, match="wandb has no API key here"):
        run_for_real("wandb", tmp_path, WANDB_MODE="online", WANDB_API_KEY="", WANDB_BASE_URL="http://127.0.0.1:9")


@pytest.mark.slow
def test_trackio_itself(tmp_path: Path) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    run_for_real("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "store"))
    program = """
import trackio
from trackio.sqlite_storage import SQLiteStorage

(run,) = trackio.Api().runs("inheritune")
print(run.name, run.config["train"], [log["step"] for log in SQLiteStorage.get_logs("inheritune", run.name)])
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    identity = json.loads((tmp_path / "tracker.json").read_text())["id"]
    steps = [1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5]  # a record a step and one a validation; step 3 twice
    assert shown.stdout == f"half/target-{identity} {{'seed': 7}} {steps}\n"
