"""Commands that succeed, and what help costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from inheritune.cli import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"{name} {command.arguments}" in said
        assert command.summary in said


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_without_torch(name: str) -> None:
    code = (
        "import sys\nfrom inheritune.cli import main\n"
        f"try:\n    main([{name!r}, '--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'help imports torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: inheritune {name}" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("inheritune ")


def test_inherit_writes_a_model_and_its_account(llama_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert main(["inherit", str(llama_directory), "--layers", "3", "--out", str(out)]) == 0
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3
    assert json.loads((out / "inheritance.json").read_text())["layers_kept"] == [0, 1, 2]


def test_prepare_writes_shards(tokenizer_directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is document number {number}, and it is short." for number in range(300)))
    out = tmp_path / "shards"
    words = [str(text), "--tokenizer", str(tokenizer_directory), "--document_separator", "\\n\\n", "--out", str(out)]
    assert main(["prepare", *words, "--tokens", "2K", "--validation_share", "0.1", "--workers", "1"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sets"]["train"]["tokens"] == 2000
    assert manifest["sets"]["held-out"]["documents"] > 5


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "inheritune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("inheritune ")
