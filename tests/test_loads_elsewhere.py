"""The study that takes a model to llama.cpp, without llama.cpp: what it calls the same, and how it ends."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

SCRIPT = Path(__file__).parents[1] / "studies" / "real_reference" / "loads_elsewhere.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loads_elsewhere", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ended(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], check=False, capture_output=True, text=True)


def test_where_both_part_is_recorded_with_the_margin_there(study: ModuleType) -> None:
    here = {"generated": [7, 8, 9], "margins": [0.5, 0.25, 0.75]}
    same = study.compared("a b", [1, 2], here, [1, 2], [7, 8, 9])
    assert (same["same_tokens"], same["parts_at"], same["margin_there"], same["least_margin"]) == (
        True,
        None,
        None,
        0.25,
    )
    other = study.compared("a b", [1, 2], here, [1, 3], [7, 5, 9])
    assert (other["same_tokens"], other["parts_at"], other["margin_there"]) == (False, 1, 0.25)
    shown = study.table({"pre_tokenizer": "x", "prompts": [same, other]})
    assert "| a b | 2 | yes | 32 of 32 | 0.2500 |" in shown
    assert "| a b | 2 | no | 1 of 32 | 0.2500 |" in shown


def test_greedy_tokens_are_those_of_generate(study: ModuleType, llama_directory: Path) -> None:
    prompt = [5, 9, 2]
    (found,) = study.in_transformers(llama_directory, [prompt])
    network = AutoModelForCausalLM.from_pretrained(llama_directory)
    expected = network.generate(
        torch.tensor([prompt]), max_new_tokens=study.NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert found["generated"] == expected[0, len(prompt) :].tolist()
    assert len(found["margins"]) == study.NEW_TOKENS
    assert min(found["margins"]) >= 0


@pytest.mark.parametrize("absent", ["MODEL", "--converter", "--python"])
def test_what_is_not_there_is_said_before_anything_is_written(
    absent: str, llama_directory: Path, tmp_path: Path
) -> None:
    given = {"MODEL": llama_directory, "--converter": SCRIPT, "--python": Path(sys.executable)}
    given[absent] = tmp_path / "nowhere"
    words = (given["MODEL"], "--converter", given["--converter"], "--python", given["--python"])
    found = ended(*words, "--work", tmp_path / "work")
    assert found.returncode == 2
    assert f"{absent}: {tmp_path / 'nowhere'}" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_fails_is_one_line(llama_directory: Path, tmp_path: Path) -> None:
    converter = tmp_path / "convert.py"
    converter.write_text("raise NotImplementedError('no such pre-tokenizer')\n", encoding="utf-8")
    words = (llama_directory, "--converter", converter, "--python", sys.executable, "--work", tmp_path / "work")
    found = ended(*words)
    assert found.returncode == 1
    line = f"loads_elsewhere: convert.py {llama_directory}: NotImplementedError: no such pre-tokenizer"
    assert found.stderr.splitlines()[-1] == line
