"""The same bytes from Slurm and Ray as from this machine, and one line when a cluster does not do its part.

Slurm is a script that stands for its commands and runs job arrays here, by datatrove's own executor and launch script.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inheritune.config import DataConfig, Recipe, SlurmConfig, SourceConfig
from inheritune.corpus import build, check_sources, cluster, plan, prepare, slurm_jobs, steps, worker
from inheritune.corpus.cluster import Portion, follow
from inheritune.errors import Failed, Refused
from inheritune.recipe import build_parser, parse

FAKE_SLURM = """
import json, os, re, signal, subprocess, sys
from pathlib import Path

home = Path(os.environ["FAKE_SLURM"])
name, number = Path(sys.argv[0]).name, re.findall("[0-9]*$", sys.argv[-1])[0]
for argument in sys.argv:
    if argument.startswith("--jobs="):
        number = argument.removeprefix("--jobs=")
if name == "sbatch":
    script = Path(sys.argv[-1]).read_text()
    directives = dict(re.findall(r"^#SBATCH --([\\w-]+)=?(.*)$", script, re.MULTILINE))
    if directives["partition"] == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = str(len(list(home.glob("*.json"))) + 1)
    (home / f"{number}.json").write_text(json.dumps(directives))
    (home / f"{number}.sh").write_text(script)
    first, last = re.fullmatch("([0-9]+)-([0-9]+)", directives["array"]).groups()
    log = directives["output"].replace("%A", number)
    lines = [f"cd {home}"]
    for element in range(int(first), int(last) + 1):
        run = f"SLURM_ARRAY_TASK_ID={element} SLURM_NODELIST=here RUN_OFFSET=0 bash {number}.sh"
        if element == int(os.environ.get("FAKE_SLURM_LIMIT", -1)):
            run = "echo 'slurmstepd: error: *** JOB CANCELLED DUE TO TIME LIMIT ***'"
        lines.append(f"{run} > '{log.replace('%a', str(element))}' 2>&1 &")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = "\\n".join([*lines, "wait", f"touch {number}.ended"])
    (home / f"{number}.pid").write_text(str(subprocess.Popen(["bash", "-c", command], process_group=0, **quiet).pid))
    print(f"Submitted batch job {number}")
elif name == "squeue":
    if (home / f"{number}.ended").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print("RUNNING None\\nPENDING Resources")
elif name == "scancel":
    if not (home / f"{number}.ended").exists():
        os.killpg(int((home / f"{number}.pid").read_text()), signal.SIGKILL)
        (home / f"{number}.cancelled").touch()
        (home / f"{number}.ended").touch()
elif name == "scontrol":
    print(sys.argv[-1])
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands on PATH; the directory of what they were asked."""
    home, programs = tmp_path / "fake", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (programs / name).write_text(f"#!{sys.executable}{FAKE_SLURM}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return home


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Five hundred documents in files of their own, and limits by which they are several tasks and not small."""
    for name in ("_SMALL_SCAN_BYTES", "_SMALL_TOKENISE_BYTES"):
        monkeypatch.setattr(build, name, 0)
    monkeypatch.setattr(build, "_TOKENISE_TASK_BYTES", 10_000)
    monkeypatch.setattr(plan.divide, "__defaults__", (10_000,))
    monkeypatch.setattr(worker, "_POLL_SECONDS", 0.2)
    monkeypatch.setattr(worker, "_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(worker, "_REPORT_SECONDS", 0.0)
    generator = random.Random(0)
    texts = [f"{i} " + " ".join(generator.choices(["naïve", "漢字", "layer"], k=30)) for i in range(500)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig([SourceConfig(str(source))], validation_share=0.1, development_share=0.1, workers=1)


def on_slurm(data: DataConfig, partition: str = "cpu") -> DataConfig:
    settings = SlurmConfig(partition, time_limit_minutes=30, memory_gigabytes=3)
    return dataclasses.replace(data, executor="slurm", workers=2, slurm=settings)


def contents(directory: Path) -> dict[str, Any]:
    """All that was written, by path; of the manifest what does not depend on how it was made."""
    found: dict[str, Any] = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in (".lock", "manifest.json")
    }
    manifest = json.loads((directory / "manifest.json").read_text())
    for key in ("executor", "slurm", "workers"):
        del manifest["config"][key]
    return found | {"manifest": manifest}


@pytest.mark.slow
def test_slurm_writes_the_same_bytes(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")  # started within another job, which must not be taken for its own
    lines: list[str] = []
    prepare(data, tokenizer_directory, tmp_path / "here")
    prepare(on_slurm(data), tokenizer_directory, tmp_path / "there", report=lines.append)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert any("tasks done; Slurm job 1: 1 pending (Resources), 1 running" in line for line in lines)
    asked = [json.loads(path.read_text()) for path in sorted(slurm.glob("*.json"))]
    assert len(asked) == 2  # the scan and one wave, no job for statistics
    expected = {"partition": "cpu", "time": "30", "mem-per-cpu": "3G", "cpus-per-task": "1", "array": "0-1"}
    assert [{key: one[key] for key in expected} for one in asked] == [expected, expected]
    assert "qos" not in asked[0]
    assert not list(slurm.glob("*.cancelled"))


@pytest.mark.slow
def test_what_a_job_refuses_is_refused(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path
) -> None:
    with Path(data.sources[0].path).open("a") as source:
        source.write("{\n")
    with pytest.raises(Refused, match=r"a\.jsonl:501: not JSON"):
        prepare(on_slurm(data), tokenizer_directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (slurm / "1.ended").exists()


@pytest.mark.slow
def test_after_a_job_hit_its_time_limit_any_executor_goes_on(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLURM_LIMIT", "1")
    with pytest.raises(Failed) as failed:
        prepare(on_slurm(data), tokenizer_directory, tmp_path / "out")
    assert "ended with 8 of 16 tasks not done" in str(failed.value)
    assert "1_1.out says: slurmstepd: error: *** JOB CANCELLED DUE TO TIME LIMIT ***; mend it" in str(failed.value)
    assert "\n" not in str(failed.value)
    done = {int(mark.name) for mark in (tmp_path / "out").glob(".work/*/scan/completions/*")}
    assert done == set(range(0, 16, 2))
    scanned: list[int] = []
    scan = steps.Scan.__call__

    def record(step: steps.Scan, data: Any, rank: int, world_size: int) -> None:
        scanned.append(rank)
        scan(step, data, rank, world_size)

    monkeypatch.setattr(steps.Scan, "__call__", record)
    prepare(data, tokenizer_directory, tmp_path / "out")
    assert scanned == list(range(1, 16, 2))
    prepare(data, tokenizer_directory, tmp_path / "here")
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


@pytest.mark.slow
def test_jobs_that_slurm_does_not_take(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path
) -> None:
    with pytest.raises(Failed, match=r"not taken \(sbatch: error: invalid partition specified: nowhere\); mend it"):
        prepare(on_slurm(data, "nowhere"), tokenizer_directory, tmp_path / "out")


def test_a_job_left_over_is_cancelled_before_another_is_submitted(tmp_path: Path, slurm: Path) -> None:
    (tmp_path / "scan" / "slurm").mkdir(parents=True)
    (tmp_path / "scan" / "slurm" / "job.json").write_text('{"id": "7"}')
    left_over = subprocess.Popen(["sleep", "60"], process_group=0)
    (slurm / "7.pid").write_text(str(left_over.pid))
    jobs = slurm_jobs.SlurmJobs(tmp_path / "scan", 2, SlurmConfig("cpu"))
    portion = Portion(steps.Scan(str(tmp_path)), str(tmp_path / "scan"), [0, 1, 2], 3, str(tmp_path))
    jobs.start(portion)
    assert left_over.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / "scan" / "slurm" / "job.json").read_text()) == {"id": "1"}
    jobs.stop()
    assert jobs.state() is None


SCRIPT = """
import signal
import sys
from pathlib import Path
from inheritune.config import DataConfig, SlurmConfig, SourceConfig
from inheritune.corpus import build, prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
build._SMALL_SCAN_BYTES = 0
data = DataConfig([SourceConfig(sys.argv[1])], workers=1, executor="slurm", slurm=SlurmConfig("cpu"))
prepare(data, sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_cancels_its_jobs(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path, by: signal.Signals
) -> None:
    arguments = [sys.executable, "-c", SCRIPT, data.sources[0].path, str(tokenizer_directory), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    while not (slurm / "1.pid").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(by)
    process.wait()
    until = time.monotonic() + 30
    while not (slurm / "1.ended").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (slurm / "1.cancelled").exists()


def test_squeue_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "slurm_load_jobs error: Unable to contact controller\n")
    monkeypatch.setattr(slurm_jobs, "_slurm", lambda *_: answer)
    jobs = slurm_jobs.SlurmJobs(tmp_path, 2, SlurmConfig("cpu"))
    assert "squeue does not answer (slurm_load_jobs error: Unable" in str(jobs.state())
    monkeypatch.setattr(slurm_jobs, "_UNREACHABLE_SECONDS", -1)
    with pytest.raises(Failed, match="Unable to contact controller"):
        jobs.state()


def test_jobs_without_a_log(tmp_path: Path) -> None:
    jobs = slurm_jobs.SlurmJobs(tmp_path, 2, SlurmConfig("cpu"))
    assert "cancelled before it began, or its nodes do not share this file system" in jobs.end()


class Standing:
    """Jobs that stand as told, in this order."""

    def __init__(self, *states: str | None) -> None:
        self.states = list(states)

    def start(self, portion: Portion) -> None: ...

    def state(self) -> str | None:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def end(self) -> str:
        return "nobody knows"

    def stop(self) -> None: ...

    def finish(self) -> None: ...


def test_jobs_are_followed_to_their_end(tmp_path: Path) -> None:
    marks = tmp_path / "completions"
    marks.mkdir()
    (marks / "00000").touch()
    with pytest.raises(Failed, match="ended with 1 of 2 tasks not done; nobody knows; mend it"):
        follow(Standing("2 running", None), tmp_path, 2, poll_seconds=0.01, grace_seconds=0.03)
    assert (tmp_path / "progress.txt").read_text() == "1 of 2 tasks done; 2 running"
    (marks / "00001").touch()
    follow(Standing(None), tmp_path, 2, poll_seconds=0.01, grace_seconds=0)
    (tmp_path / "error.json").write_text('{"refused": true, "message": "a.jsonl:1: not JSON"}')
    with pytest.raises(Refused, match=r"a\.jsonl:1: not JSON"):
        follow(Standing(None), tmp_path, 3, poll_seconds=0.01, grace_seconds=60)


def refuse() -> None:
    raise Refused("a.jsonl:1: not JSON")


def fill_disk() -> None:
    raise OSError(28, "No space left on device", "/full")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def divide_by_zero() -> None:
    _ = 1 // 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("deed", "refused", "message"),
    [
        (refuse, True, "a.jsonl:1: not JSON"),
        (fill_disk, False, "/full: No space left on device (on "),
        (be_killed, False, "was killed by signal 9 (9: out of memory, most likely); lower data.workers or"),
        (divide_by_zero, False, "traceback-1.txt: a job ended with ZeroDivisionError; start again to go on"),
    ],
)
def test_a_task_that_fails_in_a_job(tmp_path: Path, deed: Callable[[], None], refused: bool, message: str) -> None:
    def step(data: Any, rank: int, world_size: int) -> None:
        assert world_size == 4
        if rank == 3:
            deed()

    (tmp_path / "completions").mkdir()
    portion = Portion(step, str(tmp_path), [0, 1, 2, 3], 4, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(Failed) if deed is not be_killed else pytest.raises(Failed, match="job 1 failed"):
        portion(None, 1, 2)
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["refused"] == refused
    assert message in error["message"]
    assert cluster.undone(tmp_path, 4) == [0, 2, 3]
    portion(None, 0, 2)
    assert cluster.undone(tmp_path, 4) == [3]


def test_a_node_without_the_file_system(tmp_path: Path) -> None:
    portion = Portion(steps.Scan("nowhere"), str(tmp_path / "nowhere"), [0], 1, str(tmp_path))
    with pytest.raises(Failed, match="all nodes must share its file system"):
        portion(None, 0, 1)
    assert not (tmp_path / "nowhere").exists()


def test_little_work_is_done_here_and_that_is_said(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SMALL_SCAN_BYTES", "_SMALL_TOKENISE_BYTES"):
        monkeypatch.setattr(build, name, 1 << 20)
    lines: list[str] = []
    manifest = prepare(on_slurm(data), tokenizer_directory, tmp_path / "out", report=lines.append)
    assert [line for line in lines if "too little work for slurm" in line] == [
        "scan: done in this process, too little work for slurm",
        "waves/000: done in this process, too little work for slurm",
    ]
    assert not list(slurm.iterdir())
    assert prepare(data, tokenizer_directory, tmp_path / "out") == manifest  # the executor makes no other preparation


def test_an_executor_that_is_not_here_is_refused(
    tmp_path: Path, tokenizer_directory: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    on_ray = dataclasses.replace(data, executor="ray")
    for other, reason in [
        (on_slurm(data), "there is no sbatch on PATH"),
        (dataclasses.replace(on_slurm(data), slurm=None), "slurm needs data.slurm.partition"),
        (dataclasses.replace(on_slurm(data), workers=0), "and data.workers, the number of jobs"),
        (on_ray, r"ray is not installed; pip install 'inheritune\[ray\]'"),
    ]:
        with pytest.raises(Refused, match=reason):
            check_sources(other)
        with pytest.raises(Refused, match=reason):
            prepare(other, tokenizer_directory, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--executor slurm --workers 4", "slurm is None; allowed: {partition: NAME}, since executor is slurm"),
        ("--slurm.partition cpu", "slurm is 'partition cpu'; allowed: null, since executor is no slurm"),
        ("--executor ray --slurm.partition cpu", "since executor is no slurm"),
        ("--executor slurm --slurm.partition cpu", "workers is 0; allowed: with executor slurm the number of its jobs"),
        ("--executor slurm --slurm.partition cpu --workers 1001", "workers is 1001; allowed: with executor slurm"),
        ("--executor slurm --workers 4 --slurm.partition a;b", "slurm.partition is 'a;b'"),
        ("--executor slurm --workers 4 --slurm.partition cpu --slurm.time_limit_minutes 0", "minutes is 0"),
        ("--executor slurm --workers 4 --slurm.partition cpu --slurm.memory_gigabytes 0", "gigabytes is 0"),
        ("--executor cloud", "executor is 'cloud'"),
    ],
)
def test_settings_of_executors_that_make_no_sense(flags: str, complaint: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(build_parser(DataConfig), DataConfig, flags.split(), {}, "prepare")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_executors_by_flags_and_recipe() -> None:
    words = ["--executor", "slurm", "--workers", "4", "--slurm.partition", "cpu", "--slurm.memory_gigabytes", "8"]
    flags, _ = parse(build_parser(DataConfig), DataConfig, words, {}, "prepare")
    assert flags.slurm == SlurmConfig("cpu", memory_gigabytes=8)
    values = {"data": {"executor": "slurm", "workers": 4, "slurm": {"partition": "cpu", "memory_gigabytes": 8}}}
    recipe, _ = parse(build_parser(Recipe), Recipe, [], values, "recipe.yaml")
    assert recipe.data == flags
    back, _ = parse(build_parser(Recipe), Recipe, ["--data.executor=local", "--data.slurm=null"], values, "recipe.yaml")
    assert back.data == DataConfig(workers=4)


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    pytest.importorskip("ray")
    lines: list[str] = []
    prepare(data, tokenizer_directory, tmp_path / "here")
    on_ray = dataclasses.replace(data, executor="ray", workers=2)
    prepare(on_ray, tokenizer_directory, tmp_path / "there", report=lines.append)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert any("of 16 tasks done; Ray: " in line for line in lines)


@pytest.mark.slow
def test_what_a_task_on_ray_refuses_is_refused(tmp_path: Path, tokenizer_directory: Path, data: DataConfig) -> None:
    pytest.importorskip("ray")
    with Path(data.sources[0].path).open("a") as source:
        source.write("{\n")
    with pytest.raises(Refused, match=r"a\.jsonl:501: not JSON"):
        prepare(dataclasses.replace(data, executor="ray"), tokenizer_directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
