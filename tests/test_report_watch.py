"""A run that is watched: where it stands, the line in the terminal, and the page that is served."""

from __future__ import annotations

import http.client
import io
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from inheritune.cli import main
from inheritune.console import Console, live_line, sparkline
from inheritune.errors import Refused
from inheritune.report import Following, live, served
from inheritune.report.live import Live
from inheritune.report.watch import Watched
from test_report import change, make_run

RECIPE = """name: demo
data: {tokens: 41000, passes: 2, sequence_length: 256}
train: {batch_sequences: 16}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose control is being trained: 10 steps of 20 are done, 4,096 tokens each, a second a step."""
    run = make_run(tmp_path / "run")
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (run / "result.json").write_text('{"name": "demo", "state": "running"}', encoding="utf-8")
    (run / "ledger.json").write_text('{"prepare": {"seconds": 8}, "train target": {"seconds": 20}}', encoding="utf-8")
    steps = [
        {"kind": "step", "step": step, "tokens": 4096 * step, "loss": 8 - step / 2, "tokens_per_second": 4096.0}
        for step in range(1, 11)
    ]
    path = run / "controls" / "random" / "metrics.jsonl"
    path.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    os.utime(run / "metrics.jsonl", (1, 1))
    return run


def test_what_is_trained_and_how_long_it_takes(run: Path) -> None:
    found = live(run)
    assert (found.state, found.stage, found.step, found.steps) == ("running", "training Random init", 10, 20)
    assert found.losses == tuple(8 - step / 2 for step in range(1, 11))
    assert found.tokens_per_second == 4096
    assert found.seconds_left == pytest.approx(10)
    assert not found.over


def test_the_shards_say_how_many_steps_where_the_recipe_does_not(run: Path) -> None:
    (run / "data").mkdir()
    (run / "data" / "manifest.json").write_text('{"sets": {"train": {"tokens": 82000}}}', encoding="utf-8")
    assert live(run).steps == 40
    (run / "recipe.yaml").write_text(f"{RECIPE.rstrip()[:-1]}, max_steps: 12}}", encoding="utf-8")
    assert live(run).steps == 12
    (run / "recipe.yaml").write_text(f"{RECIPE.rstrip()[:-1]}, max_steps: 1000}}", encoding="utf-8")
    assert live(run).steps == 40, "the data ends sooner"
    (run / "recipe.yaml").write_text("data: {sequence_length: 0.5, passes: 2}\ntrain: {batch_sequences: 0.5}")
    assert live(run).steps is None
    (run / "recipe.yaml").write_text("train: [", encoding="utf-8")
    assert live(run).steps is None
    assert live(run).seconds_left is None


def test_a_training_for_more_steps_takes_longer(run: Path) -> None:
    (run / "controls" / "random").rename(run / "controls" / "random-2x")
    found = live(run)
    assert found.stage == "training Random init, 2x steps"
    assert found.steps == 40


@pytest.mark.parametrize("state", ["done", "failed", "trained", "inherited", "prepared"])
def test_a_run_that_writes_no_more_is_over(run: Path, state: str) -> None:
    change(run, state=state)
    assert live(run).over


@pytest.mark.parametrize("more", ["grow: {growth: warm}", "compare: {tokens: 10}"])
def test_steps_that_are_others_than_the_recipes_are_not_guessed(run: Path, more: str) -> None:
    (run / "recipe.yaml").write_text(f"{RECIPE}{more}\n", encoding="utf-8")
    assert (live(run).step, live(run).steps, live(run).seconds_left) == (10, None, None)


def test_a_name_that_says_steps_and_layers_is_read(run: Path) -> None:
    (run / "controls" / "random").rename(run / "controls" / "random-2x@4")
    assert live(run).steps == 40


def test_a_learning_rate_of_several_is_shown(run: Path) -> None:
    (run / "learning_rates").mkdir()
    (run / "controls" / "random").rename(run / "learning_rates" / "0.001")
    assert (live(run).step, live(run).steps) == (10, 20)


@pytest.mark.parametrize("text", ["!!bool maybe", "[" * 5000])
def test_a_recipe_that_cannot_be_read_says_no_steps(run: Path, text: str) -> None:
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    assert live(run).steps is None


def test_between_trainings_the_last_stage_is_shown(run: Path) -> None:
    ledger: dict[str, dict[str, float]] = {"train target": {}, "train random": {}, "measure random": {}, "total": {}}
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    assert live(run) == Live("running", "measure random")


@pytest.mark.parametrize("content", ["", "[]", '{"state": 5}', "{"])
def test_a_directory_of_something_else_stands_nowhere(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text(content)
    assert live(tmp_path).stage == "preparing"


def test_of_records_that_grow_only_what_is_new_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "controls" / "random" / "metrics.jsonl"
    read: list[bytes] = []

    def counted(line: bytes) -> Any:
        read.append(line)
        return json.loads(line)

    monkeypatch.setattr(sys.modules["inheritune.report.live"], "json", SimpleNamespace(loads=counted))
    following = Following(run)
    assert following() == live(run)
    read.clear()
    more = {"kind": "step", "step": 11, "tokens": 4096 * 11, "loss": 2.0, "tokens_per_second": 2048.0}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(more)[:20])
    assert following().step == 10, "its line is not whole yet"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(more)[20:] + "\n")
    assert (following().step, following().losses[-1], len(read)) == (11, 2.0, 1)
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:6]
    (run / "new").write_text("".join(kept), encoding="utf-8")
    (run / "new").replace(path)  # a restart takes back the steps after its checkpoint
    assert following() == live(run)
    assert (following().step, len(following().losses)) == (6, 6)
    (run / "metrics.jsonl").touch()
    assert following().stage != "training Random init", "another training wrote last"


def test_a_sparkline_shows_the_course() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([float(value) for value in range(1000)], width=4) == "▁▃▆█"


def test_the_line_says_what_is_known(run: Path) -> None:
    line = live_line("demo", live(run))
    assert line == "demo: training Random init  step 10/20  loss 3.000 █▇▆▆▅▄▃▃▂▁  4,096 tokens/s  10 s left"
    assert live_line("demo", Live("done", "measure random")) == "demo: done"
    assert live_line("demo", Live("running", "prepare", step=3)) == "demo: prepare  step 3"


@dataclass
class Step:
    step: int
    loss: float
    steps: int = 10
    tokens_per_second: float = 1234.0
    seconds_left: float = 60.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_of_a_training_ends_in_its_sparkline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = Console()
    for step, loss in enumerate([8.0, 4.0, 1.0], 1):
        shown.progress(Step(step, loss))
    assert terminal.getvalue().rpartition("\r")[2].rstrip().endswith("1 min 00 s left  █▄▁")
    shown.progress(Step(1, 2.0))  # the next training begins with a course of its own
    assert terminal.getvalue().rpartition("\r")[2].rstrip().endswith("left  ▁")
    shown.progress(Step(2, float("nan")))
    assert terminal.getvalue().rpartition("\r")[2].rstrip().endswith("left  ▁")


def test_elsewhere_lines_are_plain_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.StringIO()
    monkeypatch.setattr("sys.stderr", plain)
    clock = iter([100.0, 100.0, 101.0, 200.0, 200.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    shown = Console()
    for text in ("one", "two", "three"):
        shown.status(text)
    assert plain.getvalue() == "one\nthree\n"


def ask(address: str, path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_the_page_is_served_to_this_machine_alone_and_once_a_change(run: Path) -> None:
    with served([run]) as address:
        status, headers, page = ask(address)
        assert status == 200
        assert b"This run is still going on." in page
        assert b"<script>" in page
        tag = headers["ETag"]
        assert ask(address, **{"If-None-Match": tag})[::2] == (304, b"")
        assert ask(address, "/../../etc/passwd")[0] == 404
        assert ask(address, Host="example.com")[0] == 403
    with pytest.raises(ConnectionRefusedError):
        ask(address)
    assert not (run / "report.html").exists()


def test_a_change_is_drawn_but_not_more_often_than_the_run_can_bear(run: Path) -> None:
    now = [0.0]
    watched = Watched([run], clock=lambda: now[0])
    first, page = watched.page()
    change(run, state="done", verdict="Half is enough.")
    assert watched.page() == (first, page)
    now[0] = 10.0
    second, page = watched.page()
    assert second != first
    assert b"Half is enough." in page
    assert watched.page() == (second, page)


def test_several_runs_are_watched_on_one_page(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    assert b"Targets beside each other" in Watched([run, other]).page()[1]


def test_a_port_that_is_taken_is_refused(run: Path) -> None:
    with served([run]) as address:
        port = urlsplit(address).port
        assert port is not None
        with pytest.raises(Refused, match=f"--port {port}: cannot be had"), served([run], port):
            pass


def test_where_nobody_sees_the_terminal_watching_ends_with_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def wait(_seconds: float) -> None:
        asked.append(1)
        change(run, state="done")

    monkeypatch.setattr(time, "sleep", wait)
    threads = threading.active_count()
    assert main(["report", str(run), "--watch"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Watching at http://127.0.0.1:")
    assert told[1].startswith("run: training Random init  step 10/20  loss 3.000")
    assert len(asked) == 1
    assert threading.active_count() == threads


def test_ctrl_c_ends_watching(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert main(["report", str(run), "--watch"]) == 0
